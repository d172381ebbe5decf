"""A selection that stays before the end of an answer. Public idea: ``BeforeEnd(selection=Confident(), ids=(EOT,))``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import Bounded, Selection
from unmask.sampling.spans import wished, writable_spans
from unmask.sequence import Batch, Kind
from unmask.step import Move, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class BeforeEnd:
    """``selection`` among the tokens before the first end of an answer that is revealed; behind it nothing competes."""

    selection: Selection
    ids: tuple[int, ...]

    def extra_steps(self, tokens: int, planned: int) -> int | None:
        return self.selection.extra_steps(tokens, planned) if isinstance(self.selection, Bounded) else None

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.selection, batch, self._before(batch, block), counts)

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return self.selection(batch, proposal, self._before(batch, block), counts, progress)

    def _before(self, batch: Batch, block: Tensor) -> Tensor:
        layout = writable_spans(batch)
        end_BL = torch.isin(batch.ids, torch.tensor(self.ids, device=batch.device)) & ~batch.masked
        end_BL &= (batch.kind == Kind.TEXT) & (layout.span >= 0)
        behind_BL = torch.zeros_like(end_BL)
        for span in range(layout.most):
            inside_BL = layout.span == span
            behind_BL |= ((end_BL & inside_BL).long().cumsum(1) > 0) & inside_BL
        kept_BL = block & ~behind_BL
        return torch.where(kept_BL.any(1, keepdim=True), kept_BL, block)
