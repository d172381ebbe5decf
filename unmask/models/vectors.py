"""A transformer over given words and noisy word vectors, each with a noise level of its own, that predicts the clean vectors.

Public idea: ``VectorNet(VectorConfig(vocab_size=..))(given, x, level, before)``. ``embedded`` makes vectors of words, ``logits`` words of
vectors, and ``times`` says how much noise each vector has next (``methods.neodiff``).

Shapes: B rows · S given tokens · T tokens of the answer · C channels of a vector · D width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import plain
from unmask.models.blocks import RMSNorm, SwiGLU
from unmask.models.linear import Linear
from unmask.models.rope import Table, rope_table, rotate

PAD = -1  # a given id that nobody reads


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """``channels``: C · ``clock``: width of the embedding of a level, even."""

    vocab_size: int
    channels: int = 32
    width: int = 96
    heads: int = 4
    layers: int = 3
    mlp: int = 192
    clock: int = 32
    rope_theta: float = 1000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")


class Layer(nn.Module):
    """All-visible attention and a gated feed-forward, each added to its input."""

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attn_norm, self.mlp_norm = (RMSNorm(width, config.norm_eps) for _ in range(2))
        self.qkv, self.out = Linear(width, 3 * width, bias=False), Linear(width, width, bias=False)
        self.mlp: nn.Module = SwiGLU(width, config.mlp)

    def forward(self, h: Tensor, table: Table, attend: Tensor) -> Tensor:
        """``h [B, L, D]`` · ``attend`` [B, 1, 1, L]: the positions that may be read."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(self.attn_norm(h)).chunk(3, dim=-1)
        )
        h = h + self.out(plain(rotate(q, table), rotate(k, table), v, attend).transpose(1, 2).flatten(2))
        return h + self.mlp(self.mlp_norm(h))


class VectorNet(nn.Module):
    """``embedding(level, width)``: of a noise level in 0..1, [..] -> [.., width]."""

    def __init__(self, config: VectorConfig, embedding: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.config, self.embedding = config, embedding
        width, channels = config.width, config.channels
        self.table = nn.Embedding(config.vocab_size, channels)
        self.words = nn.Embedding(config.vocab_size, width)
        self.inward = Linear(2 * channels, width, bias=False)
        self.clock = Linear(config.clock, width, bias=True)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(width, config.norm_eps)
        self.outward = Linear(width, channels, bias=True)
        self.when = nn.Linear(channels + config.clock, 1)

    def embedded(self, ids: Tensor) -> Tensor:
        """Vectors of zero mean and unit variance, [..] -> [.., C]."""
        return F.layer_norm(self.table(ids), (self.config.channels,))

    def logits(self, x: Tensor) -> Tensor:
        """[.., C] -> [.., V]."""
        every = F.layer_norm(self.table.weight, (self.config.channels,))
        return x @ every.T

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        """The level of each vector at the times [B] of the rows, [B, T]; a real number."""
        clock_BTK = self.embedding(t, self.config.clock)[:, None].expand(-1, x.shape[1], -1)
        return self.when(torch.cat([x, clock_BTK], -1))[..., 0]

    def forward(self, given: Tensor, x: Tensor, level: Tensor, before: Tensor) -> Tensor:
        """Clean vectors [B, T, C]. ``given [B, S]``: ids, or ``PAD`` · ``x``, ``before``: [B, T, C], the noisy vectors and an earlier
        prediction of the clean ones, or zeros · ``level [B, T]``: noise, 0..1.
        """
        known_BS = given != PAD
        words_BSD = self.words(given.clamp(min=0))
        own_BTD = self.inward(torch.cat([x, before], -1)) + self.clock(self.embedding(level, self.config.clock))
        h = torch.cat([words_BSD, own_BTD], 1)
        attend = torch.cat([known_BS, torch.ones_like(level, dtype=torch.bool)], 1)[:, None, None]
        place = torch.arange(h.shape[1], device=h.device).expand(len(h), -1)
        table = rope_table(place, self.config.width // self.config.heads, self.config.rope_theta)
        for block in self.blocks:
            h = block(h, table, attend)
        return self.outward(self.norm(h[:, given.shape[1] :]))
