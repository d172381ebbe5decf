"""The loss of a head that denoises continuous tokens (``models/diffusion_head.py``).

Public idea: ``DiffusionLoss(levels=.., target=..)``; ``loss.of(head, x, z, t, eps)`` is the loss of each vector. With ``learned_variance``
the head's second half says where between its two bounds the log variance lies, and is trained with the variational bound (Nichol and
Dhariwal 2021, arXiv 2102.09672), in bits.

Shapes: N vectors · C channels · D width of the condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.gaussian import EPSILON, NoiseLevels, Target

Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [N, C], step [N], z [N, D]) -> [N, C] or [N, 2 C]


@dataclass(frozen=True, kw_only=True)
class VectorLoss:
    """Of each vector, [N]: ``error``, the squared error, and ``bound`` in bits (0 without a learned variance)."""

    error: Tensor
    bound: Tensor

    @property
    def total(self) -> Tensor:
        return self.error + self.bound


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """``repeats``: how many times and noises each vector gets in one update · ``target``: what the head predicts."""

    levels: NoiseLevels
    target: Target = EPSILON
    learned_variance: bool = False
    repeats: int = 4

    def __call__(self, head: Head, x: Tensor, z: Tensor, rng: torch.Generator) -> Tensor:
        """The mean loss of vectors ``x [N, C]`` given conditions ``z [N, D]``."""
        x, z = x.repeat(self.repeats, 1), z.repeat(self.repeats, 1)
        t = torch.randint(len(self.levels), (len(x),), generator=rng).to(x.device)
        eps = torch.randn(x.shape, generator=rng).to(x)
        return self.of(head, x, z, t, eps).total.mean()

    def of(self, head: Head, x: Tensor, z: Tensor, t: Tensor, eps: Tensor) -> VectorLoss:
        """The loss of each vector at the steps ``t [N]`` with the noise ``eps [N, C]``."""
        x_t, channels = self.levels.noised(x, eps, t), x.shape[1]
        output = head(x_t, self.levels.number.to(t.device)[t], z)
        signal = self.levels.signal.to(x.device)[t][:, None]
        found = output[:, :channels]
        error = (self.target.of(x, eps, signal) - found).square().mean(1)
        if not self.learned_variance:
            return VectorLoss(error=error, bound=torch.zeros_like(error))
        guess = self.target.sample(found.detach(), x_t, signal)
        return VectorLoss(error=error, bound=self._bound(x, x_t, guess, output[:, channels:], t))

    def _bound(self, x: Tensor, x_t: Tensor, guess: Tensor, number: Tensor, t: Tensor) -> Tensor:
        """KL of the true posterior from that of the head; at step 0 the surprise at x."""

        def at(values: Tensor) -> Tensor:
            return values.to(x.device)[t][:, None].to(x.dtype)

        of_x, of_noisy, smallest = at(self.levels.of_sample), at(self.levels.of_noisy), at(self.levels.log_variance)
        log_variance = learned_log_variance(number, at(self.levels.betas).log(), smallest)
        true, mean = of_x * x + of_noisy * x_t, of_x * guess + of_noisy * x_t
        ratio = (smallest - log_variance).exp() + (true - mean).square() * (-log_variance).exp()
        kl = 0.5 * (log_variance - smallest + ratio - 1)
        surprise = -log_probability(x, mean, 0.5 * log_variance)
        return torch.where(t == 0, surprise.mean(1), kl.mean(1)) / math.log(2)


def learned_log_variance(number: Tensor, largest: Tensor, smallest: Tensor) -> Tensor:
    """Between ``smallest`` at -1 and ``largest`` at 1."""
    share = (number + 1) / 2
    return share * largest + (1 - share) * smallest


def log_probability(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """ln of the probability that a Gaussian gives to the bin of each value, of width 2/255 in [-1, 1], its ends open.

    The distribution function is its tanh approximation, as in the published code.
    """
    scale = (-log_deviation).exp()
    above = _below((x - mean + 1 / 255) * scale)
    below = _below((x - mean - 1 / 255) * scale)
    inner = (above - below).clamp(min=1e-12).log()
    last = torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(), inner)
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), last)


def _below(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
