"""Rows of different tasks in shared forward passes: the same losses and gradients as with a pass for each task, in fewer passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives import joining
from unmask.objectives.masked import Dropout, InverseTime, Masked, Together
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss, Prediction, Reuse

MASK, SIZE = 1, SIZES["tiny"]
assert SIZE.vision is not None
LOOK = SIZE.vision.tokens
Piece = tuple[str, int, int, dict[str, object]]


def made() -> Elastic:
    model = Elastic(SIZE, mask_id=MASK)
    init(model, generator("joining"))
    return model


def sequence(key: object, *pieces: Piece, pictures: int = 0, features: Tensor | None = None) -> Sequence:
    """Random ids in spans of (name, kind, length, more of the span)."""
    rng, spans, ids, start = generator("joining", key), [], [], 0
    for name, kind, length, more in pieces:
        spans.append(Span(name=name, kind=kind, start=start, stop=start + length, **more))  # type: ignore[arg-type]
        ids.append(torch.randint(2, SIZE.codes, (length,), generator=rng))
        start += length
    pixels = torch.rand(pictures, 3, 128, 128, generator=rng) if pictures else None
    return Sequence(
        ids=torch.cat(ids),
        masked=torch.zeros(start, dtype=torch.bool),
        spans=tuple(spans),
        pixels=pixels,
        features=features,
        feature_rows=pictures * LOOK,
    )


def text(name: str, length: int, **more: object) -> Piece:
    return name, Kind.TEXT, length, more


def image(side: int, **more: object) -> Piece:
    return "image", Kind.CODE, side * side, {"grid": (side, side), "fold": 2, "writable": True, **more}


def batch_of(rows: list[Sequence]) -> Batch:
    return collate(rows, range(len(rows)))


def look(picture: int = 0) -> Piece:
    return "look", Kind.FEATURE, LOOK, {"image": picture}


def batches() -> dict[str, Batch]:
    """Drawing, editing, two questions on one picture in segments, text alone, features that are known, codes without folding."""
    known = torch.randn(LOOK, SIZE.width, generator=generator("known"))
    source: Piece = ("source", Kind.CODE, 16, {"grid": (4, 4), "fold": 2})
    questions = [text(f"q{i}", 3 + i, segment=i) for i in (1, 2)]
    answers = [text(f"a{i}", 4, segment=i, writable=True) for i in (1, 2)]
    asked = [look(), questions[0], answers[0], questions[1], answers[1]]
    return {
        "draw": batch_of([sequence(("draw", i), text("prompt", 3 + i), image(4)) for i in range(4)]),
        "edit": batch_of(
            [sequence(("edit", i), look(), source, text("prompt", 5), image(4), pictures=1) for i in range(3)]
        ),
        "look": batch_of([sequence(("look", i), *asked, pictures=1) for i in range(2)]),
        "seen": batch_of([sequence("seen", look(), text("answer", 4, writable=True), features=known)]),
        "plan": batch_of([sequence(("plan", i), text("prompt", 4), text("plan", 9, writable=True)) for i in range(5)]),
        "flat": batch_of([sequence("flat", text("prompt", 2), image(2, fold=1))]),
        "both": batch_of([sequence("both", text("prompt", 2), text("plan", 3, writable=True), image(4))]),
    }


OBJECTIVE = Together(
    objectives=(
        ("draw", Masked(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.5),)), 1.0),
        ("edit", Masked(dropouts=(Dropout(spans=frozenset({"source"}), rate=0.5),), complementary=True), 0.3),
        ("look", Masked(complementary=True), 0.7),
        ("seen", Masked(), 1.5),
        ("plan", Masked(weight=InverseTime()), 1.1),
        ("flat", Masked(), 0.2),
        ("both", Masked(complementary=True, weight=InverseTime()), 0.5),
    )
)
APART = dataclasses.replace(OBJECTIVE, joined=False)


def learned(objective: Together, given: dict[str, Batch]) -> tuple[Loss, dict[str, Tensor]]:
    model = made()
    loss = objective(model, given, generator("loss"))
    loss.total.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, positions with padding) of every forward pass from now on."""
    seen: list[tuple[int, int]] = []
    forward: Callable[..., Prediction] = Elastic.hidden_states

    def counted(
        self: Elastic, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None
    ) -> Prediction:
        at = batch.leader & batch.valid
        padded = sum(int((at & (batch.branch == branch)).sum(1).max()) for branch in (0, 1))
        seen.append((batch.rows, batch.rows * padded))
        return forward(self, batch, predict=predict, reuse=reuse)

    monkeypatch.setattr(Elastic, "hidden_states", counted)
    return seen


