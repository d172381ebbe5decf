"""The engine beyond its results: fairness, priority, a bounded queue, cancellation, draining, and which request an error belongs to."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from unmask.models.elastic import Elastic
from unmask.models.layout import lay_out
from unmask.sampling.cache import PrefixCache
from unmask.sampling.sampler import NothingUnmasked
from unmask.sampling.selection import move
from unmask.sequence import Batch, collate
from unmask.serving.batching import join, part_of
from unmask.serving.engine import Limits
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, QueueFull
from unmask.step import Prediction

from .tiny import (
    DRAW,
    LOOK,
    ONE_BY_ONE,
    POOL,
    alone,
    asking,
    canvases,
    drawing,
    editing,
    engine,
    net,
    request,
    text,
    ticks_until,
)

torch.set_num_threads(1)
KEPT = dataclasses.replace(ONE_BY_ONE, cache=PrefixCache())


@pytest.fixture(scope="module")
def model() -> Elastic:
    return net()


class Fussy:
    """A model that fails wherever a row holds the id ``bad``; each forward takes 2 seconds of ``now``."""

    def __init__(self, inner: Elastic, bad: int = -1) -> None:
        self.inner, self.bad, self.now, self.rows = inner, bad, 0.0, []
        self.embed = inner.embed

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.inner.features(pixels)

    def __call__(self, batch: Batch, **more: Any) -> Prediction:
        self.now += 2.0
        self.rows.append(batch.rows)
        if (batch.ids == self.bad).any():
            raise RuntimeError("out of memory, say")
        return self.inner(batch, **more)


def test_a_short_request_passes_a_long_one(model: Elastic) -> None:
    served = engine(model, rows=1)
    long = served.submit(request(text(30, given=18)))
    for _ in range(5):
        served.tick()
    short = served.submit(request(text(3, given=18)))
    # Texts of 48 and 32 positions: meanwhile the long one gets at most as much of the device, rounded up to steps.
    assert ticks_until(served, short) <= 6 and not long.done
    assert ticks_until(served, long) <= 25


def test_a_long_request_is_not_starved_by_short_ones(model: Elastic) -> None:
    served = engine(model, rows=1, running=4)
    long = served.submit(request(text(12, given=18)))
    for tick in range(200):
        served.submit(request(text(2, given=28, seed=tick)))  # as many positions as the long one
        if long.done:
            break
        served.tick()
    # It may be parked until the others have had what it costs, and then has its share, where a newcomer may be a step ahead.
    assert long.done and tick <= 3 * 12 * 4


def test_priority_is_a_share_of_the_device(model: Elastic) -> None:
    served = engine(model, rows=1)
    usual, urgent = (served.submit(request(text(12, given=18), priority=p), row=0) for p in (0, 2))
    assert ticks_until(served, urgent) <= 12 + 12 / 4 + 1
    assert not usual.done
    served.drain()
    with pytest.raises(ValueError, match="-8 to 8, got 9"):
        request(text(), priority=9)


def test_each_level_of_priority_halves_what_a_cost_counts_in_the_queue(model: Elastic) -> None:
    served = engine(model, running=1)
    first = served.submit(request(text(1, given=18)))
    long, short = (served.submit(request(text(tokens, given=28 - tokens))) for tokens in (8, 4))
    urgent = served.submit(request(text(8, given=20), priority=2))  # eight steps that count as two
    assert [served.position(handle) for handle in (first, urgent, short, long)] == [1, 2, 3, 4]
    ticks_until(served, urgent)
    assert first.done and not short.done and served.position(short) == 1


def test_a_full_queue_says_when_to_retry(model: Elastic) -> None:
    fussy = Fussy(model)
    served = engine(fussy, clock=lambda: fussy.now, running=1, queued=2)
    running = served.submit(request(text(6)))
    served.tick()  # it leaves the queue, which then has two free places
    queued = [served.submit(request(text(2, seed=i))) for i in (1, 2)]
    served.tick()
    with pytest.raises(QueueFull, match="the queue is full with 2 requests; try again in 8.0 s") as full:
        served.submit(request(text(2)))
    assert full.value.retry_after == 4 * 2.0  # the running request has four steps left
    ticks = int(full.value.retry_after / 2.0) + 1
    for _ in range(ticks):
        served.tick()
    assert running.done
    last = served.submit(request(text(2)))  # now the queue has a free place
    served.drain()
    assert all(handle.done for handle in [*queued, last]) and served.metrics().refused == 1


@pytest.mark.parametrize("steps", range(6))
def test_cancellation_frees_the_place_at_every_step(model: Elastic, steps: int) -> None:
    served = engine(model, running=1)
    gone, built = served.submit(request(text(6)), row=0), text(7, seed=4)
    other = served.submit(request(built, seed=7))
    for _ in range(steps):
        served.tick()
    gone.cancel()
    if steps == 0:
        assert served.metrics().queued == 1  # a queued request ends at once
    assert ticks_until(served, other) == 7  # it runs from the very next step on
    with pytest.raises(Cancelled):
        gone.result(0)
    assert torch.equal(other.result(0).ids, alone(model, built, ONE_BY_ONE, 7)[0])
    metrics = served.metrics()
    assert (metrics.cancelled, metrics.finished, metrics.running, metrics.queued) == (1, 1, 0, 0)
    gone.cancel()
    other.cancel()
    assert other.result(0) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raising:
    """Early stopping that raises ``error`` when the sampler starts (``call`` 0), or after step ``call``."""

    error: BaseException
    call: int
    calls: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, batch: Batch) -> Batch:
        self.calls.append(len(self.calls))
        if len(self.calls) > self.call:
            raise self.error
        return batch


def raising(error: BaseException, call: int) -> Any:
    return dataclasses.replace(ONE_BY_ONE, stopping=Raising(error=error, call=call))


def lazy(batch: Batch, proposal: Any, window: torch.Tensor, counts: torch.Tensor, at: Any) -> Any:
    return move(torch.zeros_like(window))


def test_an_error_of_one_request_ends_no_other(model: Elastic) -> None:
    bad = 63
    clean = [text(4, seed=s) for s in range(20) if not (text(4, seed=s).ids == bad).any()][:3]
    poison = dataclasses.replace(clean[0], ids=clean[0].ids.index_fill(0, torch.tensor([2]), bad))
    fussy = Fussy(model, bad)
    served = engine(fussy)
    usual = [served.submit(request(built)) for built in clean]
    wrong = [
        served.submit(request(clean[0], raising(ValueError("no start"), 0))),
        served.submit(request(clean[0], raising(ValueError("no second step"), 2))),
        served.submit(request(clean[0], dataclasses.replace(ONE_BY_ONE, selection=lazy))),
        served.submit(request(poison)),
    ]
    served.drain()
    for handle, built in zip(usual, clean, strict=True):
        assert torch.equal(handle.result(0).ids, alone(model, built, ONE_BY_ONE, 0)[0])
    for handle, error in zip(
        wrong, ("no start", "no second step", "nothing was unmasked", "out of memory"), strict=True
    ):
        with pytest.raises(Exception, match=error) as caught:
            handle.result(0)
    assert isinstance(caught.value, ForwardFailed) and isinstance(caught.value.__cause__, RuntimeError)
    assert (served.metrics().finished, served.metrics().failed) == (3, 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("call", [0, 1])
def test_when_its_thread_dies_every_request_ends(model: Elastic, call: int) -> None:
    """SystemExit is no error of a request, so it ends the thread: while a request starts, and after a step."""
    served, plain = engine(model), request(text(4))
    deadly = request(text(4), raising(SystemExit(), call))
    handles = [served.submit(r, row=0) for r in (deadly, plain, plain)]
    served.start()
    for handle in handles:
        with pytest.raises(Closed, match="start another one"):
            handle.result(60)
    served.close()
    assert served.broken and served.metrics().running == served.metrics().queued == 0
    with pytest.raises(Closed, match="ask another one"):
        served.submit(plain)


def test_step_events_are_the_steps_of_the_plain_sampler(model: Elastic) -> None:
    built, sampler = POOL[7]
    served, steps = engine(model), []
    sampler.sample(model, collate([built], [3]), on_step=steps.append)
    handle, silent = (served.submit(request(built, sampler, seed=3), row=row) for row in (2, None))
    served.drain()
    events = list(handle.events())
    assert [(e.number, e.of) for e in events] == [(0, 5)] + [(s.number, s.of) for s in steps]
    assert {e.row for e in events} == {2} and all(e.sequence.spans == built.spans for e in events)
    assert torch.equal(events[0].sequence.masked, built.masked) and not events[-1].sequence.masked.any()
    for event, step in zip(events[1:], steps, strict=True):
        now = event.sequence
        assert torch.equal(now.masked, step.batch.masked[0])
        assert torch.equal(now.ids[~now.masked], step.batch.ids[0][~now.masked])
    assert list(silent.events()) == []


def test_limits_change_how_forwards_are_shared(model: Elastic) -> None:
    def forwards(**limits: int) -> int:
        served = engine(model, **limits)
        for seed, given in enumerate((18, 20, 22, 24)):
            served.submit(request(canvases(4, given=given, seed=seed), KEPT))
        served.drain()
        assert served.metrics().steps == 16
        return served.metrics().forwards

    assert [forwards(), forwards(rows=2), forwards(running=1)] == [4, 8, 16]
    # The first steps have four lengths: each in a forward of its own, all in one, neighbours in one. Later ones compute the answer alone,
    # and go out of turn because they need little.
    assert [forwards(multiple=1, stretch=s) for s in (1.0, 2.0, 1.1)] == [10, 4, 6]
    with pytest.raises(ValueError, match="every limit"):
        Limits(rows=0)


def test_a_forward_has_fewer_rows_on_a_cpu(model: Elastic) -> None:
    """A short request waits for the forward that is under way."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert Limits().rows_on(cpu) < Limits().rows_on(gpu) and Limits(rows=3).rows_on(cpu) == 3
    assert engine(model).scheduler.rows == Limits().rows_on(cpu) and engine(model, rows=3).scheduler.rows == 3


