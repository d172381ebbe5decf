"""A run of a given time instead of a given number of steps. Public idea: ``train(recipe, folder, clock=Clock(…))``.

The learning rate follows the share of the time that has passed, where it else follows the share of the steps. Checkpoints are the averaged
weights alone, through ``save``: optimiser moments, which are four times as large, begin anew in the next part of the run, with a warm-up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from unmask.recipe import Optim

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
        warm = min(1.0, (step - self.step + 1) / max(optim.warmup, 1))
        done = max(0.0, self.passed() - optim.decay_from) / max(1 - optim.decay_from, 1e-9)
        return optim.lr * warm * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def steps(self, step: int) -> int:
        """The number of steps that the run will have had at its end, at the mean speed so far."""
        spent = time.monotonic() - self.began
        return step + round((step - self.step) * max(0.0, self.seconds - spent) / max(spent, 1e-9))

    def checkpoint(self, averaged: Callable[[], dict[str, Tensor]], step: int, *, now: bool) -> None:
        """Save if it is time, or ``now``."""
        if now or time.monotonic() - self.saved >= self.every:
            self.save(averaged(), step, self.passed())
            self.saved = time.monotonic()
