"""LLaDA's loss of answers: cross-entropy over t of masked tokens, divided by all tokens of the answers (arXiv 2502.09992, eq. 5).

Public ideas: ``mean_answer_loss(model, batch, count)`` for given masks; ``AnswerLoss()`` is the objective that draws them: one time a row,
every writable token masked with that probability, padding that belongs to the answer included.

Shapes: B rows · L tokens · N masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.protocols import Denoiser
from unmask.sequence import Batch
from unmask.step import Loss

_EPS = 1e-3  # the smallest time


def mean_answer_loss(model: Denoiser, batch: Batch, count: int) -> Tensor:
    """Sum of CE / ``batch.time`` over the masked tokens, whose ids are the truth, divided by ``count``."""
    assert batch.time is not None
    total = torch.zeros((), device=batch.device)
    ids, time = batch.ids.flatten(), batch.time.flatten()
    for scored in model(batch, predict=batch.masked).scored.values():
        if scored.logits is not None and len(scored.at):
            loss = F.cross_entropy(scored.logits.float(), ids[scored.at], reduction="none")
            total = total + (loss / time[scored.at]).sum()
    return total / max(1, count)


@dataclass(frozen=True, kw_only=True)
class AnswerLoss:
    """The objective over batches of clean rows whose writable tokens are the answers."""

    def __call__(self, model: Denoiser, clean: Batch, rng: torch.Generator) -> Loss:
        answer = clean.writable & clean.valid
        t = torch.rand(clean.rows, 1, generator=rng).to(clean.device) * (1 - _EPS) + _EPS
        masked = (torch.rand(clean.ids.shape, generator=rng).to(clean.device) < t) & answer
        count = int(answer.sum())
        loss = mean_answer_loss(model, clean.replace(masked=masked, time=t.expand_as(clean.ids)), count)
        return Loss(total=loss, terms={"answers": loss.detach()}, counts={"answers": int(masked.sum())})
