"""Time policies: map a uniform number to a mask ratio (spec 3.1).

Public idea: ``Uniform()(u)`` and ``Cosine()(u)``; u and the result lie in 0..1, any shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Policy(Protocol):
    """u uniform in 0..1 -> time (share of tokens masked) in 0..1."""

    def __call__(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Uniform mask ratios (LLaDA; stage 2a)."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """cos(pi u / 2): high ratios are more frequent (MaskGIT, eq. of section 3.3; stages at full resolution)."""

    def __call__(self, u: Tensor) -> Tensor:
        return torch.cos(u * (math.pi / 2))


@dataclass(frozen=True, kw_only=True)
class OftenAll:
    """Another policy, but a share ``all`` of the times is 1, so everything is masked: for answers that are decoded in one step."""

    policy: Policy
    all: float = 0.3

    def __call__(self, u: Tensor) -> Tensor:
        rest = ((u - self.all) / (1 - self.all)).clamp(0, 1)
        return torch.where(u < self.all, torch.ones_like(u), self.policy(rest))


@dataclass(frozen=True, kw_only=True)
class Between:
    """Times spread evenly over ``low`` .. ``high``: where small or large noise teaches nothing (DINOISER, DEEM)."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"times need 0 <= low <= high <= 1, got {self.low} and {self.high}")

    def __call__(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u
