"""SAGE: search for natural requests on which a text-to-picture model fails, in prompts and in the sampler's randomness.

Paper: Liu et al., "Discovering Failure Modes of Text-guided Diffusion Models via Adversarial Search", 2023, arXiv 2306.00974. No code was
released.

Equations: find a prompt p, still naming its object, and randomness z, such that all of several judges say that the object is absent from
G(p, z). For a masked model z is the order of unmasking and the uniform numbers of its draws, so a failure is a triple (p, order, u) that
replays exactly (``replay``), and in a small world its probability is a sum over all outcomes (``failure``):

    P(fail | p, order) = sum over failing x of prod_i P(x_order(i) | p, tokens unmasked before)

Gradient-free search here: Thompson sampling over the failure rates of each value of a prompt's factors, or the cross-entropy method,
p <- 0.3 p + 0.7 frequency among the failures (``analysis.search``).

What changes: nothing in a model; it is an analysis of any that draws (``unmask probe``).

What it costs: one drawing for each call of the budget. Compare with random prompts at equal calls, by failures found and by different
failures found: a search that concentrates finds more of the first, and may find fewer of the second.

The paper follows gradients through a surrogate classifier and the sampler; prompts of a masked model are discrete, so none is used here.

Shapes: L tokens · V values of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unmask.methods.card import Card

Conditional = Callable[[Tensor], Tensor]  # tokens [L], the masked ones with the mask's id -> probabilities [L, V]


def outcomes(conditional: Conditional, order: Sequence[int], mask: int) -> Iterator[tuple[Tensor, float]]:
    """Every outcome [L] of unmasking one token after the other, with its probability. V^L outcomes: for small worlds."""

    def below(x: Tensor, places: Sequence[int], p: float) -> Iterator[tuple[Tensor, float]]:
        if not places:
            yield x, p
            return
        for value, share in enumerate(conditional(x)[places[0]].tolist()):
            taken = x.clone()
            taken[places[0]] = value
            yield from below(taken, places[1:], p * share)

    yield from below(torch.full((len(order),), mask), list(order), 1.0)


def failure(conditional: Conditional, order: Sequence[int], mask: int, failed: Callable[[Tensor], bool]) -> float:
    """The exact probability of a failure."""
    return sum(p for x, p in outcomes(conditional, order, mask) if failed(x))


def replay(conditional: Conditional, order: Sequence[int], u: Tensor, mask: int) -> Tensor:
    """The outcome [L] of uniform numbers ``u [L]``, one for each token: the value at which its cumulative probability exceeds u."""
    x = torch.full((len(order),), mask)
    for place in order:
        p = conditional(x)[place]
        x[place] = min(int((p.cumsum(0) <= u[place]).sum()), len(p) - 1)
    return x


CARD = Card(
    title="Discovering Failure Modes of Text-guided Diffusion Models via Adversarial Search",
    paper="arXiv 2306.00974",
    year=2023,
    changes="analysis: search for requests on which a model fails, confirmed by judges and replayed from their seeds",
    claim="Adversarial search finds natural prompts that models misdraw, regions of bad latents, and tokens that force an object.",
    status="tiny-checked",
    figure="mini, 3 seeds, 100 calls: Thompson search finds 54.4 [37.2, 71.7] failures, random prompts 36.1 [21.4, 50.8], a gain of 18.3 "
    "[3.8, 32.8]; of different prompts it finds no more (30.6 [4.7, 56.4] against 35.6 [19.7, 51.4]); cross-entropy search gains 8.6 "
    "[-9.0, 26.2]",
    command="unmask probe MODEL",
    python="from unmask.methods.sage import failure, outcomes, replay",
)
