"""Which writable span each token lies in: what block schedules, orders and early stopping need to know of a batch.

Public idea: ``writable_spans(batch)``, remembered by span table since that never changes inside a run.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.derived import derived, remembered
from unmask.protocols import Predicting
from unmask.sequence import Batch, Span


@dataclass(frozen=True, kw_only=True)
class SpanLayout:
    """All [B, L] long. ``span``: number among the row's writable spans (-1 outside) · ``offset``: token number in its span ·
    ``size``: tokens of its span · ``most``: the largest number of writable spans in a row.
    """

    span: Tensor
    offset: Tensor
    size: Tensor
    most: int


def writable_spans(batch: Batch) -> SpanLayout:
    layout = _lay_out(batch.span_table, batch.ids.shape[1])
    tensors = (layout.span, layout.offset, layout.size)
    device = batch.device
    span_BL, offset_BL, size_BL = derived(("to", device), lambda: [t.to(device) for t in tensors], *tensors)
    return SpanLayout(span=span_BL, offset=offset_BL, size=size_BL, most=layout.most)


@functools.lru_cache(maxsize=64)
def _lay_out(span_table: tuple[tuple[Span, ...], ...], length: int) -> SpanLayout:
    span_BL = torch.full((len(span_table), length), -1)
    offset_BL, size_BL = torch.zeros_like(span_BL), torch.zeros_like(span_BL)
    most = 0
    for row, table in enumerate(span_table):
        writable = [span for span in table if span.writable]
        most = max(most, len(writable))
        for number, span in enumerate(writable):
            span_BL[row, span.start : span.stop] = number
            offset_BL[row, span.start : span.stop] = torch.arange(len(span))
            size_BL[row, span.start : span.stop] = len(span)
    return SpanLayout(span=span_BL, offset=offset_BL, size=size_BL, most=most)


def still_masked(batch: Batch) -> Tensor:
    """Tokens that the sampler still has to unmask, [B, L] bool."""
    return batch.masked & batch.writable & batch.valid


STILL_MASKED = "still masked"  # the key under which a planned run remembers how many tokens each row has left, with ``batch.masked``


def left(batch: Batch) -> list[int]:
    """How many tokens of each row the sampler still has to unmask. Waits for the device, except in a run that was planned."""
    return remembered(STILL_MASKED, batch.masked) or still_masked(batch).sum(1).tolist()


def wished(part: object, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
    """The tokens that a part wants scored (``Predicting``), [B, L]; None where it has no wish."""
    return part.predict(batch, block, counts) if _predicts(type(part)) else None  # type: ignore[attr-defined]


@functools.cache
def _predicts(kind: type) -> bool:
    return issubclass(kind, Predicting)
