"""Guidance dropout: rows lose whole spans at the stated rate, each kind of loss on its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from unmask.objectives.masked import Dropout, Masked
from unmask.rng import generator
from unmask.sequence import Batch, Branch, Kind
from unmask.step import Prediction

from .test_masked import NULL, Table, edits, perfect

torch.set_num_threads(1)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_dropout_rate(rate: float) -> None:
    batch, dropout = edits(200), Dropout(spans=frozenset({"prompt", "look"}), rate=rate)
    hit = []
    for i in range(20):
        out = dropout(batch, NULL, generator("rate", i))
        prompt = torch.zeros(15, dtype=torch.bool)
        prompt[[0, 1, 2, 3, 8]] = True
        gone = (out.ids == NULL) & (out.kind == Kind.TEXT)
        hit.append(gone[:, 0])
        assert gone[:, prompt].eq(gone[:, :1]).all()  # a row loses all of it or nothing
        assert not gone[:, 9:11].any()
        for name in ("ids", "kind", "branch"):  # and nothing else
            assert getattr(out, name)[:, ~prompt].equal(getattr(batch, name)[:, ~prompt])
    assert float(torch.cat(hit).float().mean()) == pytest.approx(rate, abs=0.04)


def test_dropped_source_codes_go_to_the_understanding_branch() -> None:
    batch = edits(3)
    out = Dropout(spans=frozenset({"source"}), rate=1.0)(batch, NULL, generator(0))
    source = slice(4, 8)
    assert (out.branch[:, source] == Branch.UND).all() and (out.kind[:, source] == Kind.TEXT).all()
    assert (out.ids[:, source] == NULL).all()
    assert (out.branch[:, 11:] == Branch.GEN).all() and out.masked.equal(batch.masked)
    assert out.position.equal(batch.position) and out.clean is not None
    assert out.clean[:, 11:].equal(batch.ids[:, 11:])


def test_dropouts_of_one_row_are_independent() -> None:
    objective = Masked(
        dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.5), Dropout(spans=frozenset({"source"}), rate=0.5))
    )
    seen: list[Batch] = []

    class Spy(Table):
        def forward(self, batch: Batch, *, predict: Tensor | None = None) -> Prediction:
            seen.append(batch)
            return super().forward(batch, predict=predict)

    for i in range(5):
        objective(Spy(perfect), edits(200), generator("both", i))
    prompt = torch.cat([b.ids[:, 0] == NULL for b in seen])
    source = torch.cat([b.kind[:, 4] == Kind.TEXT for b in seen])
    for a, b in itertools.product([prompt, ~prompt], [source, ~source]):
        assert float((a & b).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert all(not b.masked[:, :11].any() for b in seen)


# -- several of them --------------------------------------------------------------------------------------------------
