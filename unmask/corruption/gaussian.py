"""Gaussian noise on continuous tokens: noise levels, tables of them, what a network may predict, and how to get x_0 from it.

Public ideas: ``noised(x0, noise, std)`` and its inverse ``implied_noise(x, x0, std)``; tables of betas, ``linear_betas(1000)``.
``cosine(1000)`` is a ``NoiseLevels``; ``levels.kept(10)`` are ten of its steps for sampling. ``EPSILON``, ``VELOCITY`` and ``SAMPLE`` are
the three things that a network may predict. ``sampling/gaussian.py`` and ``sampling/continuous.py`` have the way back.

Shapes: T steps · N vectors · C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def noised(x0: Tensor, noise: Tensor, std: Tensor | float) -> Tensor:
    """x at noise level ``std`` in 0..1, which broadcasts against x0 and noise."""
    std = torch.as_tensor(std, dtype=x0.dtype, device=x0.device)
    return (1 - std.square()).sqrt() * x0 + std * noise


def implied_noise(x: Tensor, x0: Tensor, std: Tensor | float) -> Tensor:
    """The noise that leads from x0 to x at level ``std``, which is above 0."""
    std = torch.as_tensor(std, dtype=x.dtype, device=x.device)
    return (x - (1 - std.square()).sqrt() * x0) / std


def linear_betas(steps: int, *, low: float = 1e-4, high: float = 0.02) -> Tensor:
    """Variance added at each step, float64 [steps] (DDPM, arXiv 2006.11239)."""
    return torch.linspace(low, high, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, *, low: float = 0.00085, high: float = 0.012) -> Tensor:
    """As ``linear_betas``, evenly spaced in the square root (Stable Diffusion)."""
    return torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64).square()


def signal(betas: Tensor) -> Tensor:
    """The share of variance that is left of x0 after each step: the product of 1 - beta."""
    return (1 - betas).cumprod(0)


def std_of(betas: Tensor) -> Tensor:
    """The noise level after each step, [steps]."""
    return (1 - signal(betas)).sqrt()


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """A forward process x_t = sqrt(signal) x + sqrt(1 - signal) eps in steps 0..T-1, least noise first.

    ``betas [T]`` float64: variance that each step adds · ``number [T]``: the step of the original process, which the network is told.
    """

    betas: Tensor
    number: Tensor

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def signal(self) -> Tensor:
        """The product of 1 - beta up to each step."""
        return signal(self.betas)

    @property
    def before(self) -> Tensor:
        """``signal`` of the step before, 1 at first."""
        return torch.cat([self.betas.new_ones(1), self.signal[:-1]])

    @property
    def variance(self) -> Tensor:
        """Of x_(t-1) given x_t and x_0; 0 at first."""
        return self.betas * (1 - self.before) / (1 - self.signal)

    @property
    def log_variance(self) -> Tensor:
        """Its logarithm, in which the first step takes the value of the second (-inf otherwise)."""
        kept = self.variance
        return torch.cat([kept[1:2] if len(kept) > 1 else self.betas[:1], kept[1:]]).log()

    @property
    def of_sample(self) -> Tensor:
        """The weight of x_0 in the mean of x_(t-1)."""
        return self.betas * self.before.sqrt() / (1 - self.signal)

    @property
    def of_noisy(self) -> Tensor:
        """The weight of x_t in it."""
        return (1 - self.before) * (1 - self.betas).sqrt() / (1 - self.signal)

    def kept(self, steps: int) -> NoiseLevels:
        """``steps`` of these steps, evenly spaced, the first and the last among them, with betas that have the same ``signal`` there."""
        if not 1 <= steps <= len(self):
            raise ValueError(f"steps must be in 1..{len(self)}, got {steps}")
        last = len(self) - 1
        chosen = torch.tensor([round(k * last / max(1, steps - 1)) for k in range(steps)] if steps > 1 else [last])
        signal = self.signal[chosen]
        return NoiseLevels(betas=1 - signal / torch.cat([signal.new_ones(1), signal[:-1]]), number=self.number[chosen])

    def noised(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t [N, C] of ``x`` at the steps ``t [N]``."""
        signal = self.signal.to(x.device)[t][:, None]
        return _times(signal.sqrt(), x) + _times((1 - signal).sqrt(), eps)


def cosine(steps: int = 1000) -> NoiseLevels:
    """The schedule of Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17): its last signal is 2.4e-9, practically pure noise."""

    def level(i: int) -> float:
        return math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level(i + 1) / level(i), 0.999) for i in range(steps)]
    return NoiseLevels(betas=torch.tensor(betas, dtype=torch.float64), number=torch.arange(steps))


Predicted = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a network predicts. ``of(x, eps, signal)`` · ``sample(output, x_t, signal)``: x_0 from it · ``gain(signal_t, signal_s)``: how
    much an error of the output, relative to its size, moves one DDIM step from t to s.

    All arguments broadcast; ``signal`` is that of ``NoiseLevels``, in float64: near its ends float32 would lose what is left.
    """

    of: Predicted
    sample: Predicted
    gain: Callable[[Tensor, Tensor], Tensor]

    def noise(self, output: Tensor, x_t: Tensor, signal: Tensor) -> Tensor:
        """eps from an output, through x_0; at a signal of 1, where there is none, 0."""
        x = self.sample(output, x_t, signal)
        inverse = torch.where(signal < 1, (1 - signal).clamp(min=1e-30).rsqrt(), torch.zeros_like(signal))
        return _times(inverse, x_t) - _times(inverse * signal.sqrt(), x)


def _times(factor: Tensor, x: Tensor) -> Tensor:
    return factor.to(x.dtype) * x


def _epsilon_gain(t: Tensor, s: Tensor) -> Tensor:
    return (1 - s).sqrt() - (s / t).sqrt() * (1 - t).sqrt()


def _velocity_gain(t: Tensor, s: Tensor) -> Tensor:
    return (1 - s).sqrt() * t.sqrt() - s.sqrt() * (1 - t).sqrt()


def _sample_gain(t: Tensor, s: Tensor) -> Tensor:
    return s.sqrt() - ((1 - s) / (1 - t)).sqrt() * t.sqrt()


def _epsilon(x: Tensor, eps: Tensor, signal: Tensor) -> Tensor:
    return eps


def _velocity(x: Tensor, eps: Tensor, signal: Tensor) -> Tensor:
    return _times(signal.sqrt(), eps) - _times((1 - signal).sqrt(), x)


def _sample(x: Tensor, eps: Tensor, signal: Tensor) -> Tensor:
    return x


def _from_epsilon(output: Tensor, x_t: Tensor, signal: Tensor) -> Tensor:
    return _times((1 / signal).sqrt(), x_t) - _times((1 / signal - 1).sqrt(), output)


def _from_velocity(output: Tensor, x_t: Tensor, signal: Tensor) -> Tensor:
    return _times(signal.sqrt(), x_t) - _times((1 - signal).sqrt(), output)


def _from_sample(output: Tensor, x_t: Tensor, signal: Tensor) -> Tensor:
    return output


EPSILON = Target(of=_epsilon, sample=_from_epsilon, gain=_epsilon_gain)
VELOCITY = Target(of=_velocity, sample=_from_velocity, gain=_velocity_gain)
SAMPLE = Target(of=_sample, sample=_from_sample, gain=_sample_gain)
