"""How many tokens are unmasked at each step.

Public idea: a schedule is a value with ``counts(tokens) -> list[int]``: positive numbers that sum to ``tokens``. No step is
empty (a model call that unmasks nothing), so there are at most ``tokens`` steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


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
        if tokens == 0:
            return []
        steps = _capped(self.steps, tokens)
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
        reached = (tokens * (self.shift * u / (1 + (self.shift - 1) * u))).long().tolist()
        reached[-1] = tokens  # float32 may fall just short of 1 for odd shifts
        parts = [max(1, after - before) for before, after in zip(reached, reached[1:], strict=False)]
        surplus, i = sum(parts) - tokens, 0
        while surplus > 0:
            if parts[i % steps] > 1:
                parts[i % steps] -= 1
                surplus -= 1
            i += 1
        return parts[::-1]


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
