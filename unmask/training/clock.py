"""A run of a given time instead of a given number of steps. Public idea: ``train(recipe, folder, clock=Clock(…))``.

The learning rate follows the share of the time that has passed, where it else follows the share of the steps. Checkpoints of a ``Clock``
are the averaged weights alone, through ``save``: optimiser moments, which are four times as large, begin anew in the next part of the run,
with a warm-up. A run with a ``Budget`` saves whole states, as one without a clock, and may have several processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.recipe import Optim

if TYPE_CHECKING:
    from unmask.training.parallel import Place

Save = Callable[
    [dict[str, Tensor], int, float], None
]  # (averaged weights, step, share of the run's time that has passed)


@dataclass(kw_only=True)
class Clock:
    """``seconds``: from now · ``share``: of the whole run's time that earlier parts took, 0 for a new run · ``step``: where it continues ·
    ``save``: writes a checkpoint · ``every``: seconds between checkpoints.
    """

    seconds: float
    save: Save
    share: float = 0.0
    step: int = 0
    every: float = 45.0
    began: float = field(default_factory=lambda: time.monotonic())
    saved: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not 0 <= self.share < 1:
            raise ValueError(f"a clock needs seconds above 0 and a share in 0..1, got {self.seconds} and {self.share}")

    def passed(self) -> float:
        """The share of the whole run's time that has passed, in 0..1."""
        return min(1.0, self.share + (1 - self.share) * (time.monotonic() - self.began) / self.seconds)

    def over(self) -> bool:
        return self.passed() >= 1

    def rate(self, optim: Optim, step: int) -> float:
        """As ``optim.rate``, by time. The warm-up counts from the first step of this part: the moments begin there."""
        return _rate(optim, step - self.step, self.passed())

    def steps(self, step: int) -> int:
        """The number of steps that the run will have had at its end, at the mean speed so far."""
        spent = time.monotonic() - self.began
        return step + round((step - self.step) * max(0.0, self.seconds - spent) / max(spent, 1e-9))

    def checkpoint(self, averaged: Callable[[], dict[str, Tensor]], step: int, *, now: bool) -> None:
        """Save if it is time, or ``now``."""
        if now or time.monotonic() - self.saved >= self.every:
            self.save(averaged(), step, self.passed())
            self.saved = time.monotonic()


@dataclass(kw_only=True)
class Budget:
    """``seconds``: of training, over all sessions of a run; the time between them does not count. The trainer calls ``start`` with the
    seconds that the run's state records, and ``agree`` before every update: all processes follow the time of the first one.
    """

    seconds: float
    spent: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"a budget must be above 0 seconds, got {self.seconds}")

    def start(self, spent: float) -> None:
        """Begin a session of a run that has trained for ``spent`` seconds."""
        self.spent, self.began = spent, time.monotonic()
        self.share = min(1.0, spent / self.seconds)

    def agree(self, place: Place) -> None:
        """Take the share of the time that has passed from the first process."""
        passed = min(1.0, self.total() / self.seconds) if place.rank == 0 else 0.0
        self.share = float(place.sum_(torch.tensor(passed, dtype=torch.float64)))

    def total(self) -> float:
        """Seconds of training so far."""
        return self.spent + time.monotonic() - self.began

    def over(self) -> bool:
        """Whether the time was used up at the last ``agree``."""
        return self.share >= 1

    def rate(self, optim: Optim, step: int) -> float:
        """As ``optim.rate``, by time; the warm-up is by steps."""
        return _rate(optim, step, self.share)

    def steps(self, step: int) -> int:
        """The number of steps that the run will have had at its end, at the mean speed so far."""
        return round(step / max(self.share, 1e-9)) if self.share < 1 else step


def _rate(optim: Optim, warmed: int, passed: float) -> float:
    """The rate after ``warmed`` steps of warm-up and this share of the time."""
    warm = min(1.0, (warmed + 1) / max(optim.warmup, 1))
    done = max(0.0, passed - optim.decay_from) / max(1 - optim.decay_from, 1e-9)
    return optim.lr * warm * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
