"""The vision tower of Qwen2.5-VL with Dimple's projector (arXiv 2502.13923, 2505.16990), for pictures made of whole blocks of patches.

Public idea: ``QwenVision(config, width)(pixels) -> features``, one row for every block of ``merge`` x ``merge`` patches, row by row. Most
layers attend inside windows only. Shapes: N patches, block by block · W tower width · D model width · T blocks.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import FITTING
from unmask.models.blocks import RMSNorm
from unmask.models.linear import Linear
from unmask.models.rope import Table, rotate
from unmask.models.sizes import QwenVisionConfig

_EPS, _THETA = 1e-6, 10000.0


class QwenLayer(nn.Module):
    """Pre-norm layer with RMSNorm, biases everywhere, and SwiGLU."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = RMSNorm(config.width, _EPS), RMSNorm(config.width, _EPS)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.gate, self.up = Linear(config.width, config.mlp), Linear(config.width, config.mlp)
        self.down = Linear(config.mlp, config.width)

    def forward(self, x_NW: Tensor, rope: Table, attend_NN: Tensor | None) -> Tensor:
        heads_3HNK = self.qkv(self.norm1(x_NW)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        q, k, v = (part[None] for part in heads_3HNK)
        attend = None if attend_NN is None else attend_NN[None, None]
        mixed = FITTING(rotate(q, rope), rotate(k, rope), v, attend)[0].transpose(0, 1).flatten(1)
        x = x_NW + self.out(mixed)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class QwenTower(nn.Module):
    """Pixels of one picture in [0, 1], [3, H, W] -> merged features [T, out]."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Parameter(torch.empty(config.width, 3, config.temporal, config.patch, config.patch))
        self.layers = nn.ModuleList(QwenLayer(config) for _ in range(config.layers))
        inner = config.width * config.merge**2
        self.norm = RMSNorm(config.width, _EPS)
        self.merge_in, self.merge_out = Linear(inner, inner), Linear(inner, config.out)

    def forward(self, pixels_3HW: Tensor) -> Tensor:
        patches = patches_of(pixels_3HW, self.config).to(self.patch.dtype)
        rows, columns = (side // (self.config.patch * self.config.merge) for side in pixels_3HW.shape[1:])
        rope, windows = _places(rows, columns, self.config)
        rope, windows = (rope[0].to(patches.device), rope[1].to(patches.device)), windows.to(patches.device)
        x = F.linear(patches, self.patch.flatten(1))
        for number, layer in enumerate(self.layers):
            x = layer(x, rope, None if number in self.config.full else windows)
        merged = self.norm(x).view(rows * columns, -1)
        return self.merge_out(F.gelu(self.merge_in(merged)))


class QwenVision(nn.Module):
    """Pictures in [0, 1], [I, 3, H, W] -> the tokens that the language model reads, [I, T, D]; [1, sum of T, D] where some are smaller, and
    padded with NaN (``sequence.of_one_size``).
    """

    any_size = True

    def __init__(self, config: QwenVisionConfig, width: int) -> None:
        super().__init__()
        self.tower = QwenTower(config)
        self.project_in, self.project_out = Linear(config.out, width), Linear(width, width)

    def forward(self, pixels: Tensor) -> Tensor:
        found = [self.project(self.tower(_whole(one))) for one in pixels]
        alike = all(len(one) == len(found[0]) for one in found)
        return torch.stack(found) if alike else torch.cat(found)[None]

    def project(self, features: Tensor) -> Tensor:
        """Merged features [.., out] -> [.., D]."""
        return self.project_out(F.silu(self.project_in(features)))


def _whole(pixels_3HW: Tensor) -> Tensor:
    """A picture without its padding."""
    there_HW = ~pixels_3HW[0].isnan()
    return pixels_3HW[:, : int(there_HW[:, 0].sum()), : int(there_HW[0].sum())]


def patches_of(pixels_3HW: Tensor, config: QwenVisionConfig) -> Tensor:
    """Normalised patches [N, 3 * temporal * patch * patch], in blocks of ``merge`` x ``merge``, the frame repeated in time.

    ValueError for a picture that is not made of whole blocks.
    """
    block = config.patch * config.merge
    if any(side % block or not side for side in pixels_3HW.shape[1:]):
        raise ValueError(
            f"a picture of {tuple(pixels_3HW.shape[1:])} pixels is not made of blocks of {block}; resize it"
        )
    mean, std = (torch.tensor(v, device=pixels_3HW.device)[:, None, None] for v in (config.mean, config.std))
    x = (pixels_3HW - mean) / std
    x = x.unflatten(1, (-1, config.merge, config.patch)).unflatten(4, (-1, config.merge, config.patch))
    x = x.permute(1, 4, 2, 5, 0, 3, 6)  # block row, block column, row and column in it, channel, pixels
    return (
        x[:, :, :, :, :, None]
        .expand(-1, -1, -1, -1, -1, config.temporal, -1, -1)
        .reshape(-1, 3 * config.temporal * config.patch**2)
    )


@functools.lru_cache(maxsize=16)
def _places(rows: int, columns: int, config: QwenVisionConfig) -> tuple[Table, Tensor]:
    """The rotary table of every patch of rows x columns blocks, and which patches share a window, [N, N]."""
    block = torch.arange(rows * columns)
    down, across = block // columns, block % columns
    inside = torch.arange(config.merge**2)
    row_N = (down[:, None] * config.merge + inside // config.merge).flatten()
    column_N = (across[:, None] * config.merge + inside % config.merge).flatten()
    half = config.width // config.heads // 2
    inverse = _THETA ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
    angle = torch.cat([row_N[:, None] * inverse, column_N[:, None] * inverse], dim=1)
    sin = angle.sin()
    table = torch.cat([angle.cos()] * 2, dim=1)[None, None], torch.cat([-sin, sin], dim=1)[None, None]
    side = config.window // (config.merge * config.patch)
    window = (down // side) * (columns // side + 1) + across // side
    window_N = window.repeat_interleave(config.merge**2)
    return table, window_N[:, None] == window_N
