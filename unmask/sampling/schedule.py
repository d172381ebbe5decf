"""How many tokens are unmasked at each step.

Public idea: a schedule is a value with ``counts(tokens) -> list[int]``: positive numbers that sum to ``tokens``. No step is
empty (a model call that unmasks nothing), so there are at most ``tokens`` steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class Counting(Protocol):
    """A schedule."""

    def counts(self, tokens: int) -> list[int]: ...


def _capped(steps: int, tokens: int) -> int:
    """Steps that can each unmask something. ValueError where there is no step at all."""
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    return min(steps, tokens)


@dataclass(frozen=True, kw_only=True)
class Equal:
    """Equal parts, the remainder first (LLaDA, spec 4.1)."""

    steps: int

    def counts(self, tokens: int) -> list[int]:
        steps = _capped(self.steps, tokens)
        return [tokens // steps + (i < tokens % steps) for i in range(steps)]


@dataclass(frozen=True, kw_only=True)
class OfBlock:
    """The equal parts of a whole block of ``block`` tokens, until the tokens that it has left are used up (LLaDA2, arXiv 2512.15745): a
    block that is partly given takes fewer steps, not smaller ones.
    """

    steps: int
    block: int

    def counts(self, tokens: int) -> list[int]:
        counts, left = list[int](), tokens
        for count in Equal(steps=self.steps).counts(self.block):
            if left:
                counts.append(min(count, left))
                left -= counts[-1]
        return counts + Equal(steps=self.steps).counts(left) if left else counts


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """``each`` tokens a step, whatever their number; the last step takes what is left."""

    each: int

    def counts(self, tokens: int) -> list[int]:
        if self.each < 1:
            raise ValueError(f"a step must unmask at least one token, got each={self.each}")
        full, rest = divmod(tokens, self.each)
        return [self.each] * full + [rest] * (rest > 0)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Time-shifted parts (Lavida-O, spec 4.3): few tokens first and many last where ``shift`` > 1, the reverse below 1.

    Evaluated in float32 and truncated, as the released sampler does, so that the counts agree to the token.
    """

    steps: int
    shift: float

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"a shift is a factor above 0, got {self.shift}; 1 makes equal parts")

    def counts(self, tokens: int) -> list[int]:
        return _along(tokens, self.steps, lambda u: self.shift * u / (1 + (self.shift - 1) * u))


Curve = Callable[[torch.Tensor], torch.Tensor]  # times [n + 1] from 0 to 1 -> shares that rise from 0 to 1


def _along(tokens: int, steps: int, curve: Curve) -> list[int]:
    """Parts by the differences of a curve, one token at least, the last part first."""
    if tokens == 0:
        return []
    steps = _capped(steps, tokens)
    reached = (tokens * curve(torch.linspace(0, 1, steps + 1, dtype=torch.float32))).long().tolist()
    reached[-1] = tokens  # float32 may fall just short of 1 for odd shifts
    parts = [max(1, after - before) for before, after in zip(reached, reached[1:], strict=False)]
    surplus, i = sum(parts) - tokens, 0
    while surplus > 0:
        if parts[i % steps] > 1:
            parts[i % steps] -= 1
            surplus -= 1
        i += 1
    return parts[::-1]


def half_cosine(u: torch.Tensor) -> torch.Tensor:
    """LaViDa's "cosine": (1 - cos(pi u)) / 2."""
    return 1 - (1 + (math.pi * u).cos()) / 2


def logit_normal(u: torch.Tensor) -> torch.Tensor:
    """LaViDa's "logit_normal": the probability that a logit-normal number is below u."""
    return (1 + torch.erf((u / (1 - u)).log() / math.sqrt(2))) / 2


def straight(u: torch.Tensor) -> torch.Tensor:
    """Equal parts, rounded as the other curves are."""
    return u


@dataclass(frozen=True, kw_only=True)
class Curved:
    """Parts by the rise of a curve (LaViDa, arXiv 2505.16839); ``Shift`` is the same with the time shift."""

    steps: int
    curve: Curve = half_cosine

    def counts(self, tokens: int) -> list[int]:
        return _along(tokens, self.steps, self.curve)


@dataclass(frozen=True, kw_only=True)
class ReverseTime:
    """The counts of Dream (arXiv 2508.15487): time falls from 1 to ``eps`` in equal parts, and of m masked tokens a step from t to s
    unmasks int(m * (1 - s / t)), the last step all.

    With few tokens a step the first of these counts are 0. Such steps compute a forward and change nothing, so they are left out:
    the result is the same. ``time_counts`` has them.
    """

    steps: int
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_time(self.steps, self.eps)

    def counts(self, tokens: int) -> list[int]:
        return [n for n in time_counts(tokens, self.steps, self.eps) if n]


def check_time(steps: int, eps: float) -> None:
    """ValueError for a time grid that has no step or does not fall."""
    if steps < 1 or not 0 <= eps < 1:
        raise ValueError(f"a time grid needs at least one step and 0 <= eps < 1, got {steps} steps and eps {eps}")


@functools.lru_cache(maxsize=64)
def time_shares(steps: int, eps: float) -> torch.Tensor:
    """[steps] float32: the share of the masked tokens that each step unmasks; all at the last."""
    t = torch.linspace(1, eps, steps + 1)
    shares = 1 - t[1:] / t[:-1]
    shares[-1] = 1
    return shares


def time_counts(tokens: int, steps: int, eps: float = 1e-3) -> list[int]:
    """How many tokens each of ``steps`` steps unmasks, zeros included; in float32 and rounded down, as the released code does."""
    counts = []
    for share in time_shares(steps, eps):
        counts.append(int(torch.tensor(float(tokens)) * share))
        tokens -= counts[-1]
    return counts


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """floor(tokens * cos(pi/2 * i/steps)) stay masked after step i (MaskGIT, Chang et al. 2022, section 3.3)."""

    steps: int

    def counts(self, tokens: int) -> list[int]:
        steps = _capped(self.steps, tokens)
        left = [tokens]
        for i in range(1, steps + 1):
            wanted = math.floor(tokens * math.cos(math.pi / 2 * i / steps))
            left.append(max(steps - i, min(left[-1] - 1, wanted)))  # one at least now, and one for every later step
        return [before - after for before, after in zip(left, left[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What is left of ``schedule`` for a run of ``total`` tokens of which some are unmasked already, as after a change of its request.

    It goes on at the latest step before which at least as many tokens were masked; that step unmasks what brings the run to where it was
    after it. Where nothing was masked again, the counts are those that were left.
    """

    schedule: Counting
    total: int

    def taken(self, tokens: int) -> int:
        """Steps that count as taken when ``tokens`` are masked."""
        left, found = self.total, 0
        for number, count in enumerate(self.schedule.counts(self.total)):
            if left < tokens:
                break
            left, found = left - count, number
        return found

    def counts(self, tokens: int) -> list[int]:
        if not 0 < tokens <= self.total:
            return self.schedule.counts(tokens)
        counts, taken = self.schedule.counts(self.total), self.taken(tokens)
        later = counts[taken + 1 :]
        return [tokens - sum(later), *later]
