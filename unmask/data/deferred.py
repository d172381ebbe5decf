"""Batches whose image codes are computed later, on the training device.

Worker processes render pictures, but have no image tokenizer. In their batches the id of a code is a *reference*: picture number times
codes per picture, plus the place of the code. ``Deferred`` sends the pictures along, and ``objectives.encoded.Encoded`` replaces the
references.

Shapes: P pictures · H W pixels · B pictures of one call · h w codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unmask.data.world.render import render
from unmask.data.world.scenes import Scene
from unmask.data.world.sprites import SpriteFile, fresh
from unmask.protocols import Source
from unmask.sequence import Batch


class Pictured(NamedTuple):
    """A batch with references, and the pictures that they refer to: uint8 [P, H, W, 3]."""

    batch: Batch
    pictures: Tensor


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Renders scenes as uint8 [B, 3, side, side], channels last in memory. ``sprites``: a file of rasterised sprites; None: every sprite is
    rasterised every time, because at this size there are too many to keep.
    """

    sprites: SpriteFile | None = None

    def __call__(self, scenes: Sequence[Scene], side: int) -> Tensor:
        made = [render(scene, side, self.sprites or fresh) for scene in scenes]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


class References:
    """Stands for the encoder in a source: keeps the pictures and returns references. ``side``: pixels per side of the patch of a code."""

    def __init__(self, side: int = 16) -> None:
        self.side = side
        self.kept: list[Tensor] = []

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        batch, _, high, wide = pixels_B3HW.shape
        first = sum(len(pictures) for pictures in self.kept)
        self.kept.append(pixels_B3HW.permute(0, 2, 3, 1))
        rows, columns = high // self.side, wide // self.side
        each = rows * columns
        return torch.arange(first * each, (first + batch) * each).reshape(batch, rows, columns)

    def take(self) -> Tensor:
        """The pictures since the last call, uint8 [P, H, W, 3]. P is 0 where there are none."""
        taken, self.kept = self.kept, []
        return torch.cat(taken) if taken else torch.zeros(0, self.side, self.side, 3, dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """Another source, which encodes with ``references``, with its pictures."""

    source: Source[Batch]
    references: References

    def __call__(self, step: int) -> Pictured:
        self.references.take()
        return Pictured(self.source(step), self.references.take())
