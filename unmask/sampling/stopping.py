"""When a row needs no more steps.

Public idea: early stopping is a value ``(batch) -> Batch`` that fills in what no longer needs the model. A row without masked tokens is
finished: it is not written again and its clock does not advance.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import EarlyStopping
from unmask.sampling.spans import still_masked, writable_spans
from unmask.sequence import Batch, Kind


@dataclass(frozen=True, kw_only=True)
class Never:
    """The model unmasks every token (as the released sampler does, spec 4.1)."""

    def __call__(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True, kw_only=True)
class EndOfTurn:
    """Fills the masked tokens of a text span with its first end id, once that id and everything before it are unmasked.

    The text before the end is what ``Never`` would have written, unless another span of the same segment still has masked tokens.
    Tokens after the end that are already unmasked stay; a reader cuts the text at the first end.
    """

    ids: tuple[int, ...]

    def __call__(self, batch: Batch) -> Batch:
        live_BL, layout = still_masked(batch), writable_spans(batch)
        end_BL = torch.isin(batch.ids, torch.tensor(self.ids, device=batch.device)) & ~batch.masked
        end_BL &= batch.kind == Kind.TEXT
        if not bool((end_BL & (layout.span >= 0)).any()):
            return batch
        ids = batch.ids
        filled_BL = torch.zeros_like(live_BL)
        for span in range(layout.most):
            inside_BL = (layout.span == span) & (batch.kind == Kind.TEXT)
            closed_BL = _after(end_BL & inside_BL, live_BL & inside_BL) & inside_BL & live_BL
            end_id_B1 = batch.ids.gather(1, (end_BL & inside_BL).long().argmax(1, keepdim=True))
            ids = torch.where(closed_BL, end_id_B1, ids)
            filled_BL |= closed_BL
        return batch.replace(ids=ids, masked=batch.masked & ~filled_BL)


@dataclass(frozen=True, kw_only=True)
class Until:
    """``stopping``, and a text span is finished once ``enough`` accepts its ids before the first masked one: the masked rest gets ``fill``.

    Not for selections that mask or redraw tokens again: those ids would not be final.
    """

    enough: Callable[[Sequence[int]], bool]
    fill: int
    stopping: EarlyStopping = Never()

    def __call__(self, batch: Batch) -> Batch:
        batch = self.stopping(batch)
        live_BL = still_masked(batch)
        filled_BL = torch.zeros_like(live_BL)
        for row, table in enumerate(batch.span_table):
            for span in table:
                if not span.writable or span.kind != Kind.TEXT:
                    continue
                part = slice(span.start, span.stop)
                first = int(torch.cat([batch.masked[row, part], batch.masked.new_ones(1)]).long().argmax())
                if first < len(span) and self.enough(batch.ids[row, part][:first].tolist()):
                    filled_BL[row, part] = live_BL[row, part]
        if not bool(filled_BL.any()):
            return batch
        return batch.replace(ids=batch.ids.masked_fill(filled_BL, self.fill), masked=batch.masked & ~filled_BL)


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """``stopping``, and ``steps`` more steps of every row after its last unmasking, in which a selection may redraw or remask tokens.

    Uniform diffusion (``UniformIds``), where nothing is ever masked, consists of such steps alone.
    """

    steps: int
    stopping: EarlyStopping = Never()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"corrections need at least one step, got {self.steps}; leave them out for none")

    def __call__(self, batch: Batch) -> Batch:
        return self.stopping(batch)

    @property
    def bound(self) -> int:
        return self.steps

    def more(self, batch: Batch, extra: Tensor) -> Tensor:
        return extra < self.steps


def _after(end_BL: Tensor, live_BL: Tensor) -> Tensor:
    """Tokens after an end that has no masked token before it, [B, L] bool."""
    settled_BL = end_BL & (live_BL.long().cumsum(1) == 0)
    return settled_BL.long().cumsum(1) > 0
