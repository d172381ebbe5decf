"""A token sampler that writes text alone, in a vocabulary that has image codes and the mask too.

Public idea: ``TextOnly(below=first_code, never=(mask,), token_sampler=..)``. The released samplers take the best of all ids, so that a text
may get image codes.

Shapes: N tokens scored · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import TokenSampler
from unmask.sampling.spans import wished
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class TextOnly:
    """``token_sampler`` with the text ids below ``below`` except ``never``. Codes are not touched."""

    below: int
    never: tuple[int, ...]
    token_sampler: TokenSampler

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        if Kind.TEXT in prediction.scored:
            logits_NV = prediction.logits(Kind.TEXT)
            id_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
            closed_V = (id_V >= self.below) | torch.isin(id_V, torch.tensor(self.never, device=id_V.device))
            prediction = prediction.with_logits({Kind.TEXT: logits_NV.masked_fill(closed_V, -torch.inf)})
        return self.token_sampler(batch, prediction, progress)
