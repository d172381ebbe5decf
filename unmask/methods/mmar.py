"""MMAR: pictures as continuous tokens in a language model, drawn in random order by a diffusion head.

Paper: Yang et al., "MMAR: Towards Lossless Multi-Modal Auto-Regressive Probabilistic Modeling", 2024, arXiv 2410.10798. No code was
published; the head, the order and the sampler are those of MAR (Li et al. 2024, arXiv 2406.11838), whose code is.

Equations: the trunk reads clean values of the visible tokens and gives each masked one a hidden state z. A small network learns to denoise
the value given z; it predicts

    v = sqrt(a) eps - sqrt(1 - a) x

(``corruption.gaussian.VELOCITY``), because an output that is wrong by a relative error d moves a DDIM step from t to s by
|output| d gain, where the gain of eps grows without bound as a_t falls to 0 and that of v is at most 1. Predicting x is as safe; with a
schedule whose last a is 4e-5 instead of 2.4e-9 the effect vanishes. MAR predicts eps and learns the variance.

A picture of L tokens is drawn in K iterations: after iteration k, max(1, min(masked - 1, floor(L cos(pi/2 (k + 1)/K)))) tokens are still
masked, the first of a random order; the last iteration draws all that is left. The guidance scale grows with the share that is visible,
1 + (s - 1) (L - masked after the iteration) / L.

Masks in training: a share of U[.7, 1] in the first stage and of U[0, 1] in the second, without which pictures have holes; MAR draws the
share from a normal distribution around 1 with deviation .25, cut to [.7, 1].

What changes: tokens have values instead of ids; the last layer is a ``DiffusionHead``, the objective its loss, the token sampler
``ByDiffusion``.

What it costs: the head runs once a token and step of the noise (with guidance twice), the trunk once an iteration.

Shapes: B rows · L tokens · N masked tokens · C channels · D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmask.methods.card import Card
from unmask.objectives.diffusion import DiffusionLoss
from unmask.objectives.diffusion import Head as HeadCall
from unmask.protocols import Denoiser
from unmask.sequence import Batch
from unmask.step import Loss, Progress


def still_masked_after(step: int, steps: int, tokens: int, masked: int) -> int:
    """How many of ``tokens`` stay masked after iteration ``step`` (from 0) of ``steps``, of which ``masked`` are masked before it."""
    return max(1, min(masked - 1, math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))))


def masked_counts(tokens: int, steps: int) -> list[int]:
    """The number that the formula leaves masked after each iteration; the last one, at least 1, is drawn all the same."""
    left = [tokens]
    for step in range(steps):
        left.append(still_masked_after(step, steps, tokens, left[-1]))
    return left[1:]


@dataclass(frozen=True, kw_only=True)
class MaskedOrder:
    """The schedule of MAR: few tokens first, and everything that is left at the last of ``steps`` iterations."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a schedule needs at least one step, got {self.steps}")

    def counts(self, tokens: int) -> list[int]:
        steps = min(self.steps, tokens)
        left = [tokens, *masked_counts(tokens, steps)[:-1], 0]
        return [before - after for before, after in zip(left, left[1:], strict=False) if before > after]


@dataclass(frozen=True, kw_only=True)
class GrowingScale:
    """The guidance scale of each row: ``scale`` where all tokens are visible after the step, 1 where none are.

    ``tokens``: L, the number of a picture's tokens.
    """

    scale: float
    tokens: int

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        found = []
        for number, of in progress.pairs():
            left = masked_counts(self.tokens, int(of))[int(number)]
            found.append(1 + (self.scale - 1) * (self.tokens - left) / self.tokens)
        return torch.tensor(found)


def truncated_normal_share(q: Tensor, *, centre: float = 1.0, deviation: float = 0.25, low: float = 0.7) -> Tensor:
    """MAR's share of masked tokens at the quantiles ``q``: a normal distribution cut to ``low``..1."""
    first, last = torch.special.ndtr((torch.tensor([low, 1.0], dtype=q.dtype) - centre) / deviation)
    return (centre + deviation * torch.special.ndtri(first + q * (last - first))).clamp(low, 1.0)


def uniform_share(q: Tensor, *, low: float = 0.0) -> Tensor:
    """MMAR's: between ``low`` (.7 in its first stage) and 1."""
    return low + (1 - low) * q


def masked_number(share: Tensor, tokens: int) -> Tensor:
    """ceil(share tokens), at least one."""
    return (share * tokens).ceil().long().clamp(1, tokens)


class _WithHead(Protocol):
    """A trunk with hidden states for the continuous tokens, and its head."""

    trunk: Denoiser
    head: HeadCall


@dataclass(frozen=True, kw_only=True)
class ContinuousTokens:
    """The objective: a random part of each row's writable tokens of ``kind`` is masked, and the head learns their values.

    ``low``: the smallest share that is masked. The batch has the clean ``values``; the trunk must not read those of masked tokens.
    """

    kind: int
    loss: DiffusionLoss
    low: float = 0.0

    def __call__(self, model: _WithHead, clean: Batch, rng: torch.Generator) -> Loss:
        own = (clean.kind == self.kind) & clean.writable & clean.valid
        share = uniform_share(torch.rand(clean.rows, generator=rng), low=self.low)
        return self.of(model, clean, masked_at_random(own, share, rng), rng)

    def of(self, model: _WithHead, clean: Batch, masked: Tensor, rng: torch.Generator) -> Loss:
        """The loss with given masks [B, L]."""
        if clean.values is None:
            raise ValueError("the batch has no values; continuous tokens need Sequence.values")
        scored = model.trunk(clean.replace(masked=masked), predict=masked).scored[self.kind]
        if scored.hidden is None:
            raise ValueError(f"the trunk gives no hidden states for kind {self.kind}; a diffusion head reads them")
        loss = self.loss(model.head, clean.values.flatten(0, 1)[scored.at], scored.hidden, rng)
        return Loss(total=loss, terms={"values": loss.detach()}, counts={"values": len(scored.at)})


def masked_at_random(own: Tensor, share: Tensor, rng: torch.Generator) -> Tensor:
    """A random ``share [B]`` of the tokens in ``own [B, L]``, rounded up, at least one of each row."""
    order = torch.rand(own.shape, generator=rng).to(own.device).masked_fill(~own, torch.inf).argsort(1).argsort(1)
    tokens = own.sum(1)
    wanted = torch.stack([masked_number(s, int(n)) if n else n for s, n in zip(share, tokens, strict=True)])
    return own & (order < wanted.to(own.device)[:, None])


CARD = Card(
    title="MMAR: Towards Lossless Multi-Modal Auto-Regressive Probabilistic Modeling",
    paper="arXiv 2410.10798",
    year=2024,
    changes="tokens have continuous values; a diffusion head in place of the softmax draws them in random order",
    claim="Continuous tokens lose nothing to a codebook, and a head that predicts v survives low precision.",
    status="reference",
    figure="pictures of a bar, 3 networks, 3,000 updates, 8 iterations of 10 steps: error .029 [.016, .042] of full scale by a head "
    "that predicts v, .557 [.436, .677] by one that predicts eps (bfloat16 .029 and .554), .038 [.026, .049] in codes whose "
    "dictionary errs by .012: less than codes by .008 [-.009, .026]",
    paper_figure="at 0.5B: FID 36.6 with v, 61.5 with eps, 66.3 with VQ codes; mean of 18 understanding sets 34.56, 32.21, 29.70",
    parts={"schedule": (MaskedOrder(steps=4),)},
    python="from unmask.methods.mmar import ContinuousTokens, GrowingScale, MaskedOrder",
)
