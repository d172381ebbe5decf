"""Dimple: a causal language model that learns to unmask tokens, and unmasks all it is sure of.

Paper: Yu, Ma and Wang, "Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding", 2025, arXiv 2505.16990.

Training. Masked diffusion alone was unstable and learned how long the canvas is instead of where an answer ends. So the causal model is
trained on the next token first, and then on masked tokens of the same data with attention in both directions (``NextToken``, then
``Masked(corruption=Absorbing(otherwise=Uniform()))``); a position predicts the token behind it in both phases, so the output head keeps
its meaning. The paper weights a token by 1/t, the released code takes the plain mean; ``Masked.weight`` has both. An answer of n tokens is
padded with ends of text to a random length, at most the next power of two, and from 16 tokens on the next multiple of 16
(``family_rows.to_random_length``); the padding is learned.

Equations: for step i of a time grid 1 = t_0 > ... > t_T = eps, m of n tokens masked, c_j the probability of the candidate of token j:

    S = {masked j : c_j > threshold}        all of S is unmasked at once
    if S is empty: the best int(m (1 - t_k n / m)) for the first k > i with t_k < m / n that takes at least one; at step T all

``confident`` is this rule for any model: the probability is that of the whole prediction at temperature 1, whatever the temperature and
the nucleus from which candidates are drawn. Without a sure token the base sampler's order decides.

Prefilling is ``--cache prompt``: after the first step, the keys and values of the prompt are kept, although it has attended to masked
tokens; an approximation. Structure priors are answers with given pieces: ``unmask ask --draft``.

What changes: the selection; the schedule, which no longer limits a step; the score, which becomes the probability. For training, the
phases and the padding: ``unmask train families.dimple`` for Dimple itself, ``unmask train dimple.adapt`` for causal checkpoints.

What it costs: a step more than the parts unmasked, so between 1 and T forwards, by how sure the model is; requests of a batch end at
different times. Entropies are at most 0, so with a score of entropies the threshold never acts.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from unmask.evaluation.sampler_axes import steps_of
from unmask.methods.card import Card
from unmask.protocols import Bounded, Foreseeable, Selection
from unmask.sampling.aligned import Aligned
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal, Fixed
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.token_sampler import Greedy, Probability, Truncated

_ALL = 2**31  # tokens of a step: the selection says how many
_GRID = 512  # steps of the time grid where the sampler takes one for each token


def confident(base: Sampler, *, threshold: float = 0.95, eps: float = 1e-3) -> Sampler:
    """All tokens that are more probable than the threshold, else as many as the time grid says (Dimple)."""
    planned = steps_of(base, _GRID)
    return dataclasses.replace(
        base,
        schedule=Fixed(each=_ALL),
        token_sampler=_probable(base.token_sampler),
        selection=Aligned(steps=planned, eps=eps, threshold=threshold, selection=_order(base.selection)),
    )


def _order(selection: Selection) -> Selection:
    """The selection that says which tokens a step takes where none is sure: that of the base, if it takes as many as it is told to."""
    if isinstance(selection, Aligned):
        return selection.selection
    revises = isinstance(selection, Bounded) and selection.extra_steps(1, 1) is not None
    told = isinstance(selection, Foreseeable) and selection.foreseeable and not revises
    return selection if told else Confident()


def _probable(part: Any) -> Any:
    """The token sampler whose score is the probability of the candidate in the whole prediction. ValueError where it has no score."""
    if hasattr(part, "token_sampler"):
        return dataclasses.replace(part, token_sampler=_probable(part.token_sampler))
    if not hasattr(part, "score"):
        raise ValueError(
            f"the token sampler of this task, {type(part).__name__}, has no score to compare with a threshold"
        )
    more = {"original": True} if isinstance(part, Truncated) else {}
    return dataclasses.replace(part, score=Probability(), **more)


CARD = Card(
    title="Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding",
    paper="arXiv 2505.16990",
    year=2025,
    changes="training: next tokens first, then masked ones of the same data · selection: every token above a threshold",
    claim="3.9 % more on average than LLaVA-NEXT on the same data; a third as many forwards as answer tokens.",
    status="reference",
    parts={
        "sampler": (
            confident(Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident()), threshold=0.4),
            confident(
                Sampler(
                    schedule=Equal(steps=3),
                    token_sampler=Truncated(temperature=0.7, top_p=0.9),
                    selection=RandomOrder(),
                ),
                threshold=0.2,
            ),
        ),
    },
    sampler=("confident",),
    recipe="families.dimple",
)
