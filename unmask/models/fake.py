"""A denoiser without weights, for tests of everything around a model.

Public idea: ``FakeDenoiser()(batch)``: logits that are a fixed random function of what a row shows (its unmasked ids and kinds, and
which tokens are masked), so that any change of the input changes the prediction, and equal rows have equal predictions.

Shapes: B rows · L tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.rng import generator, key
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Reuse, Scored


@dataclass(frozen=True, kw_only=True)
class FakeDenoiser:
    """``sizes``: the vocabulary of each kind that it scores · ``spread``: deviation of the logits."""

    sizes: Mapping[int, int] = field(default_factory=lambda: {Kind.TEXT: 24, Kind.CODE: 16})
    spread: float = 2.0

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        """It has no state: with ``reuse`` it computes everything all the same."""
        predict = batch.masked if predict is None else predict
        logits = {kind: torch.zeros(*predict.shape, size) for kind, size in self.sizes.items()}
        for row in range(batch.rows):
            n = batch.span_table[row][-1].stop if batch.span_table[row] else 0  # what a shared forward adds is not read
            shown = (batch.ids[row].masked_fill(batch.masked[row], -1)[:n].tolist(), batch.kind[row, :n].tolist())
            rng = generator(key(shown))
            for of_kind in logits.values():
                of_kind[row, :n] = self.spread * torch.randn(n, of_kind.shape[-1], generator=rng)
        flat = torch.arange(predict.numel()).view_as(predict)
        chosen = {kind: predict & (batch.kind == kind) for kind in logits}
        return Prediction(
            scored={k: Scored(at=flat[c], logits=logits[k][c], hidden=logits[k][c]) for k, c in chosen.items()}
        )
