"""Tokens that share a position: what attention reads of a folded square of codes.

Public idea: ``of_position(batch, x)`` gives each token its position's value, ``whole_positions(batch, chosen)`` completes positions.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from unmask.sequence import Batch, Span


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
