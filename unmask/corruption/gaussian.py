"""Gaussian noise on continuous tokens: x = sqrt(1 - std^2) x0 + std noise.

Public ideas: ``noised(x0, noise, std)``, its inverse ``implied_noise(x, x0, std)``, and tables of levels: ``std_of(linear_betas(1000))``.
``sampling/gaussian.py`` has the way back.
"""

from __future__ import annotations

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