@pytest.mark.parametrize("overhead", [0, 512, 10**6])
def test_losses_and_gradients_are_those_of_a_pass_for_each_task(overhead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With passes of rows of one size only, as usual, and with one pass for all that score text and one for the rest."""
    wanted, wanted_gradients = learned(APART, batches())
    monkeypatch.setattr(joining, "OVERHEAD", overhead)
    got, gradients = learned(OBJECTIVE, batches())
    assert got.counts == wanted.counts and got.terms.keys() == wanted.terms.keys()
    for name, value in wanted.terms.items():
        assert float(got.terms[name].detach()) == pytest.approx(float(value.detach()), rel=2e-5)
    assert float(got.total.detach()) == pytest.approx(float(wanted.total.detach()), rel=2e-5)
    assert gradients.keys() == wanted_gradients.keys()
    largest = max(float(gradient.norm()) for gradient in wanted_gradients.values())
    for name, gradient in wanted_gradients.items():  # that of a key's bias is zero but for rounding
        assert (gradients[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7 * largest, name


def test_rows_of_different_tasks_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = passes(monkeypatch)
    learned(APART, batches())
    separate, seen[:] = list(seen), []
    learned(OBJECTIVE, batches())
    assert len(separate) == 10  # seven tasks, three of them with a complement
    assert len(seen) <= 3
    # A pass is only given up where the padding costs less than it.
    assert sum(p for _, p in seen) <= sum(p for _, p in separate) + joining.OVERHEAD * (len(separate) - len(seen))


def test_without_a_cost_of_passes_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "OVERHEAD", 0)
    monkeypatch.setattr(joining, "ROUND", 1)
    seen = passes(monkeypatch)
    rows = [sequence(i, text("prompt", 1 + i % 3), image(4)) for i in range(9)]
    task = Together(objectives=(("draw", Masked(), 1.0),))
    learned(task, {"draw": batch_of(rows)})
    assert sorted(seen) == [(3, 3 * (4 + n)) for n in (1, 2, 3)]


def test_rows_that_score_nothing_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The complement of a row whose tokens are all masked scores nothing."""
    all_masked = Masked(corruption=Absorbing(otherwise=lambda u: torch.ones_like(u)), complementary=True)
    given = {"plan": batches()["plan"]}
    seen = passes(monkeypatch)
    loss, _ = learned(Together(objectives=(("plan", all_masked, 1.0),)), given)
    assert sum(rows for rows, _ in seen) == 5
    apart, _ = learned(Together(objectives=(("plan", all_masked, 1.0),), joined=False), given)
    assert (
        float(loss.total.detach()) == pytest.approx(float(apart.total.detach()), rel=1e-5)
        and loss.counts == apart.counts
    )


def test_pictures_are_encoded_once_for_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    features = Elastic.features

    def counted(self: Elastic, pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(Elastic, "features", counted)
    learned(OBJECTIVE, batches())
    assert seen == [5]  # three edits and two pictures asked about; their complements have the same


def test_the_same_batches_give_the_same_loss_to_the_bit() -> None:
    one, two = (learned(OBJECTIVE, batches())[0] for _ in range(2))
    assert torch.equal(one.total, two.total)


def test_a_model_that_does_not_encode_pictures_by_itself_gets_a_pass_for_each_task() -> None:
    model = made()

    class Alone:
        """A wrapper with the forward pass alone, as DistributedDataParallel is one."""

        mask_id, parameters = MASK, model.parameters

        def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
            return model(batch, predict=predict, reuse=reuse)

    got = OBJECTIVE(Alone(), batches(), generator("loss"))  # type: ignore[arg-type]
    wanted = learned(APART, batches())[0]
    assert float(got.total.detach()) == pytest.approx(float(wanted.total.detach()), rel=2e-5)


def test_padding_that_is_cheaper_than_a_pass_is_taken() -> None:
    """Sizes 8 and 16 of 10 rows each: 80 padded positions are less than the overhead; 1,000 rows each are cut."""
    few, many = ([(4, und, i) for und in (8, 16) for i in range(n)] for n in (10, 1000))
    assert [len(g) for g in joining._cut(few, 512)] == [20]
    assert [len(g) for g in joining._cut(many, 512)] == [1000, 1000]
