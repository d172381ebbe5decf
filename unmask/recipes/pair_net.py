"""Blocks of attention with a given mask, and a small network of ids and places, for ``recipes.dplm2`` and ``recipes.unigenx``.

All linear layers take LoRA. Shapes: B rows · L tokens · D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEADS = 4


class PairBlock(nn.Module):
    """Attention and a feed-forward network, normed first. ``attend``: who reads whom, [L, L] or [B, 1, L, L] bool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in self.read(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=attend).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PairNet(nn.Module):
    """(ids [B, L], place [L], attend [B, L, L] bool) -> logits [B, L, size]."""

    def __init__(self, size: int, places: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(size, width), nn.Linear(width, size, bias=False)
        self.place = nn.Parameter(0.1 * torch.randn(places, width))
        self.blocks = nn.ModuleList(PairBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, ids: Tensor, place: Tensor, attend: Tensor) -> Tensor:
        x = self.embed(ids) + self.place[place]
        attend = (attend | torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device))[
            :, None
        ]  # padding reads itself
        for block in self.blocks:
            x = block(x, attend)
        return self.head(self.norm(x))
