"""Token editing of LLaDA2.1 (arXiv 2602.08676, section 2.2): what was written in the current block may still be replaced.

Public idea: ``TokenEditing(selection=..)``, and ``presets.token_editing``, which is ``--sampler token_editing``. Beside the tokens that its
selection unmasks, a step replaces every written token of the block whose rival is more probable than ``threshold``. A block without masks
goes on until a step replaces nothing, at most ``most`` steps. ``block_diffusion.Editing`` is the released loop.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import Selection
from unmask.sampling.spans import wished
from unmask.sequence import Batch
from unmask.step import Move, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class TokenEditing:
    """``selection``: of the tokens to unmask · ``threshold``: of a rival's probability; 1 or more edits nothing · ``most``: steps of a
    block without masks. Wants ``LogProbability`` scores. Given tokens and earlier blocks stay.
    """

    selection: Selection
    threshold: float = 0.9
    most: int = 16

    @property
    def lingering(self) -> int:
        return self.most

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        own = wished(self.selection, batch, block, counts)
        return (block if own is None else own) | _written(batch)

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        taken = self.selection(batch, proposal, block, counts, progress)
        rival_BL = (proposal.ids != batch.ids) & (proposal.score.exp() > self.threshold)
        return dataclasses.replace(taken, redraw=taken.redraw | (_written(batch) & rival_BL))


def _written(batch: Batch) -> Tensor:
    """The tokens of the current block that this run wrote, not those that early stopping filled in, [B, L]. ValueError outside a run."""
    if batch.region is None or batch.score is None:
        raise ValueError("the batch has no region and score; use token editing inside a run of the sampler")
    return batch.region & ~batch.masked & (batch.score > -torch.inf)
