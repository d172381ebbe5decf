"""Masked rows in forward passes that are ready to run. Public ideas: ``Passes``, and ``score(model, passes)``, their loss.

Masking, stacking and sorting rows into passes are hundreds of small operations for every task, and a GPU computes faster than one process
can start them. ``masking.Masking`` makes the passes where batches are made.

Shapes: L tokens · N tokens scored · G rows of a pass · I pictures · T terms of the loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmask.objectives.joining import encodes_alike, predicted_by, token_loss
from unmask.sequence import Batch
from unmask.step import Loss

LOGITS = 2**27  # at a time: passes are for networks so small that launches, not memory, are short


class Pass(NamedTuple):
    """The rows of one forward pass. ``predict [G, L]``: the tokens to score · ``picture [G]``: how many pictures of ``Passes`` come before
    those of a row's own batch · ``terms``: kind -> the number of each row's term of the loss, [G].
    """

    batch: Batch
    predict: Tensor
    picture: Tensor
    terms: dict[int, Tensor]


class Passes(NamedTuple):
    """``pixels [I, 3, H, W]``: of all passes, in 0..1, or uint8 where that loses nothing · ``names``: of the terms of the loss · ``tokens``
    and ``counts [T]``: how many tokens each is the mean of · ``weights [T]``: in the sum.
    """

    passes: tuple[Pass, ...]
    pixels: Tensor | None
    names: tuple[str, ...]
    tokens: tuple[int, ...]
    counts: Tensor
    weights: Tensor


def in_0_1(pixels: Tensor) -> Tensor:
    """Pixels of ``Passes`` as the model reads them."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def score(model: Any, made: Passes) -> Loss:
    """The loss of some passes: the weighted sum of the mean losses of all terms. ValueError for pictures and a model that does not encode
    them all to the same number of features, which ``Pass.picture`` counts on.
    """
    if made.pixels is not None and not encodes_alike(model):
        raise ValueError("this model does not encode all pictures to as many features; train it with 0 workers")
    features = None if made.pixels is None else model.features(in_0_1(made.pixels))
    each = 0 if features is None or made.pixels is None else len(features) // len(made.pixels)
    number = torch.arange(len(made.names), device=made.counts.device)
    sums = torch.zeros(len(made.names), device=made.counts.device)
    for batch, predict, picture, terms in made.passes:
        batch = batch.replace(features=features, feature=batch.feature + each * picture[:, None])
        assert batch.clean is not None
        for kind, part in sorted(predicted_by(model, batch, predict).scored.items()):
            if len(part.at):
                term = terms[kind][part.at // predict.shape[1]]
                # A product with one-hot rows, whose sums have one order on every device; index_add has not.
                sums = sums + (term == number[:, None]).float() @ token_loss(kind, part, batch.clean, largest=LOGITS)
    means = sums / made.counts
    if not made.names:  # nothing is masked: a zero gradient
        return Loss(total=next(model.parameters()).sum() * 0, terms={}, counts={})
    counts = dict(zip(made.names, made.tokens, strict=True))
    terms = dict(zip(made.names, means.detach().unbind(), strict=True))
    return Loss(total=(means * made.weights).sum(), terms=terms, counts=counts)
