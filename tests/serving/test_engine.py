"""What the engine promises besides the answers: fairness, priorities, a bounded queue, cancelling, draining, and whose fault it was."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from unmask.models.elastic import Elastic
from unmask.sampling.sampler import NothingUnmasked
from unmask.sampling.selection import move
from unmask.sequence import Batch, Sequence, collate
from unmask.serving.engine import PLACES, Limits
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, Frame, QueueFull
from unmask.step import Prediction

from .tiny import LOOK, ONE_BY_ONE, POOL, Made, alone, asking, drawing, engine, net, request, text, ticks_until

torch.set_num_threads(1)


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
    # Two texts of 48 and 32 positions: the long one gets at most as much of the device meanwhile, rounded up to steps.
    assert ticks_until(served, short) <= 6 and not long.done
    assert ticks_until(served, long) <= 25


def test_a_long_request_is_not_starved_by_short_ones(model: Elastic) -> None:
    served = engine(model, rows=1, live=4)
    long = served.submit(request(text(12, given=18)))
    for tick in range(200):
        served.submit(request(text(2, given=28, seed=tick)))  # as many positions as the long one has
        if long.done:
            break
        served.tick()
    assert long.done and tick <= 2 * 12 * 4  # at least half of its share, a newcomer being up to a step ahead


def test_priority_is_a_share_of_the_device(model: Elastic) -> None:
    served = engine(model, rows=1)
    usual, urgent = (served.submit(request(text(12, given=18), priority=p), watch=True) for p in (0, 2))
    assert ticks_until(served, urgent) <= 12 + 12 / 4 + 1
    assert not usual.done
    served.drain()
    with pytest.raises(ValueError, match="-8 to 8, got 9"):
        request(text(), priority=9)


def test_priority_passes_some_places_of_the_queue_and_no_more(model: Elastic) -> None:
    served = engine(model, live=1, waiting=99)
    first, *usual = (served.submit(request(text(1, given=18))) for _ in range(PLACES + 3))
    urgent = served.submit(request(text(1, given=18), priority=1))
    ticks_until(served, urgent)
    assert sum(handle.done for handle in usual) == 3 - 1 and first.done


def test_a_full_queue_says_when_to_come_back(model: Elastic) -> None:
    fussy = Fussy(model)
    served = engine(fussy, clock=lambda: fussy.now, live=1, waiting=2)
    running = served.submit(request(text(6)))
    served.tick()  # lets it in, so that there are two places to wait
    waiting = [served.submit(request(text(2, seed=i))) for i in (1, 2)]
    served.tick()
    with pytest.raises(QueueFull, match="2 requests are waiting.*; try again in 8.0 s") as full:
        served.submit(request(text(2)))
    assert full.value.retry_after == 4 * 2.0  # four steps are left of the running one
    ticks = int(full.value.retry_after / 2.0) + 1
    for _ in range(ticks):
        served.tick()
    assert running.done
    assert served.submit(request(text(2))).result  # there is room now
    served.drain()
    assert all(handle.done for handle in waiting) and served.metrics().refused == 1


@pytest.mark.parametrize("steps", range(6))
def test_cancelling_frees_the_place_at_every_step(model: Elastic, steps: int) -> None:
    served = engine(model, live=1)
    gone, built = served.submit(request(text(6)), watch=True), text(3, seed=4)
    other = served.submit(request(built, seed=7))
    for _ in range(steps):
        served.tick()
    gone.cancel()
    if steps == 0:
        assert served.metrics().waiting == 1  # what only waits is gone at once
    assert ticks_until(served, other) == 3  # from the very next step on
    with pytest.raises(Cancelled):
        gone.result(0)
    assert torch.equal(other.result(0), alone(model, built, ONE_BY_ONE, 7)[0])
    metrics = served.metrics()
    assert (metrics.cancelled, metrics.finished, metrics.live, metrics.waiting) == (1, 1, 0, 0)
    gone.cancel()
    other.cancel()
    assert other.result(0) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Made):
    """A task that fails when built, or when read."""

    where: str

    def build(self, tokens: Any) -> Sequence:
        if self.where == "build":
            raise ValueError("no such thing; ask for another")
        return self.sequence

    def read(self, sequence: Sequence, tokens: Any) -> torch.Tensor:
        raise ValueError("unreadable")


def lazy(batch: Batch, proposal: Any, window: torch.Tensor, counts: torch.Tensor, at: Any) -> Any:
    return move(torch.zeros_like(window))


def test_what_is_wrong_with_one_request_harms_no_other(model: Elastic) -> None:
    bad = 63
    clean = [text(4, seed=s) for s in range(20) if not (text(4, seed=s).ids == bad).any()][:3]
    poison = dataclasses.replace(clean[0], ids=clean[0].ids.index_fill(0, torch.tensor([2]), bad))
    fussy = Fussy(model, bad)
    served = engine(fussy)
    usual = [served.submit(request(built)) for built in clean]
    plain = request(clean[0])
    wrong = [
        served.submit(dataclasses.replace(plain, task=Broken(sequence=clean[0], where="build"))),
        served.submit(dataclasses.replace(plain, task=Broken(sequence=clean[0], where="read"))),
        served.submit(request(clean[0], dataclasses.replace(ONE_BY_ONE, selection=lazy))),
        served.submit(request(poison)),
    ]
    served.drain()
    for handle, built in zip(usual, clean, strict=True):
        assert torch.equal(handle.result(0), alone(model, built, ONE_BY_ONE, 0)[0])
    for handle, error in zip(
        wrong, ("no such thing", "unreadable", "nothing was unmasked", "out of memory"), strict=True
    ):
        with pytest.raises(Exception, match=error) as caught:
            handle.result(0)
    assert isinstance(caught.value, ForwardFailed) and isinstance(caught.value.__cause__, RuntimeError)
    assert (served.metrics().finished, served.metrics().failed) == (3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadly(Made):
    """A task that ends the thread in which it is built, or read."""

    where: str = "build"

    def build(self, tokens: Any) -> Sequence:
        if self.where == "build":
            raise SystemExit
        return self.sequence

    def read(self, sequence: Sequence, tokens: Any) -> torch.Tensor:
        raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["build", "read"])
def test_when_its_thread_dies_nobody_waits_for_ever(model: Elastic, where: str) -> None:
    served, plain = engine(model), request(text(4))
    deadly = dataclasses.replace(plain, task=Deadly(sequence=text(4), where=where))
    handles = [served.submit(r, watch=True) for r in (deadly, plain, plain)]
    served.start()
    for handle in handles:
        with pytest.raises(Closed, match="start another one"):
            handle.result(60)
    served.close()
    assert served.broken and served.metrics().live == served.metrics().waiting == 0
    with pytest.raises(Closed, match="ask another one"):
        served.submit(plain)


def test_frames_are_the_steps_of_the_plain_sampler(model: Elastic) -> None:
    built, sampler = POOL[7]
    served, steps = engine(model), []
    sampler.sample(model, collate([built], [3]), on_step=steps.append)
    handle, unseen = (served.submit(request(built, sampler, seed=3), watch=w) for w in (True, False))
    served.drain()
    frames: list[Frame] = list(handle.frames())
    assert [(f.number, f.of) for f in frames] == [(0, 5)] + [(s.number, s.of) for s in steps]
    assert torch.equal(frames[0].masked, built.masked) and not frames[-1].masked.any()
    for frame, step in zip(frames[1:], steps, strict=True):
        assert torch.equal(frame.masked, step.batch.masked[0])
        assert torch.equal(frame.ids[~frame.masked], step.batch.ids[0][~frame.masked])
    assert list(unseen.frames()) == []


def test_limits_change_how_forwards_are_shared(model: Elastic) -> None:
    def forwards(**limits: int) -> int:
        served = engine(model, **limits)
        for seed, given in enumerate((18, 20, 22, 24)):
            served.submit(request(text(3, given=given, seed=seed)))
        served.drain()
        assert served.metrics().steps == 12
        return served.metrics().forwards

    assert [forwards(), forwards(rows=2), forwards(live=1)] == [3, 6, 12]
    # Four lengths: none beside another, all side by side, neighbours side by side.
    assert [forwards(multiple=1, stretch=s) for s in (1.0, 2.0, 1.1)] == [12, 3, 6]
    with pytest.raises(ValueError, match="every limit"):
        Limits(rows=0)


def test_pictures_are_looked_at_once(model: Elastic) -> None:
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
    served = engine(fussy, clock=lambda: fussy.now, rows=4)
    for built, sampler in (POOL[1], POOL[1], POOL[7]):
        served.submit(request(built, sampler))
    assert served.metrics().waiting == 3
    served.tick()
    assert served.metrics().live == 3
    served.drain()
    metrics = served.metrics()
    assert (metrics.finished, metrics.steps, metrics.forwards) == (3, 15, len(fussy.rows) == 10 and 10)
    assert metrics.rows == sum(fussy.rows) == 5 * 2 + 5 * 2
    assert metrics.occupancy == 20 / (10 * 4) and metrics.seconds == fussy.now == 20.0
    assert 2.0 <= metrics.step_seconds <= 4.0


def test_many_threads_share_it_and_draining_finishes_what_there_is(model: Elastic) -> None:
    with engine(model) as served:

        def ask(index: int) -> Any:
            return served.submit(request(*POOL[index], seed=index), watch=True)

        with ThreadPoolExecutor(8) as pool:
            handles = list(pool.map(ask, range(len(POOL))))
        assert served.drain(timeout=300)
        for index, handle in enumerate(handles):
            assert torch.equal(handle.result(0), alone(model, *POOL[index], index)[0])
            assert len(list(handle.frames())) >= 2
        with pytest.raises(Closed):
            ask(0)


def test_closing_leaves_nobody_waiting(model: Elastic) -> None:
    served = engine(model, live=1).start()
    handles = [served.submit(request(drawing(seed=s), POOL[7][1])) for s in range(6)]
    assert not served.drain(timeout=0)
    served.close()
    served.close()
    outcomes = [handle.future.exception(0) for handle in handles]
    assert all(o is None or isinstance(o, Closed) for o in outcomes) and isinstance(outcomes[-1], Closed)
    assert served.metrics().live == served.metrics().waiting == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost:
    """A draw whose settings lead to no number."""

    token_sampler: Any

    def __call__(self, *given: Any) -> Any:
        return 1 / 0


def test_settings_that_lead_nowhere_are_to_blame_themselves(model: Elastic) -> None:
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
def test_a_defect_of_the_engine_is_told_to_everybody(model: Elastic, monkeypatch: pytest.MonkeyPatch) -> None:
    served = engine(model)
    monkeypatch.setattr(served, "_due", lambda: 1 / 0)
    served.start()
    with pytest.raises(Closed, match="ZeroDivisionError"):
        served.submit(request(text())).result(60)
    with pytest.raises(Closed):
        served.submit(request(text()))
    served.close()
