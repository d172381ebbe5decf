"""The most confident codes with noise that fades faster than linearly (MMaDA). Public idea: ``Cooling(noise=1.0)``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sampling.selection import Confident
from unmask.sequence import Batch
from unmask.step import Move, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class Cooling:
    """As ``Confident`` with ``noise`` times (1 - 1/S) (1 - 2/S) … (1 - s/S) at step s of S, counted from 1: the released sampler lowers its
    temperature in place.
    """

    noise: float = 1.0

    def temperature(self, progress: Progress) -> Tensor:
        """Of each row, [B]."""
        steps = zip(progress.number.tolist(), progress.of.tolist(), strict=True)
        each = [self.noise * math.prod(max(0.0, 1 - k / of) for k in range(1, s + 2)) for s, of in steps]
        return torch.tensor(each, device=progress.number.device)

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        noise_B = self.temperature(progress)
        return Confident(noise=lambda _: noise_B)(batch, proposal, block, counts, progress)
