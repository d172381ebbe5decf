"""The unified process in a world of three tokens: two words, and one code or the token that announces it."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_elastic import make
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, Policy, Uniform
from unmask.objectives.masked import Masked
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

EXP = 7
ROWS = 20_000


def row(collapsed: bool) -> Sequence:
    """Two words and a picture of one code, or two words and [exp]."""
    text = {"name": "answer", "kind": Kind.TEXT, "writable": True}
    code = Span(name="image", kind=Kind.CODE, start=2, stop=3, grid=(1, 1), writable=True)
    spans = (Span(start=0, stop=3, **text),) if collapsed else (Span(start=0, stop=2, **text), code)  # type: ignore[arg-type]
    return Sequence(ids=torch.tensor([1, 2, EXP]), masked=torch.zeros(3, dtype=torch.bool), spans=spans)


def rows(collapsed: bool, count: int = ROWS) -> Batch:
    return collate([row(collapsed)] * count, range(count))


def rates(noisy: Batch) -> list[float]:
    """How often each of the three is masked at random: what was masked only so that something is has an infinite weight."""
    assert noisy.weight is not None
    return (noisy.masked & noisy.weight.isfinite()).float().mean(0).tolist()


@pytest.mark.parametrize(("at", "time"), [(0.5, 0.5), (0.5, 0.8), (0.25, 0.4), (0.75, 1.0)])
def test_at_t_exp_and_above_the_picture_is_one_token(at: float, time: float) -> None:
    process = Collapsing(at=at, announce=EXP)
    noisy = process.corrupt(rows(True), torch.full((ROWS,), time), generator("above", time))
    wanted = [time, time, (time - at) / (1 - at)]
    assert rates(noisy) == pytest.approx([0.999 * t + 1e-3 for t in wanted], abs=0.015)


@pytest.mark.parametrize(("at", "time"), [(0.5, 0.1), (0.5, 0.4), (0.25, 0.2), (0.75, 0.74)])
def test_below_it_words_and_codes_have_rates_of_their_own(at: float, time: float) -> None:
    process = Collapsing(at=at, announce=EXP)
    noisy = process.corrupt(rows(False), torch.full((ROWS,), time), generator("below", time))
    assert rates(noisy) == pytest.approx([0.999 * t + 1e-3 for t in (time, time, time / at)], abs=0.015)


@pytest.mark.parametrize("policy", [Uniform(), Cosine()])
@pytest.mark.parametrize("at", [0.3, 0.6])
def test_shares_and_times_are_those_of_one_time_drawn_first(policy: Policy, at: float) -> None:
    process = Collapsing(at=at, announce=EXP, policy=policy)
    drawn = policy(torch.rand(ROWS, generator=generator("first")))
    assert process.share() == pytest.approx(float((drawn >= at).float().mean()), abs=0.015)
    for collapsed in (True, False):
        time = process.times(rows(collapsed), generator("times", at))[:, 0]  # that of a word is the row's
        wanted = drawn[(drawn >= at) == collapsed]
        assert bool(((time >= at) == collapsed).all())
        parts = torch.tensor([0.1, 0.5, 0.9])
        torch.testing.assert_close(time.quantile(parts), wanted.quantile(parts), atol=0.02, rtol=0)


def test_rows_of_both_forms_stand_in_one_batch_and_plain_words_have_any_time() -> None:
    plain = Sequence(
        ids=torch.tensor([1, 2]),
        masked=torch.zeros(2, dtype=torch.bool),
        spans=(Span(name="answer", kind=Kind.TEXT, start=0, stop=2, writable=True),),
    )
    batch = collate([row(True), row(False), plain] * 2000, range(6000))
    time = Collapsing(at=0.5, announce=EXP).times(batch, generator("both"))[:, 0].reshape(-1, 3)
    assert bool((time[:, 0] >= 0.5).all()) and bool((time[:, 1] < 0.5).all())
    assert 0.4 < float((time[:, 2] < 0.5).float().mean()) < 0.6


def test_it_is_the_corruption_of_an_objective() -> None:
    loss = Masked(corruption=Collapsing(at=0.5, announce=EXP))(make(), rows(True, 8), generator("loss"))
    assert set(loss.terms) == {"text"} and bool(loss.total.isfinite())


@pytest.mark.parametrize("at", [0.0, 1.0, -1.0, float("nan")])
def test_t_exp_lies_inside(at: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Collapsing(at=at, announce=EXP)


def test_a_policy_that_never_reaches_t_exp_is_refused() -> None:
    with pytest.raises(ValueError, match="change t_exp"):
        Collapsing(at=0.9, announce=EXP, policy=lambda u: u * 0.5).times(rows(True, 2), generator("none"))
