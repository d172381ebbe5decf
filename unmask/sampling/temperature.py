"""Temperatures that change during a run.

Public idea: ``at(temperature, progress)`` is the temperature at the step of each row (see ``step.Progress``); ``of_rows`` gives the same
as numbers, computed on the CPU, so that every device uses the same ones.

Shapes: B rows · L tokens · N tokens scored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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


def of_rows(temperature: Temperature, progress: Progress) -> tuple[float, ...]:
    """The temperature of each row, rounded to float32. Waits for the device where the steps of ``progress`` are not ``known``."""
    if not callable(temperature):
        return (_value(temperature, 0, 1),) * len(progress.number)
    try:
        return tuple(_value(temperature, number, of) for number, of in progress.pairs())
    except TypeError:  # a callable without a hash
        return tuple(at(temperature, progress).tolist())


def scaled(x: Tensor, of_rows: Sequence[float], counts: Sequence[int]) -> Tensor:
    """``x`` times the temperature of its row, in place; its first ``counts[0]`` entries are of row 0, and so on."""
    if len(set(of_rows)) == 1:
        return x.mul_(of_rows[0])
    for part, temperature in zip(x.split(list(counts)), of_rows, strict=True):
        part.mul_(temperature)
    return x


def is_zero(temperature: Temperature, progress: Progress) -> bool:
    """Whether no row has a temperature above zero at its step."""
    return not any(t > 0 for t in of_rows(temperature, progress)) if callable(temperature) else temperature <= 0


@functools.lru_cache(maxsize=4096)
def _value(temperature: Temperature, number: float, of: float) -> float:
    one = Progress(number=torch.tensor([number]), of=torch.tensor([of]), length=1)
    return float(at(temperature, one)[0])


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
