"""What words of a prompt tell a masked model about each token of a picture, and what only two of them together tell.

Public ideas: ``information(log_p, patterns)`` is the pointwise information of a condition about each token, from log-probabilities with and
without it over the same masks; ``decompose(i1, i2, i12)`` splits that of two words into redundancy, unique parts and synergy.

For a masked model the information of a condition c about a picture x is a mean over orders of unmasking (arXiv 2510.24088):

    i_l(x; c) = E_order [ ln p(x_l | tokens before l, c) - ln p(x_l | tokens before l) ]          sum_l i_l = ln p(x | c) - ln p(x)

``every_pattern`` has all sets of tokens before l with their weights, which is exact; ``sampled_patterns`` draws sets of k known tokens with
probability q(k) proportional to 1 / (k + 1), each masked token with weight 1 / (q(k) (L - k)), which is unbiased for every q. What a prompt
tells is told by the first few codes, so most of the sum comes from small k.

Decomposition (Williams and Beer 2010, per token, with the smaller of the two as redundancy): r = min(i1, i2), u_k = i_k - r,
s = i12 - i1 - i2 + r, so that i12 = r + u1 + u2 + s.

Shapes: R patterns · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import torch
from torch import Generator, Tensor

_MOST_EXACT = 12  # tokens whose sets are enumerated


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """``masked`` [R, L] bool · ``weight`` [R, L] float64: of each masked token's log-probability in the sum over patterns."""

    masked: Tensor
    weight: Tensor


def every_pattern(tokens: int) -> Patterns:
    """All sets of known tokens. ValueError for more than 12 tokens, 4,096 sets."""
    if not 1 <= tokens <= _MOST_EXACT:
        raise ValueError(
            f"all orders of {tokens} tokens cannot be enumerated; use 1 to {_MOST_EXACT} or sampled_patterns"
        )
    known = torch.cartesian_prod(*[torch.tensor([False, True])] * tokens).view(-1, tokens)[:-1]
    counts = known.sum(1).tolist()
    share = [factorial(k) * factorial(tokens - k - 1) / factorial(tokens) for k in counts]
    weight = torch.tensor(share, dtype=torch.float64)[:, None] * (~known).double()
    return Patterns(masked=~known, weight=weight)


def sampled_patterns(tokens: int, count: int, rng: Generator) -> Patterns:
    """``count`` random patterns; the numbers of known tokens are stratified from a random start."""
    if tokens < 1 or count < 1:
        raise ValueError(f"patterns need tokens and a count, got {tokens} and {count}")
    q_L = 1 / torch.arange(1, tokens + 1, dtype=torch.float64)
    q_L = q_L / q_L.sum()
    place_R = (torch.rand(1, generator=rng, dtype=torch.float64) + torch.arange(count)) / count
    known_R = torch.searchsorted(q_L.cumsum(0), place_R, right=True).clamp(max=tokens - 1)
    masked_RL = torch.rand(count, tokens, generator=rng).argsort(1).argsort(1) >= known_R[:, None]
    weight = masked_RL.double() / (q_L[known_R] * (tokens - known_R) * count)[:, None]
    return Patterns(masked=masked_RL, weight=weight)


def information(with_condition: Tensor, without: Tensor, patterns: Patterns) -> Tensor:
    """[L] nats for log-probabilities [R, L] of the true tokens under the masks of the patterns; unmasked places are not read."""
    difference = (with_condition.double() - without.double()).masked_fill(~patterns.masked, 0.0)
    return (patterns.weight.to(difference.device) * difference).sum(0)


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Per token, in nats: what both words tell (``redundant``), one alone (``unique``, of each), and both only together (``synergy``)."""

    redundant: Tensor
    unique: tuple[Tensor, Tensor]
    synergy: Tensor

    @property
    def total(self) -> Tensor:
        """The information of both words."""
        return self.redundant + self.unique[0] + self.unique[1] + self.synergy


def decompose(i1: Tensor, i2: Tensor, i12: Tensor, *, redundant: Tensor | None = None) -> Decomposition:
    """Of the information of two words and of both. ``redundant``: another definition than the smaller of the two."""
    r = torch.minimum(i1, i2) if redundant is None else redundant
    return Decomposition(redundant=r, unique=(i1 - r, i2 - r), synergy=i12 - i1 - i2 + r)
