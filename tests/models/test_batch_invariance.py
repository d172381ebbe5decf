"""Logits to the last bit: neither padding, nor other rows, nor how many tokens are scored change how a sum is rounded (fp32, CPU).

This is what kernels do, not what arithmetic says, so it is measured where the tests run (docs/notes/0005-engine.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Prediction

torch.set_num_threads(1)
CONFIG = SIZES["mini"]  # the tiny model's sums are too short to show anything


@pytest.fixture(scope="module")
def model() -> Elastic:
    model = Elastic(CONFIG, mask_id=7).eval()
    init(model, generator("batch invariance"))
    return model


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def text(given: int, masked: int) -> Sequence:
    return _sequence(("prompt", Kind.TEXT, given), ("answer", Kind.TEXT, masked))


def drawing(given: int, *before: tuple[str, int, int]) -> Sequence:
    return _sequence(("prompt", Kind.TEXT, given), *before, ("image", Kind.CODE, 64))


def _sequence(*spans: tuple[str, int, int]) -> Sequence:
    table, start = [], 0
    for name, kind, size in spans:
        grid = {"grid": (size // 8, 8), "fold": 2} if kind == Kind.CODE else {}
        table.append(Span(name=name, kind=kind, start=start, stop=start + size, writable=name == spans[-1][0], **grid))  # type: ignore[arg-type]
        start += size
    ids = torch.randint(8, 1000, (start,), generator=generator("ids", start))
    masked = torch.zeros(start, dtype=torch.bool)
    masked[table[-1].start :] = True
    return Sequence(ids=ids, masked=masked, spans=tuple(table))


CASES = {
    "texts": [text(30, 4), text(17, 1), text(55, 9), text(40, 2)],
    "drawings": [drawing(n) for n in (18, 22, 40, 17)],
    "edits": [drawing(n, ("source", Kind.CODE, 64)) for n in (18, 25, 33)],
    "mixed": [
        drawing(18),
        text(30, 4),
        drawing(25, ("source", Kind.CODE, 64)),
        drawing(19, ("source", Kind.CODE, 32)),
        text(17, 1),
    ],
}


def logits(prediction: Prediction) -> list[torch.Tensor]:
    return [prediction.logits(kind) for kind in sorted(prediction.scored)]


@pytest.mark.parametrize("case", CASES)
def test_other_rows_and_padding_change_no_bit(model: Elastic, case: str) -> None:
    rows = CASES[case]
    for many in (2, len(rows), 2 * len(rows)):
        chosen = (rows * 2)[:many]
        together = model(collate(chosen, range(many)))
        alone = [model(collate([row], [0])) for row in chosen]
        for kind in together.scored:
            found = torch.cat([one.logits(kind) for one in alone if kind in one.scored])
            assert torch.equal(together.logits(kind), found)


@pytest.mark.parametrize("case", CASES)
def test_how_many_are_scored_changes_no_bit(model: Elastic, case: str) -> None:
    batch = collate(CASES[case][:1], [0])
    everything = logits(model(batch))
    order = batch.masked.long().cumsum(1)
    for few in (1, 2, 3, 5):
        for found, all_ in zip(logits(model(batch, predict=batch.masked & (order <= few))), everything, strict=True):
            assert torch.equal(found, all_[:few])
