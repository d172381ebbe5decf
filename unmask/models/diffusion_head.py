"""A head that draws continuous values: a small network that denoises one vector, conditioned on the hidden state of its token.

Public idea: ``DiffusionHead(channels, condition, width, depth, outputs)``, a call (x [N, C], t [N], z [N, D]) -> [N, O]. Names of tensors
are those of MAR (Li et al. 2024, arXiv 2406.11838), whose head MMAR and UniGenX use. How it is trained is in ``objectives/diffusion.py``,
how it draws in ``sampling/continuous.py``.

Shapes: N vectors · C channels · D width of the condition · W width of the head · O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.timed import TimeEmbedding

_EPS = 1e-6


def _modulation(width: int, parts: int) -> nn.Sequential:
    """SiLU and a linear map that is 0 at first."""
    layer = nn.Linear(width, parts * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


class HeadBlock(nn.Module):
    """h + gate MLP(norm(h) (1 + scale) + shift); shift, scale and gate follow from the condition and are 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = _modulation(width, 3)

    def forward(self, h_NW: Tensor, y_NW: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y_NW).chunk(3, dim=-1)
        return h_NW + gate * self.mlp(self.in_ln(h_NW) * (1 + scale) + shift)


class HeadEnd(nn.Module):
    """The last layer: a norm without weights, shift and scale, and a linear map that is 0 at first."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, h_NW: Tensor, y_NW: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y_NW).chunk(2, dim=-1)
        return self.linear(F.layer_norm(h_NW, h_NW.shape[-1:], eps=_EPS) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """``outputs``: C, or 2 C where the head has numbers for its variance, too."""

    def __init__(self, channels: int, condition: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.channels = channels
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.final_layer = HeadEnd(width, outputs)

    def forward(self, x_NC: Tensor, t_N: Tensor, z_ND: Tensor) -> Tensor:
        y_NW = self.time_embed(t_N) + self.cond_embed(z_ND)
        h_NW = self.input_proj(x_NC)
        for block in self.res_blocks:
            h_NW = block(h_NW, y_NW)
        return self.final_layer(h_NW, y_NW)


def guided(output_cond: Tensor, output_null: Tensor, scale: Tensor | float, channels: int) -> Tensor:
    """null + scale (cond - null) for the first C numbers [N, C]; the numbers of the variance stay those of the condition."""
    c, u = output_cond[:, :channels], output_null[:, :channels]
    return torch.cat([u + scale * (c - u), output_cond[:, channels:]], dim=1)
