"""Lookup-free quantisation: a vector of D numbers becomes its D signs, read as a binary number (Yu et al. 2023, arXiv 2310.05737).

Public ideas: ``signs(x)`` with a straight-through gradient, ``index_of(x)``, ``vector_of(index, dim)``; ``Entropies`` is the training loss.
The first number is the highest bit, in both directions. (The published code of DPLM-2 decodes its own codebook with the first number as
the lowest bit, ``vector_of(index, dim).flip(-1)``.)

Shapes: N vectors · D numbers, 2^D codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def signs(x: Tensor) -> Tensor:
    """+1 where x > 0, else -1; the gradient is that of ``x``."""
    hard = torch.where(x > 0, 1.0, -1.0).to(x.dtype)
    return x + (hard - x).detach()


def index_of(x: Tensor) -> Tensor:
    """The code [...] of ``x [..., D]``: a position of zeros has code 0."""
    bit = torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
    return ((x > 0).long() << bit).sum(-1)


def vector_of(index: Tensor, dim: int) -> Tensor:
    """The signs [..., D] of codes, -1 or +1."""
    bit = torch.arange(dim - 1, -1, -1, device=index.device)
    return ((index[..., None] >> bit) & 1).float() * 2 - 1


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """``loss``: commit + entropies, weighted · ``sample_entropy``: how unsure one vector's code is, in nats ·
    ``code_entropy``: of the codes of all vectors together.
    """

    loss: Tensor
    commitment: Tensor
    sample_entropy: Tensor
    code_entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class Entropies:
    """commitment |x - signs|^2 + entropy (sample entropy - code entropy), the mean over vectors. No codebook can collapse, and codes that
    are used alike have the largest code entropy.
    """

    commitment: float = 0.25
    entropy: float = 0.1
    temperature: float = 0.01

    def __call__(self, x: Tensor) -> Quantised:
        """Of vectors ``x [N, D]``. The probability of a code is that of a softmax of 2 x.c / temperature over all codes: its bits are
        independent.
        """
        commit = (x - torch.where(x > 0, 1.0, -1.0).to(x.dtype)).square().mean()
        logit = 4 * x / self.temperature
        up = torch.sigmoid(logit)
        codes = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        for bit in range(x.shape[1]):
            codes = torch.stack([codes * (1 - up[:, bit, None]), codes * up[:, bit, None]], dim=2).flatten(1)
        sample = F.binary_cross_entropy_with_logits(logit, up, reduction="none").sum(1).mean()
        mean = codes.mean(0)
        spread = -(mean * (mean + 1e-5).log()).sum()  # 1e-5 as published
        return Quantised(
            loss=self.commitment * commit + self.entropy * (sample - spread),
            commitment=commit,
            sample_entropy=sample,
            code_entropy=spread,
        )
