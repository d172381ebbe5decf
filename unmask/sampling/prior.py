"""Where a run starts. Public idea: a prior is a value ``(batch) -> batch``; the run may change whatever was masked before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from unmask.rng import rows
from unmask.sampling.spans import still_masked
from unmask.sequence import Batch, Span


@dataclass(frozen=True, kw_only=True)
class AllMasked:
    """The request as it is: absorbing diffusion starts from masked tokens."""

    def __call__(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True, kw_only=True)
class UniformIds:
    """Uniformly random ids, ``sizes`` by kind, and nothing masked: uniform diffusion, whose steps all correct (see ``Correcting``)."""

    sizes: Mapping[int, int]

    def __call__(self, batch: Batch) -> Batch:
        open_BL, ids = still_masked(batch), batch.ids.clone()
        for row, generator in enumerate(rows(batch, "prior")):
            u_L = torch.rand(int(batch.valid[row].sum()), generator=generator)
            for kind, size in sorted(self.sizes.items()):
                here = (open_BL[row] & (batch.kind[row] == kind))[: len(u_L)]
                ids[row, : len(u_L)][here] = (u_L.to(batch.device)[here] * size).long().clamp(max=size - 1)
        known = torch.isin(batch.kind, torch.tensor(sorted(self.sizes), device=batch.device))
        return batch.replace(ids=ids, masked=batch.masked & ~(open_BL & known))


@dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """The tokens before the first writable one do not attend to what follows, so that ``PrefixCache`` computes them once (LaViDa, arXiv
    2505.16839, section 3.3: full attention in training, a prefix at inference).

    Only rows in which every token attends to every other are changed; a row with orders or segments has a prefix already.
    """

    def __call__(self, batch: Batch) -> Batch:
        tables = tuple(map(_prefixed, batch.span_table))
        if tables == batch.span_table:
            return batch
        order_BL = batch.order.clone()
        for row, (before, after) in enumerate(zip(batch.span_table, tables, strict=True)):
            if before != after:
                start = next(span.start for span in after if span.order)
                order_BL[row, start:] = batch.valid[row, start:].long()
        return batch.replace(order=order_BL, span_table=tables)


def _prefixed(table: tuple[Span, ...]) -> tuple[Span, ...]:
    """The spans of a row with order 1 from the first writable one on; unchanged if some have an order or a segment."""
    first = next((span.start for span in table if span.writable), 0)
    if not first or any(span.order or span.order_step or span.segment for span in table):
        return table
    return tuple(replace(span, order=1) if span.start >= first else span for span in table)
