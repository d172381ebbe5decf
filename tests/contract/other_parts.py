"""Instances of the parts of methods that no suite here runs; tests/methods has tests of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.methods import edlm, qdlm
from unmask.models.fake import FakeDenoiser
from unmask.objectives import contrastive
from unmask.sequence import Batch


def _mean(batch: Batch, ids: Tensor) -> Tensor:
    return ids.float().mean(1)


PARTS: list[Any] = [
    *qdlm.methods(4, 8).values(),
    edlm.CausalEnergy(net=FakeDenoiser()),
    edlm.LearnedEnergy(net=_mean),
    edlm.Ancestral(mu=torch.log, energies=lambda x, candidates, mu: mu.sum((1, 2)), mask_id=0),
    contrastive.NoiseContrastive(denoiser=FakeDenoiser()),
]
