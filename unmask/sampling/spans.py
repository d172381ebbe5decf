"""Which writable span each token lies in: what block schedules, orders and early stopping need to know of a batch.

Public idea: ``writable_spans(batch)``, remembered by span table since that never changes inside a run.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.derived import derived
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


def wished(part: object, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
    """The tokens that a part wants scored (``Predicting``), [B, L]; None where it has no wish."""
    return part.predict(batch, block, counts) if _predicts(type(part)) else None  # type: ignore[attr-defined]


@functools.cache
def _predicts(kind: type) -> bool:
    return issubclass(kind, Predicting)


def whole_positions(batch: Batch, chosen: Tensor) -> Tensor:
    """``chosen [B, L]`` with every token whose position has a chosen one: a position is computed as a whole or not at all."""
    if not _has_folded(batch.span_table):
        return chosen
    first_BL = _first_of_position(batch.span_table, batch.ids.shape[1]).to(batch.device)
    any_BL = torch.zeros_like(chosen, dtype=torch.long).scatter_reduce(1, first_BL, chosen.long(), "amax")
    return any_BL.gather(1, first_BL).bool()


def of_position(batch: Batch, x: Tensor) -> Tensor:
    """``x [B, L]`` with each token's value that of the first token on its position, which is what attention reads."""
    if not _has_folded(batch.span_table):
        return x
    return x.gather(1, _first_of_position(batch.span_table, batch.ids.shape[1]).to(batch.device))


@functools.lru_cache(maxsize=64)
def _has_folded(span_table: tuple[tuple[Span, ...], ...]) -> bool:
    """Whether any position holds several tokens."""
    return any(span.fold > 1 for table in span_table for span in table)


@functools.lru_cache(maxsize=64)
def _first_of_position(span_table: tuple[tuple[Span, ...], ...], length: int) -> Tensor:
    """The number of the first token on each token's position, [B, L]."""
    first_BL = torch.arange(length).repeat(len(span_table), 1)
    for row, table in enumerate(span_table):
        for span in table:
            if span.fold > 1 and span.grid is not None:
                r, c = torch.arange(span.grid[0])[:, None], torch.arange(span.grid[1])[None, :]
                corner = (r - r % span.fold) * span.grid[1] + c - c % span.fold
                first_BL[row, span.start : span.stop] = span.start + corner.flatten()
    return first_BL
