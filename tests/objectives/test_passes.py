"""Batches that are masked and sorted into passes by their source: the loss, terms and gradients of the batches themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from unmask.data.ahead import Ahead, stop_workers
from unmask.objectives.masked import InverseTime, Masked, Plain, Together
from unmask.objectives.masking import Masking
from unmask.objectives.passes import Passes
from unmask.rng import generator
from unmask.sequence import Batch, Sequence, Span, collate
from unmask.training.device import move
from unmask.training.losses import size

from .test_joining import MASK, OBJECTIVE, batches, made

SEED, STEP = 3, 7
_KNOWN = "seen"  # its features are known already


@dataclasses.dataclass(frozen=True)
class Given:
    """The batches of ``test_joining`` that a worker can mask, with pictures as files have them: whole numbers of 255."""

    def __call__(self, step: int) -> dict[str, Batch]:
        found = {name: batch for name, batch in batches().items() if name != _KNOWN}
        return {name: _in_bytes(batch) for name, batch in found.items()}


def _in_bytes(batch: Batch) -> Batch:
    return batch if batch.pixels is None else batch.replace(pixels=(batch.pixels * 255).round() / 255)


def together() -> Together:
    """Those of ``test_joining``, with the plain mean."""
    found = [(name, task, weight) for name, task, weight in OBJECTIVE.objectives if name != _KNOWN]
    return Together(objectives=tuple((n, dataclasses.replace(task, weight=Plain()), w) for n, task, w in found))  # type: ignore[type-var]


def masking(overhead: int = 64) -> Masking:
    return Masking(source=Given(), objective=together(), mask_id=MASK, seed=SEED, overhead=overhead)


def gradients(batch: dict[str, Batch] | Passes) -> tuple[dict[str, float], dict[str, int], dict[str, Tensor]]:
    model = made()
    loss = together()(model, batch, generator("objective", SEED, STEP))
    loss.total.backward()
    terms = {name: float(value.detach()) for name, value in loss.terms.items()} | {"total": float(loss.total.detach())}
    return terms, loss.counts, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overhead", [0, 64, 10**6])
def test_terms_and_gradients_are_those_of_the_batches(overhead: int) -> None:
    passes = masking(overhead)(STEP)
    wanted, counts, slow = gradients(Given()(STEP))
    terms, tokens, fast = gradients(passes)
    assert terms == pytest.approx(wanted, rel=1e-5) and tokens == counts and list(terms) != []
    assert passes.pixels is not None and passes.pixels.dtype == torch.uint8
    assert slow.keys() == fast.keys()
    largest = max(float(g.norm()) for g in slow.values())
    assert all(float((slow[n] - fast[n]).norm()) <= 1e-5 * float(slow[n].norm()) + 1e-7 * largest for n in slow)


def test_their_size_is_that_of_the_rows() -> None:
    once = [(n, dataclasses.replace(task, complementary=False), w) for n, task, w in together().objectives]  # type: ignore[type-var]
    passes = dataclasses.replace(masking(), objective=Together(objectives=tuple(once)))(STEP)
    assert size(passes) == size(Given()(STEP))


def test_more_overhead_means_fewer_passes() -> None:
    assert len(masking(10**6)(STEP).passes) < len(masking(0)(STEP).passes)


def test_a_worker_makes_the_same_passes_and_they_move() -> None:
    try:
        got, wanted = Ahead(source=masking(), workers=1)(STEP), masking()(STEP)
    finally:
        stop_workers()
    assert gradients(move(got, torch.device("cpu")))[0] == gradients(wanted)[0]
    there = move(wanted, torch.device("meta"))
    assert {t.device.type for p in there.passes for t in (p.predict, p.picture, *p.terms.values())} == {"meta"}


def test_pictures_that_are_no_bytes_keep_their_numbers() -> None:
    @dataclasses.dataclass(frozen=True)
    class Floats:
        def __call__(self, step: int) -> dict[str, Batch]:
            return {"edit": batches()["edit"]}

    pixels = dataclasses.replace(masking(), source=Floats())(STEP).pixels
    assert pixels is not None and pixels.dtype == torch.float32


def test_what_workers_cannot_mask_is_refused() -> None:
    weighted = Together(objectives=(("draw", Masked(weight=InverseTime()), 1.0),))
    with pytest.raises(ValueError, match="draw is not a plain mean over masked tokens; train it with 0 workers"):
        dataclasses.replace(masking(), objective=weighted)(STEP)
    seen = Together(objectives=((_KNOWN, Masked(), 1.0),))

    @dataclasses.dataclass(frozen=True)
    class Seen:
        def __call__(self, step: int) -> dict[str, Batch]:
            return {_KNOWN: batches()[_KNOWN]}

    with pytest.raises(ValueError, match="features that are known already"):
        dataclasses.replace(masking(), source=Seen(), objective=seen)(STEP)


def test_a_model_whose_pictures_have_different_numbers_of_features_is_refused() -> None:
    model = made()
    assert model.vision is not None
    model.vision.any_size = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="does not encode all pictures to as many features; train it with 0 workers"):
        together()(model, masking()(STEP), generator("unused"))


def test_nothing_to_score_is_a_zero_gradient() -> None:
    @dataclasses.dataclass(frozen=True)
    class Fixed:
        def __call__(self, step: int) -> dict[str, Batch]:
            span = Span(name="prompt", kind=0, start=0, stop=4)
            row = Sequence(ids=torch.arange(4) + 2, masked=torch.zeros(4, dtype=torch.bool), spans=(span,))
            return {"draw": collate([row], range(1))}

    passes = dataclasses.replace(masking(), source=Fixed())(STEP)
    terms, counts, found = gradients(passes)
    assert passes.passes == () and terms == {"total": 0.0} and not counts
    assert all(not g.any() for g in found.values())
