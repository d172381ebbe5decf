"""Runs by the clock: the rate follows the time, checkpoints are averaged weights, and a later part goes on where the last one was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.recipe import Optim
from unmask.training import clock as clocks
from unmask.training.clock import Clock
from unmask.training.optim import rate
from unmask.training.parallel import Place
from unmask.training.train import train

from .line import rows
from .tiny import recipe

OPTIM = Optim(lr=2.0, warmup=4, decay_from=0.5, floor=0.1)


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(clocks.time, "monotonic", lambda: self.now)


def made(**fields: float) -> Clock:
    now = clocks.time.monotonic()
    return Clock(save=lambda state, step, share: None, began=now, saved=now, **fields)  # type: ignore[bad-argument-type]


def test_the_rate_follows_the_time_as_it_follows_the_steps_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = made(seconds=1000.0)
    for step in (0, 2, 10, 499, 500, 700, 900, 1000):
        time.now = 100.0 + step
        assert clock.rate(OPTIM, step) == pytest.approx(rate(OPTIM, step, 1000))
    assert clock.over()


def test_a_later_part_has_its_share_and_warms_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = made(seconds=50.0, share=0.75, step=800)
    assert clock.passed() == 0.75 and not clock.over()
    assert clock.rate(OPTIM, 800) == pytest.approx(rate(OPTIM, 750, 1000) / 4)
    time.now += 25
    assert clock.passed() == pytest.approx(0.875)
    assert clock.rate(OPTIM, 850) == pytest.approx(rate(OPTIM, 875, 1000))
    assert clock.steps(900) == 1000
    time.now += 100
    assert clock.passed() == 1 and clock.over()


def test_checkpoints_come_at_intervals_and_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    time, saved = Time(monkeypatch), []
    clock = Clock(seconds=1000.0, save=lambda state, step, share: saved.append((step, share)), every=10.0)
    for step, now in enumerate((101.0, 109.0, 110.0, 115.0, 121.0)):
        time.now = now
        clock.checkpoint(dict, step, now=False)
    clock.checkpoint(dict, 5, now=True)
    assert [step for step, _ in saved] == [2, 4, 5] and saved[0][1] == pytest.approx(0.01)


@pytest.mark.parametrize("fields", [{"seconds": 0.0}, {"seconds": 1.0, "share": 1.0}, {"seconds": 1.0, "share": -0.1}])
def test_a_clock_without_time_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="seconds above 0 and a share in 0..1"):
        made(**fields)


def test_a_run_ends_by_the_clock_and_saves_averages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    saved: list[tuple[dict[str, Tensor], int, float]] = []

    def save(state: dict[str, Tensor], step: int, share: float) -> None:
        saved.append(({name: tensor.clone() for name, tensor in state.items()}, step, share))

    class Ticking:
        """The source of the recipe; every batch after the first one (which is counted, not trained on) takes a second."""

        def __init__(self, source: object) -> None:
            self.source = source

        def __call__(self, step: int) -> object:
            time.now += 1
            return self.source(step)  # type: ignore[not-callable]

    run = dataclasses.replace(recipe(), export=None)
    endless = dataclasses.replace(run.training, steps=10**6, log_every=10**6)
    long = dataclasses.replace(run, source=Ticking(run.source), training=endless)  # type: ignore[bad-argument-type]
    done = train(long, tmp_path, clock=Clock(seconds=6.0, save=save, every=100.0))
    assert [(step, share) for _, step, share in saved] == [(5, 1.0)]  # one of six seconds went to counting
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl"}
    for name, p in done.named_parameters():
        assert torch.equal(p.detach(), saved[0][0][name].cpu())
    assert rows(tmp_path)[-1]["step"] == 5

    train(long, tmp_path, clock=Clock(seconds=4.0, save=save, share=0.6, step=5, every=100.0))
    assert saved[-1][1:] == (8, 1.0) and [row["step"] for row in rows(tmp_path)] == [5, 8]


def test_several_processes_have_several_clocks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one process"):
        train(
            recipe(accumulate=2),
            tmp_path,
            place=Place(rank=0, world=2),
            clock=Clock(seconds=1.0, save=lambda state, step, share: None),
        )
