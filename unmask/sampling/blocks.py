"""In which part of a row the sampler works first.

Public idea: a block schedule is a value ``(batch, progress) -> [B, L] long``: the number of each token's block. A row works on its
lowest-numbered block that has masked tokens, at its own speed.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import BlockSchedule
from unmask.sampling.spans import writable_spans
from unmask.sequence import Batch
from unmask.step import Progress


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Everything at once."""

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        return torch.zeros_like(batch.ids)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of ``length`` tokens from left to right, counted from the start of each writable span (LLaDA; spec 4.1)."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a block needs at least one token, got length={self.length}")

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        layout = writable_spans(batch)
        begins_BL = (layout.span >= 0) & (layout.offset % self.length == 0)
        return begins_BL.long().cumsum(1)


@dataclass(frozen=True, kw_only=True)
class SpanBySpan:
    """One writable span after the other, for instance a plan before its picture."""

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        return writable_spans(batch).span.clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class FirstApart:
    """The first token of each writable span before the others: with shifted logits, the prompt alone predicts it (LaViDa on Dream)."""

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        layout = writable_spans(batch)
        return ((layout.span >= 0) & (layout.offset > 0)).long()


@dataclass(frozen=True, kw_only=True)
class ByOrder:
    """Tokens of lower orders first, those of one order as ``blocks`` says: text that nothing before attends to waits for its turn."""

    blocks: BlockSchedule = Whole()

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        inner_BL = self.blocks(batch, progress)
        return batch.order * (inner_BL.amax() + 1) + inner_BL
