"""Guidance whose views have other prompts: a null prompt of another length, or one without the picture (MMaDA, Lumina-DiMOO).

Public idea: ``OtherPrompts(scale=.., instead=(("null", PROMPT),))``. The other prompts lie in the row itself, each in a segment of its own
that nothing else reads, so the row alone decides how it is sampled, and without guidance it is as if they were not there. In the view of a
prompt its tokens are the context, those that it replaces are gone, and what follows moves to the place behind it.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Container
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unmask.derived import derived
from unmask.sampling.guidance import blended
from unmask.sequence import Batch, Span
from unmask.step import Prediction, Progress


@dataclass(frozen=True, kw_only=True)
class OtherPrompts:
    """c + scale (c - u), and + other_scale (c - v) with a second prompt: ``(1 + scale) c - scale u`` where there is one.

    ``instead``: the span names of each other prompt, and the names that it replaces · a prompt of scale 0 is not computed.
    """

    scale: float
    instead: tuple[tuple[str, Container[str]], ...]
    other_scale: float = 0.0

    @property
    def _acting(self) -> list[tuple[int, float]]:
        """(number of the prompt, its scale)."""
        return [(i, s) for i, s in enumerate((self.scale, self.other_scale)[: len(self.instead)]) if s]

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        names = tuple(name for name, _ in self.instead)
        views = [view_of(batch, names, "", frozenset())]
        for number, _ in self._acting:
            name, replaced = self.instead[number]
            found = {span.name for table in batch.span_table for span in table}
            views.append(view_of(batch, names, name, frozenset(n for n in found if n in replaced)))
        return views

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        scales = [scale for _, scale in self._acting]

        def blend(c_NV: Tensor, *others: Tensor) -> Tensor:
            out_NV = (1 + sum(scales)) * c_NV
            for scale, u_NV in zip(scales, others, strict=True):
                out_NV = out_NV - scale * u_NV
            return out_NV

        return blended(predictions, progress, blend) if scales else predictions[0]


def view_of(batch: Batch, others: tuple[str, ...], name: str, replaced: frozenset[str]) -> Batch:
    """The batch with the prompt ``name`` ("": its own) as the context."""
    key, make = ("other prompts", others, name, replaced), partial(_laid_out, batch, others, name, replaced)
    found = derived(key, make, batch.valid, batch.position, batch.segment)
    if found is None:
        return batch
    valid_BL, position_BL, segment_BL = found
    return batch.replace(valid=valid_BL, position=position_BL, segment=segment_BL)


def _laid_out(
    batch: Batch, others: tuple[str, ...], name: str, replaced: frozenset[str]
) -> tuple[Tensor, Tensor, Tensor] | None:
    found = _of_spans(batch.span_table, others, name, replaced, batch.ids.shape[1])
    gone_BL, own_BL, moved_B = (t.to(batch.device) for t in found)
    if not bool((gone_BL | own_BL).any()):
        return None
    rest_BL = batch.valid & ~gone_BL & ~own_BL
    return (
        batch.valid & ~gone_BL,
        torch.where(rest_BL, batch.position + moved_B[:, None], batch.position),
        batch.segment.masked_fill(own_BL, 0),
    )


@functools.lru_cache(maxsize=64)
def _of_spans(
    table: tuple[tuple[Span, ...], ...], others: tuple[str, ...], name: str, replaced: frozenset[str], length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that a view leaves out, those of its own prompt, both [B, L], and by how many positions what follows moves [B]."""
    gone_BL, own_BL = (torch.zeros(len(table), length, dtype=torch.bool) for _ in range(2))
    moved_B = torch.zeros(len(table), dtype=torch.long)
    for row, spans in enumerate(table):
        ends = {True: 0, False: 0}  # by: whether the tokens are of the other prompt
        for span in spans:
            here = slice(span.start, span.stop)
            if span.name in others and span.name != name or span.name in replaced:
                gone_BL[row, here] = True
            if span.name == name:
                own_BL[row, here] = True
            if span.name == name or span.name in replaced:
                ends[span.name == name] += span.position_offset + len(span)
        moved_B[row] = ends[True] - ends[False]
    return gone_BL, own_BL, moved_B
