"""The semantic image path (spec 1.9): patch transformer, 2x2 conv pooling, projector, one newline a row.

Shapes: I images · P patches · W tower width · D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import FITTING
from unmask.models.linear import Linear
from unmask.models.sizes import VisionConfig


class VisionLayer(nn.Module):
    """Pre-norm encoder layer with biases and tanh-GELU, as SigLIP has it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.q, self.k, self.v, self.out = (Linear(config.width, config.width) for _ in range(4))
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)

    def forward(self, x_IPW: Tensor) -> Tensor:
        y = self.norm1(x_IPW)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x_IPW + self.out(FITTING(q, k, v, None).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Tower(nn.Module):
    """Pixels in [0, 1], [I, 3, image, image] -> patch features [I, side, side, W]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.position = nn.Embedding(config.side**2, config.width)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, eps=config.eps)  # present in the released files, never applied

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(((pixels - 0.5) / 0.5).to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + self.position.weight
        for layer in self.layers:
            x = layer(x)
        return x.unflatten(1, (self.config.side, self.config.side))


def _bilinear(x_IDss: Tensor, side: int) -> Tensor:
    return F.interpolate(x_IDss, size=(side, side), mode="bilinear", align_corners=False)


def _average(x_IDss: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x_IDss, 2)


def _max(x_IDss: Tensor, side: int) -> Tensor:
    return F.max_pool2d(x_IDss, 2)


def _whole(x_IDss: Tensor, side: int) -> Tensor:
    return x_IDss


_REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "bilinear": _bilinear,
    "average": _average,
    "max": _max,
    "none": _whole,
}


class Vision(nn.Module):
    """Pixels -> the tokens that the understanding branch reads: [I, pooled * (pooled + 1), D]."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.tower = Tower(config)
        if config.reduction == "conv":
            self.pool = nn.Conv2d(config.width, config.width, 2, stride=2)
        self.project_in = Linear(config.width, width)
        self.project_out = Linear(width, width)
        self.newline = nn.Parameter(torch.zeros(width))

    def pooled(self, pixels: Tensor) -> Tensor:
        """Patch features after pooling, before the projector: [I, pooled, pooled, W]."""
        return self.pool(self.tower(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def projected(self, pixels: Tensor) -> Tensor:
        """Features of every view without newlines: [I, pooled, pooled, D]."""
        reduce = _REDUCTIONS.get(self.config.reduction)
        x = self.tower(pixels) if reduce else self.pooled(pixels)
        x = self.project_out(F.gelu(self.project_in(x)))
        return reduce(x.permute(0, 3, 1, 2), self.config.pooled).permute(0, 2, 3, 1) if reduce else x

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.projected(pixels)
        newline = self.newline.to(x.dtype).expand(x.shape[0], x.shape[1], 1, -1)
        return torch.cat([x, newline], dim=2).flatten(1, 2)
