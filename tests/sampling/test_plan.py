"""Runs that are planned before their first step draw what runs without a plan draw, and what they promise is checked at their end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.fake import FakeDenoiser
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import NothingPredicted, NothingUnmasked, Sampler
from unmask.sampling.schedule import Cosine, Shift
from unmask.sampling.selection import Confident, InOrder, MaskGit, PerSpan, RandomOrder, move
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical, GumbelText
from unmask.sequence import Batch, Kind, Span, collate
from unmask.sequence import Sequence as Tokens
from unmask.step import Move, Prediction, Progress, Proposal

FORESEEABLE = [
    Confident(),
    Confident(noise=Linear(start=4.0, end=0.0)),
    MaskGit(temperature=0.5),
    InOrder(order=tuple(stratified(8))),
    RandomOrder(),
    PerSpan(selection=Confident()),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unplanned:
    """A selection without its promise, and with its own wish."""

    selection: Any

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        ask: Callable[..., Tensor] | None = getattr(self.selection, "predict", None)
        return ask(batch, block, counts) if ask else None

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return self.selection(batch, proposal, block, counts, progress)


def pictures(given: tuple[int, ...]) -> Batch:
    """Rows with another number of given codes each, so that they end at different steps."""
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=5),
        Span(name="image", kind=Kind.CODE, start=5, stop=69, grid=(8, 8), fold=2, writable=True),
    )
    rows = [Tokens(ids=torch.full((69,), 9), masked=torch.arange(69) >= 5 + n, spans=spans) for n in given]
    return collate(rows, list(range(len(given))))


def sampler(selection: Any, token_sampler: Any = None) -> Sampler:
    return Sampler(
        schedule=Shift(steps=6, shift=3.0),
        token_sampler=token_sampler or Categorical(temperature=Linear(start=1.0, end=0.2)),
        selection=selection,
        guidance=ClassifierFree(scale=2.0, drop={"prompt"}, null_id=7, interval=(0.3, 0.9)),
    )


@pytest.fixture(scope="module")
def net() -> Elastic:
    made = Elastic(SIZES["tiny"], mask_id=7).eval()
    init(made, generator("plan"))
    return made


@pytest.mark.parametrize("selection", FORESEEABLE, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("given", [(0,), (0, 0), (0, 40, 64)])
def test_a_plan_changes_no_bit_of_any_step(net: Elastic, selection: Any, given: tuple[int, ...]) -> None:
    runs = []
    for one in (selection, Unplanned(selection=selection)):
        steps: list[Batch] = []
        run = sampler(one).start(pictures(given))
        assert (run.agenda.plan is not None) == (one is selection)
        sampler(one).sample(net, pictures(given), on_step=lambda step, steps=steps: steps.append(step.batch))
        runs.append(steps)
    planned, unplanned = runs
    assert len(planned) == len(unplanned) > 1
    for a, b in zip(planned, unplanned, strict=True):
        for name in ("ids", "masked", "clock", "time", "region", "score", "order"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_noise_in_double_precision_is_the_same_with_a_plan(net: Elastic) -> None:
    """A temperature that float32 rounds: the noise of ``GumbelText`` is float64."""
    text = GumbelText(temperature=0.3)
    found = [
        sampler(one, text).sample(net, pictures((0, 40))).ids for one in (Confident(), Unplanned(selection=Confident()))
    ]
    assert torch.equal(*found)


def test_early_stopping_is_not_planned() -> None:
    stopping = dataclasses.replace(sampler(Confident()), stopping=EndOfTurn(ids=(3,)))
    assert stopping.start(pictures((0,))).agenda.plan is None


def test_a_row_without_masked_tokens_is_never_written(net: Elastic) -> None:
    batch = pictures((64, 0))
    done = sampler(Confident()).sample(net, batch)
    assert torch.equal(done.ids[0], batch.ids[0]) and int(done.clock[0]) == 0
    assert not sampler(Confident()).sample(net, pictures((64,))).masked.any()


def test_a_token_that_was_never_scored_is_named_at_the_end() -> None:
    """A network that scores text alone, asked for codes."""
    fake = FakeDenoiser()

    def texts_only(batch: Batch, *, predict: Tensor | None = None, reuse: Any = None) -> Prediction:
        found = fake(batch, predict=predict)
        return Prediction(scored={kind: s for kind, s in found.scored.items() if kind == Kind.TEXT})

    with pytest.raises(NothingPredicted, match="row 0, token 5 "):
        sampler(Confident()).sample(texts_only, pictures((0,)))


def test_a_selection_that_breaks_its_promise_is_named(net: Elastic) -> None:
    class Lazy:
        foreseeable = True

        def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Any) -> Move:
            return move(torch.zeros_like(block))

    with pytest.raises(NothingUnmasked, match="Lazy is foreseeable"):
        dataclasses.replace(sampler(Lazy()), schedule=Cosine(steps=3)).sample(net, pictures((0,)))
