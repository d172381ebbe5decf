"""A transformer VQ for sequences of vectors, such as poses: frames to a few codes and back.

Public idea: ``SequenceVQ(SequenceVQConfig(channels=6))`` is a ``Codec``: ``encode(frames) -> ids``, ``decode(ids) -> frames``. ``trained``
gives what a loss needs. Vectors of codes have length 1 (Yu et al. 2022, arXiv 2110.04627): without that, few codes are ever used.

Shapes: B rows · T frames · S codes of a row, T / stride · C channels · D width · V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.blocks import RMSNorm
from unmask.models.linear import Linear
from unmask.models.rope import rope_table
from unmask.models.vectors import Layer, VectorConfig


@dataclass(frozen=True, kw_only=True)
class SequenceVQConfig:
    """``stride``: frames of a code · ``codes``: V · ``code_width``: of a code's vector · ``layers``: of the encoder and of the decoder."""

    channels: int
    stride: int = 3
    codes: int = 64
    code_width: int = 16
    width: int = 64
    heads: int = 4
    layers: int = 2
    mlp: int = 128


class Quantised(NamedTuple):
    """``frames [B, T, C]``: decoded, with gradients through the nearest codes · ``ids [B, S]`` · ``before``, ``codes [B, S, code_width]``:
    vectors before and after they were rounded.
    """

    frames: Tensor
    ids: Tensor
    before: Tensor
    codes: Tensor


class _Stack(nn.Module):
    def __init__(self, config: SequenceVQConfig, inward: int, outward: int) -> None:
        super().__init__()
        size = VectorConfig(
            vocab_size=1, width=config.width, heads=config.heads, layers=config.layers, mlp=config.mlp, channels=1
        )
        self.head_width = config.width // config.heads
        self.inward, self.outward = Linear(inward, config.width), Linear(config.width, outward)
        self.layers = nn.ModuleList(Layer(size) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        h, place = self.inward(x), torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        table = rope_table(place, self.head_width, 1000.0)
        every = torch.ones(x.shape[0], 1, 1, x.shape[1], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            h = layer(h, table, every)
        return self.outward(self.norm(h))


class SequenceVQ(nn.Module):
    def __init__(self, config: SequenceVQConfig) -> None:
        super().__init__()
        self.config = config
        frame = config.channels * config.stride
        self.encoder = _Stack(config, frame, config.code_width)
        self.decoder = _Stack(config, config.code_width, frame)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.code_width))

    @property
    def size(self) -> int:
        return self.config.codes

    @property
    def vectors(self) -> Tensor:
        """Of the codes, of length 1, [V, code_width]."""
        return F.normalize(self.codebook, dim=-1)

    def encode(self, x: Tensor, /) -> Tensor:
        """Frames [B, T, C] -> ids [B, S]. ValueError where ``stride`` does not divide T."""
        return self._nearest(self._before(x))

    def decode(self, ids: Tensor, /) -> Tensor:
        """ids [B, S] -> frames [B, T, C]."""
        return self.from_vectors(self.vectors[ids])

    def from_vectors(self, codes: Tensor) -> Tensor:
        """Vectors [B, S, code_width] -> frames."""
        return self.decoder(codes).view(len(codes), -1, self.config.channels)

    def trained(self, x: Tensor) -> Quantised:
        """Encoded, rounded and decoded, with straight-through gradients (van den Oord et al. 2017, arXiv 1711.00937)."""
        before = self._before(x)
        ids = self._nearest(before)
        codes = self.vectors[ids]
        return Quantised(self.from_vectors(before + (codes - before).detach()), ids, before, codes)

    def _before(self, x: Tensor) -> Tensor:
        rows, frames, channels = x.shape
        if frames % self.config.stride or channels != self.config.channels:
            raise ValueError(
                f"frames must be a multiple of {self.config.stride} with {self.config.channels} channels, got {frames} with {channels}"
            )
        return F.normalize(self.encoder(x.reshape(rows, frames // self.config.stride, -1)), dim=-1)

    def _nearest(self, before: Tensor) -> Tensor:
        return (before @ self.vectors.T).argmax(-1)