def test_tasks_of_any_shape_share_forwards(model: Elastic) -> None:
    """A picture, an edit, an answer and a text have other lengths, other code positions, and different tokens to score."""

    def forwards(*, idle: int) -> int:
        served = engine(model, idle=idle)
        for built, sampler in (POOL[7], POOL[10], POOL[5], POOL[1]):
            served.submit(request(built, sampler))
        served.drain()
        return served.metrics().forwards

    assert forwards(idle=10**6) == 6 + 3, "as many as the longest request has steps, and short ones with few others"
    assert forwards(idle=0) == 5 + 6, "text and codes have forwards of their own"


def test_how_rows_lie_is_computed_when_other_requests_come_together(
    model: Elastic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every step, although rows of different lengths are padded and have features of their own."""
    made: list[int] = []

    def counted(*given: Any) -> Any:
        made.append(1)
        return lay_out(*given)

    monkeypatch.setattr("unmask.models.elastic.lay_out", counted)
    served = engine(model)
    requests = [drawing(given=17, seed=1), drawing(given=26, seed=2), editing(seed=1), editing(seed=2)]
    handles = [served.submit(request(built, DRAW)) for built in requests]
    served.drain()
    assert len(made) <= 3 < served.metrics().forwards == 6
    assert all(torch.equal(h.result().ids, alone(model, r, DRAW, 0)[0]) for h, r in zip(handles, requests, strict=True))


def test_a_request_alone_in_a_forward_is_not_copied(model: Elastic) -> None:
    run = DRAW.start(collate([drawing()], [0]))
    assert run.query is not None and join([part_of(run.query, 4)]) is run.query


def test_every_picture_is_encoded_once(model: Elastic) -> None:
    def counted(**limits: int) -> tuple[int, int, int]:
        served = engine(model, **limits)
        for seed in (0, 2, 1, 4):  # even seeds show one picture, odd ones another
            served.submit(request(asking(seed=seed)))
        served.drain()
        metrics = served.metrics()
        return metrics.feature_hits, metrics.feature_misses, metrics.feature_bytes

    one = LOOK * model.config.width * 4
    assert counted() == (2, 2, 2 * one)
    assert counted(feature_bytes=one) == (1, 3, one)
    assert counted(feature_bytes=0) == (0, 4, 0)


def test_metrics_count_what_happened(model: Elastic) -> None:
    fussy = Fussy(model)
    served = engine(fussy, clock=lambda: fussy.now, rows=4, idle=0)
    for built, sampler in (POOL[1], POOL[1], POOL[7]):
        served.submit(request(built, sampler))
    assert served.metrics().queued == 3
    served.tick()
    assert served.metrics().running == 3
    served.drain()
    metrics = served.metrics()
    assert (metrics.finished, metrics.steps, metrics.forwards) == (3, 15, len(fussy.rows) == 10 and 10)
    assert metrics.rows == sum(fussy.rows) == 5 * 2 + 5 * 2
    assert metrics.occupancy == 20 / (10 * 4) and metrics.seconds == fussy.now == 20.0
    assert 2.0 <= metrics.step_seconds <= 4.0


def test_many_threads_share_it_and_draining_finishes_all_requests(model: Elastic) -> None:
    with engine(model) as served:

        def submit(index: int) -> Any:
            return served.submit(request(*POOL[index], seed=index), row=0)

        with ThreadPoolExecutor(8) as pool:
            handles = list(pool.map(submit, range(len(POOL))))
        assert served.drain(timeout=300)
        for index, handle in enumerate(handles):
            assert torch.equal(handle.result(0).ids, alone(model, *POOL[index], index)[0])
            assert len(list(handle.events())) >= 2
        with pytest.raises(Closed):
            submit(0)


def test_closing_ends_every_request(model: Elastic) -> None:
    served = engine(model, running=1).start()
    handles = [served.submit(request(drawing(seed=s), POOL[7][1])) for s in range(6)]
    assert not served.drain(timeout=0)
    served.close()
    served.close()
    outcomes = [handle.future.exception(0) for handle in handles]
    assert all(o is None or isinstance(o, Closed) for o in outcomes) and isinstance(outcomes[-1], Closed)
    assert served.metrics().running == served.metrics().queued == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost:
    """A token sampler whose settings lead to no finite number."""

    token_sampler: Any

    def __call__(self, *given: Any) -> Any:
        return 1 / 0


def test_arithmetic_errors_are_named_as_the_samplers(model: Elastic) -> None:
    served = engine(model)
    lost = served.submit(
        request(text(3), dataclasses.replace(ONE_BY_ONE, token_sampler=Lost(token_sampler=ONE_BY_ONE.token_sampler)))
    )
    fine = served.submit(request(text(3)))
    served.drain()
    with pytest.raises(NothingUnmasked, match="division by zero"):
        lost.result(0)
    assert fine.result(0) is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_the_engine_ends_every_request(model: Elastic, monkeypatch: pytest.MonkeyPatch) -> None:
    served = engine(model)
    monkeypatch.setattr(served.scheduler, "choose", lambda: 1 / 0)
    served.start()
    with pytest.raises(Closed, match="ZeroDivisionError"):
        served.submit(request(text())).result(60)
    with pytest.raises(Closed):
        served.submit(request(text()))
    served.close()
