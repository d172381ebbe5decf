"""An objective over batches whose image codes are still references to pictures: the tokenizer encodes them on the training device.

Public ideas: ``Encoded(objective=…, tokenizer=…)``, for batches of ``data.deferred.Deferred``, and ``FromBytes(objective=…)`` for others
whose pixels are uint8: a quarter of the memory and of the time that they travel.

Shapes: P pictures · H W pixels · h w codes · B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from unmask.objectives.masked import MaskedModel, Together
from unmask.protocols import Objective
from unmask.sequence import Batch, Kind
from unmask.step import Loss
from unmask.tokens.vq import VQ

ModelT = TypeVar("ModelT")
_AT_ONCE = 64  # pictures: the distances of their latents to 4,096 codes take 256 MiB


class Tokenizer:
    """A trained image tokenizer, which follows the device of the pictures. It is not trained further."""

    def __init__(self, vq: VQ) -> None:
        self.vq = vq.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures_PHW3: Tensor) -> Tensor:
        """uint8 -> codes, long [P, h, w], computed in float32."""
        self.vq.to(pictures_PHW3.device)
        return torch.cat([self.vq.encode(_pixels(some)) for some in pictures_PHW3.split(_AT_ONCE)])


def _pixels(pictures_PHW3: Tensor) -> Tensor:
    return (pictures_PHW3.float() / 255).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """{name: (batch, pictures)} -> the loss of ``objective`` for {name: batch} with real codes and float pixels."""

    objective: Together
    tokenizer: Tokenizer

    def __call__(self, model: MaskedModel, batches: Mapping[str, tuple[Batch, Tensor]], rng: torch.Generator) -> Loss:
        coded = {name: self.encoded(batch, pictures) for name, (batch, pictures) in batches.items()}
        return self.objective(model, coded, rng)

    def encoded(self, batch: Batch, pictures_PHW3: Tensor) -> Batch:
        """The batch with codes in place of references, and its pixels, if it has any, in 0..1."""
        if batch.pixels is not None:
            batch = batch.replace(pixels=batch.pixels.float() / 255)
        if not len(pictures_PHW3):
            return batch
        codes = self.tokenizer(pictures_PHW3).flatten()
        is_code = batch.valid & (batch.kind == Kind.CODE)
        ids = torch.where(is_code, codes[batch.ids.masked_fill(~is_code, 0)], batch.ids)
        return batch.replace(ids=ids, clean=ids)


@dataclass(frozen=True, kw_only=True)
class FromBytes(Generic[ModelT]):
    """(pixels uint8 [B, 3, H, W], labels) -> the loss of ``objective`` for pixels in 0..1."""

    objective: Objective[ModelT, tuple[Tensor, dict[str, Tensor]]]

    def __call__(self, model: ModelT, batch: tuple[Tensor, dict[str, Tensor]], rng: torch.Generator) -> Loss:
        pixels, labels = batch
        made = self.objective(model, (pixels.float() / 255, labels), rng)
        assert isinstance(made, Loss)
        return made
