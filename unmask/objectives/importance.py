"""How much a masked token counts, as published models weigh it: by its row, by its time, or by what stands around it.

Public ideas: ``EachRow()`` (MMaDA), ``InverseMean()``, ``Linear()`` and ``Neighbours()`` (Dream-Coder), each a ``Weight`` of ``Masked``.

Shapes: B rows · L tokens · N masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sequence import Batch

_LEAST = 1e-3  # of a probability; the largest weight is 1000


@dataclass(frozen=True, kw_only=True)
class EachRow:
    """1 / (p n), where n tokens of the row could have been masked: a row counts the same whatever its length (MMaDA, arXiv 2505.15809:
    texts from stage 3 on, understanding, thinking before a drawing). ``InverseTime`` is the same where all rows are equally long.
    """

    def per_token(self, noisy: Batch) -> Tensor:
        """p times the length of the token's row, relative to the mean row."""
        assert noisy.weight is not None
        open_BL, relative_BL = noisy.writable & noisy.valid, torch.ones_like(noisy.weight)
        open_BL = open_BL if noisy.target is None else open_BL | noisy.target
        for kind in noisy.kind.unique().tolist():
            here_BL = noisy.kind == kind
            length_B1 = (open_BL & here_BL).sum(1, keepdim=True).to(relative_BL)
            relative_BL = torch.where(here_BL, length_B1 / length_B1.mean().clamp(min=_LEAST), relative_BL)
        return noisy.weight.clamp(min=_LEAST) * relative_BL

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return (each / per_token).sum() / tokens


@dataclass(frozen=True, kw_only=True)
class InverseMean:
    """1 / t, divided by the number of masked tokens and not of all ("original" of Dream-Coder's trainer)."""

    def per_token(self, noisy: Batch) -> Tensor:
        assert noisy.weight is not None
        return noisy.weight

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return (each / per_token.clamp(min=_LEAST)).mean()


@dataclass(frozen=True, kw_only=True)
class Linear:
    """1 - t, divided by the number of masked tokens ("linear" of Dream-Coder's trainer): rows with few masks count more.

    A token that was masked only because its group had no masked token has no weight.
    """

    def per_token(self, noisy: Batch) -> Tensor:
        assert noisy.weight is not None
        return noisy.weight

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return (each * (1 - per_token).clamp(min=0)).mean()


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """A masked token counts by the unmasked tokens around it: the sum of p (1 - p)^(d - 1) / 2 over their distances d, divided by the
    number of masked tokens (arXiv 2508.15487, CART; the released Dream-Coder run has ``p`` 0.1). A token alone among masks counts least.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p is {self.p}; give a number above 0 and at most 1")

    def per_token(self, noisy: Batch) -> Tensor:
        at_L = torch.arange(noisy.ids.shape[1], device=noisy.device)
        distance_LL = (at_L[:, None] - at_L[None, :]).abs()
        near_LL = torch.where(distance_LL > 0, 0.5 * self.p * (1 - self.p) ** (distance_LL - 1).clamp(min=0), 0.0)
        return (noisy.valid & ~noisy.masked).to(near_LL) @ near_LL

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return (each * per_token).mean()
