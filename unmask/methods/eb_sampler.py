"""EB-Sampler: unmask as many tokens at once as the entropies of their predictions allow.

Paper: Ben-Hamu, Gat, Severo, Nolte and Karrer, "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
NeurIPS 2025, arXiv 2505.24857.

Equations: masked tokens are sorted by an error proxy, smallest first: entropy, confidence (the probability of the candidate) or margin
(between the two most probable ids). The step unmasks the first k of them for the largest k with

    H_1 + ... + H_k - max(H_1, ..., H_k) <= gamma

where H_i is the entropy of the prediction of token i in nats. The left side bounds the mutual information of the k tokens, which is lost
when they are sampled independently. gamma = 0 unmasks one token per step (and all tokens of zero entropy); gamma = infinity unmasks
everything at once.

What changes: the selection; the schedule, which no longer limits a step (``Equal(steps=1)``; --steps N still does); and the token sampler,
wrapped in ``WithEntropy``, which adds the entropies and replaces the scores by the error proxy.

What it costs: from one step in total to one step per token, depending on the input, so requests of a batch end at different
times. The number of model calls varies for a fixed gamma; compare methods at the mean number.

Shapes: B rows · L tokens · N tokens scored · V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.methods.card import Card
from unmask.models.exact import double
from unmask.protocols import TokenSampler
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import first, move
from unmask.sampling.spans import wished
from unmask.sampling.token_sampler import Categorical, Entropy, Greedy, LogProbability, Margin, Score
from unmask.sequence import Batch
from unmask.step import Move, Prediction, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class WithEntropy:
    """The candidates of ``token_sampler`` with the entropies of their predictions, and with ``proxy`` as their scores."""

    token_sampler: TokenSampler
    proxy: Score = Entropy()

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        proposal = self.token_sampler(batch, prediction, progress)
        ids, score = proposal.ids.flatten(), proposal.score.flatten().clone()
        entropy = torch.zeros_like(score)
        for scored in prediction.scored.values():
            if scored.logits is not None and scored.at.numel():
                logits_NV, ids_N = scored.logits.float(), ids[scored.at]
                score[scored.at] = self.proxy(logits_NV, ids_N)
                entropy[scored.at] = -Entropy()(logits_NV, ids_N)
        shape = proposal.ids.shape
        return dataclasses.replace(proposal, score=score.view(shape), entropy=entropy.view(shape))


@dataclass(frozen=True, kw_only=True)
class EntropyBound:
    """The most certain candidates, at least one, whose entropies without the largest sum to at most ``gamma`` nats.

    ``counts`` is still the maximum. ValueError if the proposal has no entropies: the token sampler must be ``WithEntropy``.
    """

    gamma: float

    def __post_init__(self) -> None:
        if math.isnan(self.gamma) or self.gamma < 0:
            raise ValueError(f"gamma is a bound in nats, at least 0, got {self.gamma}; 0 unmasks one token per step")

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        if proposal.entropy is None:
            raise ValueError("the proposal has no entropies; use the token sampler WithEntropy(token_sampler=…)")
        order_BL = torch.where(block, proposal.score, -torch.inf).argsort(dim=1, descending=True, stable=True)
        entropy_BL = double(torch.where(block, proposal.entropy, 0.0).gather(1, order_BL))
        fits_BL = (entropy_BL.cumsum(1) - entropy_BL.cummax(1).values <= self.gamma).to(block.device)
        most_B = (fits_BL.long().cumprod(1).bool() & block.gather(1, order_BL)).sum(1).clamp(min=1)
        return move(first(proposal.score, block, torch.minimum(counts, most_B)))


def eb_sampler(base: Sampler, *, gamma: float = 0.1) -> Sampler:
    """Entropy-bounded steps, the lowest entropy first."""
    return _bounded(base, gamma, Entropy())


def eb_confidence(base: Sampler, *, gamma: float = 0.1) -> Sampler:
    """Entropy-bounded steps, the most probable candidate first."""
    return _bounded(base, gamma, LogProbability())


def eb_margin(base: Sampler, *, gamma: float = 0.1) -> Sampler:
    """Entropy-bounded steps, the largest margin between two ids first."""
    return _bounded(base, gamma, Margin())


def _bounded(base: Sampler, gamma: float, proxy: Score) -> Sampler:
    return dataclasses.replace(
        base,
        schedule=Equal(steps=1),
        token_sampler=_innermost(base.token_sampler, proxy),
        selection=EntropyBound(gamma=gamma),
    )


def _innermost(token_sampler: Any, proxy: Score) -> TokenSampler:
    """``WithEntropy`` inside the restrictions (``OnlyIds``, ``TopP``), so that it reads the restricted logits."""
    if (inner := getattr(token_sampler, "token_sampler", None)) is not None:
        return dataclasses.replace(token_sampler, token_sampler=_innermost(inner, proxy))
    return WithEntropy(token_sampler=token_sampler, proxy=proxy)


CARD = Card(
    title="Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
    paper="arXiv 2505.24857",
    year=2025,
    changes="selection: a step takes as many tokens as the entropies of their predictions allow",
    claim="2 to 3 times fewer model calls on code and mathematics without loss in accuracy.",
    status="tiny-checked",
    figure="answers of mini: 1.01 calls at .914, one token a step 3.92 calls at .914 (paired .000 [-.020, .020])",
    parts={
        "token_sampler": (WithEntropy(token_sampler=Categorical(), proxy=LogProbability()),),
        "sampler": (
            Sampler(
                schedule=Equal(steps=1),
                token_sampler=WithEntropy(token_sampler=Greedy()),
                selection=EntropyBound(gamma=0.5),
            ),
            Sampler(
                schedule=Equal(steps=3),
                token_sampler=WithEntropy(token_sampler=Categorical(temperature=0.8), proxy=Margin()),
                selection=EntropyBound(gamma=2.0),
            ),
        ),
    },
    sampler=("eb_sampler", "eb_confidence", "eb_margin"),
)
