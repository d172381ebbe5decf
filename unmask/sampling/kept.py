"""How many codes stay masked after each step, where that is a share of the whole picture (MaskGIT's rule in MMaDA and Lumina-DiMOO).

Public idea: ``Kept(steps=15, curve=cosine, of=1024).counts(masked)``. The share is computed in float32, as the released samplers do, so
that the counts agree to the code: cos(pi/3) is 0.49999997 there, and 511 of 1,024 codes stay masked instead of 512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]  # time 0 .. 1, float32 -> share that stays masked


def cosine(time: Tensor) -> Tensor:
    """cos(pi t / 2) (Chang et al. 2022, section 3.3)."""
    return torch.cos(time * torch.pi * 0.5)


def linear(time: Tensor) -> Tensor:
    return (1 - time).clamp(1e-6, 1)


def sigmoid(time: Tensor) -> Tensor:
    """A logistic curve from -3 to 3, as MMaDA has it."""
    low, high = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
    return ((high - (time * 6 - 3).sigmoid()) / (high - low)).clamp(1e-6, 1)


@dataclass(frozen=True, kw_only=True)
class Power:
    """1 - t^exponent."""

    exponent: float = 2.0

    def __call__(self, time: Tensor) -> Tensor:
        return (1 - time**self.exponent).clamp(1e-6, 1)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """``of``: codes of the picture that the share is of, given codes included (None: those masked at the start). At least one code is
    unmasked at a step, and one stays masked until the last.

    A picture of which fewer codes are masked than ``of`` follows the curve only once it has caught up: one code a step before (MMaDA).
    """

    steps: int
    curve: Curve = cosine
    of: int | None = None

    def counts(self, tokens: int) -> list[int]:
        if self.steps < 1:
            raise ValueError(f"a schedule needs at least one step, got {self.steps}")
        whole, left, counts = tokens if self.of is None else self.of, tokens, list[int]()
        for step in range(self.steps):
            share = self.curve(torch.tensor((step + 1) / self.steps, dtype=torch.float32))
            kept = min(left - 1, max(1, int(whole * share))) if step + 1 < self.steps else 0
            if left:
                counts.append(left - kept)
                left = kept
        return counts
