"""Temperatures that change during a run.

Public idea: ``at(temperature, progress)`` is the temperature at the step of each row (see ``step.Progress``).

Shapes: B rows · L tokens · N tokens scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.step import Progress

Schedule = Callable[[Tensor], Tensor]
Temperature = float | Schedule


def at(temperature: Temperature, progress: Progress) -> Tensor:
    """The temperature of each row, [B]."""
    s_B = progress.fraction
    return temperature(s_B) if callable(temperature) else torch.full_like(s_B, temperature)


def is_zero(temperature: Temperature, progress: Progress) -> bool:
    """Whether no row has a temperature above zero at its step."""
    return not bool((at(temperature, progress) > 0).any()) if callable(temperature) else temperature <= 0


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From ``start`` to ``end`` in a straight line (spec 4.2 "linear" is start = T, end = T * minimum)."""

    start: float
    end: float

    def __call__(self, s_B: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * s_B


@dataclass(frozen=True, kw_only=True)
class CosineTo:
    """start * (cos(pi s / 2) (1 - minimum) + minimum) (spec 4.2 "cosine2"): ``minimum`` is a share of ``start``."""

    minimum: float
    start: float = 1.0

    def __call__(self, s_B: Tensor) -> Tensor:
        return self.start * (torch.cos(math.pi / 2 * s_B) * (1 - self.minimum) + self.minimum)


@dataclass(frozen=True, kw_only=True)
class ShiftTo:
    """start * (f(1 - s) (1 - minimum) + minimum) with the shift map f of spec 4.3 (spec 4.2 "shift")."""

    shift: float
    minimum: float
    start: float = 1.0

    def __call__(self, s_B: Tensor) -> Tensor:
        u_B = 1 - s_B
        return self.start * (self.shift * u_B / (1 + (self.shift - 1) * u_B) * (1 - self.minimum) + self.minimum)
