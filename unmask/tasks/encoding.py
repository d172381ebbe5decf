"""Pictures of a user's data -> image codes and vision features of a model, made before training.

Public idea: ``Coding`` and ``Looking`` say how a picture becomes a tensor, and ``made_by`` what the tensor depends on, for ``data.codes``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from unmask.data.codes import MadeBy, weights_hash
from unmask.data.samples import ImageRef
from unmask.data.squares import Square
from unmask.tasks.parts import Parts
from unmask.tokens.views import to_pixels


class Encoding(Protocol):
    """A network that encodes pictures, and what goes into it. ``name``: of its shards · ``needs``: the parts of the model."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def made_by(self) -> MadeBy: ...

    def prepare(self, ref: ImageRef) -> Tensor: ...

    def __call__(self, inputs: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Coding:
    """Image codes [h, w] of square pictures. ``side``: pixels, a multiple of the tokenizer's factor (ValueError)."""

    parts: Parts
    square: Square
    side: int
    name: str = "codes"
    needs: frozenset[str] = field(default=frozenset({"vq.encoder"}))

    def __post_init__(self) -> None:
        factor = self.parts.vq.config.factor
        if self.side % factor or self.side < factor:
            raise ValueError(f"the side is {self.side} pixels; give a multiple of {factor}, the side of one code")

    def made_by(self) -> MadeBy:
        vq = self.parts.vq
        return MadeBy(weights=weights_hash(vq, config=vq.config), side=self.side, square=self.square.name)

    def prepare(self, ref: ImageRef) -> Tensor:
        """A picture -> [3, side, side] in 0..1. ImageError if it cannot be read."""
        return to_pixels(self.square(ref.open(), self.side, Random(0)).image)

    def __call__(self, inputs: Tensor) -> Tensor:
        """[B, 3, side, side] -> codes, long [B, h, w]."""
        return self.parts.codec.encode(inputs)


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Features [R, D] of all views of a picture, as ``Sequence.features`` has them. They hold while the vision tower is frozen."""

    parts: Parts
    name: str = "features"
    needs: frozenset[str] = field(default=frozenset({"vision"}))

    def made_by(self) -> MadeBy:
        net = self.parts.net
        return MadeBy(
            weights=weights_hash(net, ("vision.",), net.config.vision),
            side=self.parts.side,
            square=f"pad {self.parts.paper} views {self.parts.views}",
        )

    def prepare(self, ref: ImageRef) -> Tensor:
        """A picture -> its views [V, 3, S, S] in 0..1. ImageError if it cannot be read, ValueError for a model without a vision tower."""
        found = self.parts.image_views(ref.open())
        return found[None] if isinstance(found, Tensor) else found.views

    def __call__(self, inputs: Tensor) -> Tensor:
        """[B, V, 3, S, S] -> [B, R, D], every picture alone, as ``tasks.features`` encodes it."""
        vision = self.parts.net.vision
        device = (
            next(vision.parameters()).device if vision is not None else inputs.device
        )  # other parts may be on the meta device
        return torch.stack([self.parts.net.features(views.to(device)) for views in inputs])
