"""Search for requests on which a model fails, under a budget of calls.

Public ideas: ``search(space, strategy, fails, budget=200) -> [Trial]``, where a point of the space names a request and
``fails(point, seed)`` runs and judges it; strategies ``Random()``, ``Thompson()`` and ``CrossEntropy()`` choose the next point from the
trials so far, so that a stopped search goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from unmask.rng import generator, key

Point = tuple[int, ...]  # the number of a value for each factor
Fails = Callable[[Point, int], bool]  # (point, seed) -> whether the model fails on it
_ATTEMPTS = 1000  # points drawn until one is allowed


@dataclass(frozen=True, kw_only=True)
class Space:
    """``sizes``: how many values each factor has · ``allowed``: whether a point names a request."""

    sizes: tuple[int, ...]
    allowed: Callable[[Point], bool] = lambda point: True

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"a space needs factors with at least one value each, got the sizes {self.sizes}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One call. ``fails(point, seed)`` gives ``failed`` again."""

    point: Point
    seed: int
    failed: bool


class Strategy(Protocol):
    """The next point to try."""

    def __call__(self, space: Space, trials: Sequence[Trial], rng: Generator) -> Point: ...


@dataclass(frozen=True, kw_only=True)
class Random:
    """All points equally often: the baseline."""

    def __call__(self, space: Space, trials: Sequence[Trial], rng: Generator) -> Point:
        return tuple(int(torch.randint(size, (), generator=rng)) for size in space.sizes)


@dataclass(frozen=True, kw_only=True)
class Thompson:
    """For each factor, the value whose failure rate, drawn from its posterior, is largest.

    ``failures``, ``successes``: of the Beta prior of every value.
    """

    failures: float = 1.0
    successes: float = 1.0

    def __call__(self, space: Space, trials: Sequence[Trial], rng: Generator) -> Point:
        point = []
        for factor, size in enumerate(space.sizes):
            counts = [[self.failures, self.successes] for _ in range(size)]
            for trial in trials:
                counts[trial.point[factor]][0 if trial.failed else 1] += 1
            drawn = torch._standard_gamma(torch.tensor(counts, dtype=torch.float64), generator=rng)
            point.append(int((drawn[:, 0] / drawn.sum(1)).argmax()))
        return tuple(point)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """A distribution over the values of each factor, moved towards the failures after every ``batch`` trials (Rubinstein 1999).

    ``share``: of the new frequencies in an update · ``elite``: most failures that an update reads · ``floor``: smallest probability of a
    value, as a share of the even one.
    """

    batch: int = 24
    elite: int = 6
    share: float = 0.7
    floor: float = 0.1

    def __call__(self, space: Space, trials: Sequence[Trial], rng: Generator) -> Point:
        point = []
        for factor, size in enumerate(space.sizes):
            p = torch.full((size,), 1 / size, dtype=torch.float64)
            for start in range(0, len(trials) - self.batch + 1, self.batch):
                some = trials[start : start + self.batch]
                count = min(self.elite, sum(trial.failed for trial in some))
                if count:
                    values = torch.tensor([trial.point[factor] for trial in some])
                    scores = torch.tensor([float(trial.failed) for trial in some])
                    _, p = updated(p, values, scores, elite=count, share=self.share)
            p = (1 - self.floor) * p + self.floor / size
            point.append(int(torch.multinomial(p, 1, generator=rng)))
        return tuple(point)


def updated(p: Tensor, samples: Tensor, scores: Tensor, *, elite: int, share: float) -> tuple[Tensor, Tensor]:
    """The numbers of the best samples, earlier ones first where equal, and the distribution moved towards them.

    ``samples`` [N]: values · ``scores`` [N]: the higher the better · ``share``: of the new frequencies.
    """
    best = scores.argsort(dim=0, descending=True, stable=True)[:elite]
    frequency = torch.bincount(samples[best], minlength=len(p)).to(p) / elite
    return best, (1 - share) * p + share * frequency


def search(
    space: Space,
    strategy: Strategy,
    fails: Fails,
    *,
    budget: int,
    seed: int = 0,
    before: Sequence[Trial] = (),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """``budget`` trials, those of ``before`` included; ``fails`` is called once for each of the others.

    The same arguments give the same trials, whether the search was stopped in between or not. ValueError for a space without an allowed
    point.
    """
    trials = list(before)
    while len(trials) < budget:
        rng = generator("search", seed, len(trials))
        point = _allowed(space, strategy, trials, rng)
        own = key("search", seed, "call", len(trials)) % 2**31
        trials.append(Trial(point=point, seed=own, failed=fails(point, own)))
        on_trial(trials[-1])
    return trials


def _allowed(space: Space, strategy: Strategy, trials: Sequence[Trial], rng: Generator) -> Point:
    for attempt in range(_ATTEMPTS):
        chosen = strategy if attempt < _ATTEMPTS // 2 else Random()
        if space.allowed(point := chosen(space, trials, rng)):
            return point
    raise ValueError(f"none of {_ATTEMPTS} points of the space {space.sizes} is allowed; widen the factors")


def around(fails: Fails, trial: Trial, count: int) -> float:
    """The failure rate of a found point under ``count`` other seeds: a point that fails once by chance is near 0."""
    seeds = [key("around", trial.seed, n) % 2**31 for n in range(count)]
    return sum(fails(trial.point, seed) for seed in seeds) / count


def agreed(*judges: Fails) -> Fails:
    """A failure is one for every judge: what only one of them sees may be its own mistake."""
    return lambda point, seed: all(judge(point, seed) for judge in judges)


def found_points(trials: Sequence[Trial]) -> set[Point]:
    """The different points that failed."""
    return {trial.point for trial in trials if trial.failed}
