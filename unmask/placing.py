"""Where every token of a span stands: its kind, branch, position, order, and its row and column in a grid.

Public idea: ``span_layout(spans) -> [10, L]``, which ``sequence.collate`` puts into a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unmask.sequence import Span


class Kind:
    """The vocabulary of a token: an int. Any further int is free for a method's own vocabulary."""

    TEXT = 0
    CODE = 1
    FEATURE = 2  # no id: the token reads a row of features


class Branch:
    """Which weights serve a token: an int."""

    UND = 0
    GEN = 1


_layouts: dict[tuple[Span, ...], Tensor] = {}


def span_layout(spans: tuple[Span, ...]) -> Tensor:
    """kind, branch, writable, position, leader, segment, order, stride, row and column of every token, [10, L]; remembered by span table.

    Row and column are the position but for a grid of features.
    """
    known = _layouts.get(spans)  # other threads may clear what is remembered at any time
    if known is None:
        if len(_layouts) > 4096:
            _layouts.clear()
        known = _layouts[spans] = _lay_out(spans)
    return known


def _lay_out(spans: tuple[Span, ...]) -> Tensor:
    table = torch.zeros(10, spans[-1].stop if spans else 0, dtype=torch.long)
    context = 0  # first position after the context: where every other segment begins
    reached: dict[int, int] = {}
    begun: dict[str, int] = {}
    for span in spans:
        start = reached.get(span.segment, context) if span.segment else context
        if span.positions_of:
            if span.positions_of not in begun:
                raise ValueError(
                    f"span {span.name!r} shares positions of {span.positions_of!r}, which is no earlier span"
                )
            start = begun[span.positions_of]
        begun[span.name] = start
        here, own = slice(span.start, span.stop), _own_positions(span)
        down, across = _axes(span) or (own.place, own.place)
        branch = Branch.GEN if span.kind == Kind.CODE else Branch.UND
        table[0, here] = span.kind
        table[1, here] = branch if span.branch is None else span.branch
        table[2, here] = int(span.writable)
        table[3, here] = start + span.position_offset + own.place
        table[4, here] = own.leader
        table[5, here] = span.segment
        table[6, here] = _orders(span, own)
        table[7, here] = own.stride
        table[8, here], table[9, here] = (start + span.position_offset + axis for axis in (down, across))
        end = start + span.position_offset + own.count
        if span.segment:
            reached[span.segment] = max(end, reached.get(span.segment, context))
        else:
            context = max(end, context)
    return table


def _orders(span: Span, own: _Places) -> Tensor:
    """Order of every token of a span. ValueError where the codes of one position would have two: a position has one order."""
    offset = torch.arange(len(span)) + span.order_phase
    order = span.order + (offset // span.order_step if span.order_step else torch.zeros_like(offset))
    if span.order_step and not torch.equal(order, order[own.leader.bool()][own.place]):
        columns = span.grid[1] if span.grid else 1
        raise ValueError(
            f"order_step {span.order_step} of span {span.name!r} gives codes of one position two orders; "
            f"use a multiple of {span.fold * columns} codes, {span.fold} rows of the grid"
        )
    return order


@dataclass(frozen=True, kw_only=True)
class _Places:
    place: Tensor
    leader: Tensor
    count: int
    stride: int


def _axes(span: Span) -> tuple[Tensor, Tensor] | None:
    """Row and column of every feature of a grid; None for other spans."""
    if span.grid is None or span.kind != Kind.FEATURE:
        return None
    offset = torch.arange(len(span))
    return offset // span.grid[1], offset % span.grid[1]


def _own_positions(span: Span) -> _Places:
    """Positions of a span's tokens counted from 0, which of them are first on their position, and how many positions there are."""
    if span.grid is not None and span.kind == Kind.FEATURE:
        none = torch.zeros(len(span), dtype=torch.long)
        return _Places(place=none, leader=torch.ones_like(none), count=max(span.grid), stride=0)
    if span.grid is None:
        offset = torch.arange(len(span))
        return _Places(place=offset, leader=torch.ones_like(offset), count=len(span), stride=0)
    rows, columns = span.grid
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    place = (r // span.fold) * (columns // span.fold) + c // span.fold
    first = (r % span.fold == 0) & (c % span.fold == 0)
    return _Places(
        place=place.flatten(),
        leader=first.flatten().long(),
        count=rows * columns // span.fold**2,
        stride=columns if span.fold == 2 else 0,
    )
