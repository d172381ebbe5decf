"""A learned energy of whole answers (EDLM, arXiv 2410.21357, section 4.2): a scalar from what is masked and what is put in its place.

Public idea: ``EnergyNet(trunk)(batch, ids) -> E [B]``. The trunk reads the noisy tokens and, at the same positions, the candidate; the
mean of its hidden states over the candidate's tokens goes through two linear layers.

Shapes: B rows · L tokens · D width.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.elastic import Elastic
from unmask.sequence import SHARED, Batch, Kind


class EnergyNet(nn.Module):
    """``trunk``: a text network, usually a copy of the denoiser. E is 0 before training."""

    def __init__(self, trunk: Elastic) -> None:
        super().__init__()
        if trunk.config.shifted:
            raise ValueError(
                "a learned energy needs a network that predicts tokens where they stand; this one is shifted"
            )
        self.trunk = trunk
        self.first = nn.Linear(trunk.config.width, trunk.config.width)
        self.last = nn.Linear(trunk.config.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """E [B] of the candidates ``ids [B, L]`` for the masked tokens of a batch of text."""
        length = batch.ids.shape[1]
        both = doubled(batch, ids)
        read = both.valid & (both.kind == Kind.TEXT)
        read[:, :length] = False
        scored = self.trunk.hidden_states(both, predict=read).scored[Kind.TEXT]
        assert scored.hidden is not None
        row = scored.at // (2 * length)
        total_BD = torch.zeros(batch.rows, scored.hidden.shape[1], device=ids.device).index_add(
            0, row, scored.hidden.float()
        )
        mean_BD = (total_BD / read.sum(1, keepdim=True).clamp(min=1)).to(self.first.weight.dtype)
        return self.last(F.relu(self.first(mean_BD)))[:, 0].float()


def doubled(batch: Batch, ids: Tensor) -> Batch:
    """The batch followed by itself at the same positions, with ``ids [B, L]`` and nothing masked."""
    twice = {
        f.name: torch.cat([value, value], 1)
        for f in dataclasses.fields(batch)
        if f.name not in SHARED and isinstance(value := getattr(batch, f.name), Tensor) and value.dim() > 1
    }
    twice["ids"] = torch.cat([batch.ids, torch.where(batch.masked, ids, batch.ids)], 1)
    twice["masked"] = torch.cat([batch.masked, torch.zeros_like(batch.masked)], 1)
    return batch.replace(**twice)
