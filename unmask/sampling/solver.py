"""DPM-Solver++ of order 2 for continuous values: few steps, evenly spaced in the logarithm of the signal-to-noise ratio.

Public idea: ``dpm_solver(said, levels, start, steps=20)``; ``Solver(levels=.., steps=..)`` has its table. Lu et al. 2022, arXiv 2211.01095,
multistep form.

Shapes: T levels · S solver steps · N vectors · C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.gaussian import EPSILON, NoiseLevels, Target

_NOISIEST = -5.1  # half the log ratio below which a level is dropped
_FEW = 10  # with fewer steps the last one is of order 1
Said = Callable[[Tensor, Tensor], Tensor]
Index = Callable[
    [Tensor, int, int], Tensor
]  # (time, levels left, all levels) -> the level whose number the head is told


def aligned(time: Tensor, left: int, levels: int) -> Tensor:
    """The level that the time stands for."""
    return (time * left).round().long().clamp(1, left) - 1


def as_released(time: Tensor, left: int, levels: int) -> Tensor:
    """That of the published UniGenX: of the table with the dropped levels, so that the head is told more noise than there is."""
    return (time * (levels - 1)).floor().long()


@dataclass(frozen=True, kw_only=True)
class Solver:
    """``levels``: those of training that are kept · ``steps``: S · ``index``: which of them the head is told."""

    levels: NoiseLevels
    steps: int
    index: Index = aligned

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a solver needs at least one step, got {self.steps}")
        if self.left < 2:
            raise ValueError(f"the solver needs at least 2 of the levels that are not pure noise, got {self.left}")

    @property
    def log_alpha(self) -> Tensor:
        """ln of the share of the signal, of the levels that are left, float64, rising noise."""
        log = 0.5 * self.levels.signal.log()
        return log[half_log_ratio(log) >= _NOISIEST]

    @property
    def left(self) -> int:
        return len(self.log_alpha)

    def half_log_ratios(self) -> Tensor:
        """lambda at each of the S + 1 times, most noise first: evenly spaced."""
        ends = half_log_ratio(self.log_alpha)
        return torch.linspace(float(ends[-1]), float(ends[0]), self.steps + 1, dtype=torch.float64)

    def log_alphas(self) -> Tensor:
        """ln alpha at each of the times."""
        return -0.5 * torch.log1p((-2 * self.half_log_ratios()).exp())

    def times(self) -> Tensor:
        """The times, 1 at first: level i of N stands at (i + 1) / N, linear between."""
        at = torch.arange(1, self.left + 1, dtype=torch.float64) / self.left
        known, wanted = self.log_alpha.flip(0), self.log_alphas()  # rising
        above = torch.searchsorted(known, wanted).clamp(1, self.left - 1)
        low, high = known[above - 1], known[above]
        share = (wanted - low) / (high - low)
        back = at.flip(0)
        return back[above - 1] + share * (back[above] - back[above - 1])

    def numbers(self) -> Tensor:
        """The step of the original process that the head is told at each of the S evaluations."""
        return self.levels.number[self.index(self.times()[:-1], self.left, len(self.levels))]


def half_log_ratio(log_alpha: Tensor) -> Tensor:
    """ln(alpha / sigma) for a process that keeps the variance."""
    return log_alpha - 0.5 * torch.log1p(-(2 * log_alpha).exp())


def dpm_solver(
    said: Said,
    solver: Solver,
    start: Tensor,
    *,
    target: Target = EPSILON,
    temperature: float = 1.0,
) -> Tensor:
    """Vectors [N, C] from ``start [N, C]``. ``temperature``: a factor of the predicted noise."""
    x, before = start, start
    numbers, ratios = solver.numbers(), solver.half_log_ratios()
    alphas = solver.log_alphas().exp()
    sigmas = (1 - alphas**2).sqrt()
    for k in range(1, solver.steps + 1):
        signal = alphas[k - 1] ** 2
        output = said(x, numbers[k - 1].expand(len(x)).to(x.device))[:, : start.shape[1]]
        eps = temperature * target.noise(output, x, signal)
        found = (x - sigmas[k - 1].to(x) * eps) / alphas[k - 1].to(x)
        h = ratios[k] - ratios[k - 1]
        p = (alphas[k] * torch.expm1(-h)).to(x)
        moved = (sigmas[k] / sigmas[k - 1]).to(x) * x - p * found
        if k > 1 and not (k == solver.steps and solver.steps < _FEW):
            moved = moved - 0.5 * p * (found - before) * (h / (ratios[k - 1] - ratios[k - 2])).to(x)
        x, before = moved, found
    return x
