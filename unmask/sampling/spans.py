"""Which writable span each token lies in: what windows, orders and stops need to know of a batch.

Public idea: ``writable_spans(batch)``, remembered by span table since that never changes inside a run.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sequence import Batch, Span


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All [B, L] long. ``span``: number among the row's writable spans (-1 outside) · ``offset``: token number in its span ·
    ``size``: tokens of its span · ``most``: the largest number of writable spans in a row.
    """

    span: Tensor
    offset: Tensor
    size: Tensor
    most: int


def writable_spans(batch: Batch) -> Layout:
    layout = _lay_out(batch.span_table, batch.ids.shape[1])
    tensors = (t.to(batch.device) for t in (layout.span, layout.offset, layout.size))
    span_BL, offset_BL, size_BL = tensors
    return Layout(span=span_BL, offset=offset_BL, size=size_BL, most=layout.most)


@functools.lru_cache(maxsize=64)
def _lay_out(span_table: tuple[tuple[Span, ...], ...], length: int) -> Layout:
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
    return Layout(span=span_BL, offset=offset_BL, size=size_BL, most=most)


def undecided(batch: Batch) -> Tensor:
    """Tokens that the sampler still has to decide, [B, L] bool."""
    return batch.masked & batch.writable & batch.valid
