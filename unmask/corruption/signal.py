"""Signal of continuous latents by level of noise. Public idea: ``scaled_linear()[t]`` is abar of Stable Diffusion at level t."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear(levels: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """abar of every level, [levels] float32: the product of 1 - beta, whose square root rises linearly from ``first`` to ``last``."""
    beta = torch.linspace(first**0.5, last**0.5, levels) ** 2
    return (1 - beta).cumprod(0)
