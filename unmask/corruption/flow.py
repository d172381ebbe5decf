"""The straight path from clean values to noise (rectified flow, arXiv 2209.03003): x = (1 - t) x0 + t noise.

Public ideas: ``straight(x0, noise, t)``, whose velocity is noise - x0, and ``clean_of(x, velocity, t)``. ``sampling/gaussian.py`` has the
way back (``euler``).
"""

from __future__ import annotations

from torch import Tensor


def straight(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x at time ``t`` in 0 (clean) .. 1 (noise), which broadcasts against x0 and noise."""
    return (1 - t) * x0 + t * noise


def clean_of(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """x0 at the end of a straight path through x with this velocity."""
    return x - t * velocity
