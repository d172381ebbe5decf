"""Series of runs: shares of a time that counts training alone, whole states, finished parts that are not run again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unmask.checkpoints.store import read_tensors, save_module
from unmask.recipe import Optim, Recipe
from unmask.training import clock as clocks
from unmask.training.clock import Budget
from unmask.training.parallel import Place
from unmask.training.saving import RunInUse, lock
from unmask.training.series import Run, Series, Work, read, run_series
from unmask.training.states import newest
from unmask.training.states import read as read_state

from . import line


class World:
    """Two runs of a line around some work, over a clock that every batch moves by a second. ``fails``: raise at this time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.fails = 0.0, float("inf")
        self.taken: list[tuple[str, int]] = []
        self.worked: list[Path] = []
        monkeypatch.setattr(clocks.time, "monotonic", lambda: self.now)

    def run(self, name: str, share: float) -> Run:
        def source(step: int) -> torch.Tensor:
            self.now += 1
            if self.now >= self.fails:
                raise RuntimeError("the machine is gone")
            self.taken.append((name, step))
            return line.source(step)

        def export(module: nn.Module, folder: Path) -> None:
            save_module(module, folder)

        def recipe(folder: Path) -> Recipe:
            made = line.recipe(steps=10**6, save_every=4)
            return dataclasses.replace(made, name=name, source=source, export=export)

        return Run(name=name, share=share, recipe=recipe)

    def work(self, folder: Path, place: Place) -> None:
        self.now += 1000  # is not counted
        self.worked.append(folder)

    def series(self, seed: int = 0) -> Series:
        parts = (self.run("one", 0.25), Work(name="between", do=self.work), self.run("two", 0.75))
        return Series(name="test", seed=seed, parts=parts, hours=1.0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def at(folder: Path) -> tuple[int, float | None]:
    """Step and seconds of a run's state."""
    path = newest(folder)
    assert path is not None
    return read_state(path).step, read_state(path).seconds


def test_every_run_has_its_share_and_work_has_none(tmp_path: Path, world: World) -> None:
    said: list[str] = []
    run_series(world.series(), tmp_path, seconds=80, device="cpu", say=said.append)
    # The first batch, whose operations are counted, takes no time of a run; a run ends with the first update after its time.
    assert at(tmp_path / "one") == (21, 21) and at(tmp_path / "two") == (61, 61)
    assert world.worked == [tmp_path] and said[1] == "part 2 of 3: between"
    assert read(world.series(), tmp_path) == read(world.series(), tmp_path)
    assert json.loads((tmp_path / "chain.json").read_text())["done"] == ["one", "between", "two"]
    assert read_tensors(tmp_path / "one", "model") and read_tensors(tmp_path / "two", "model")
    world.taken.clear()
    run_series(world.series(), tmp_path, device="cpu")
    assert not world.taken and len(world.worked) == 1


def test_a_series_goes_on_at_its_step_and_counts_training_alone(tmp_path: Path, world: World) -> None:
    world.fails = 1051
    with pytest.raises(RuntimeError, match="gone"):
        run_series(world.series(), tmp_path, seconds=80, device="cpu")
    step, seconds = at(tmp_path / "two")
    assert step == 24 and seconds == 24 and len(world.worked) == 1
    world.now, world.fails, world.taken = 10**6, float("inf"), []  # the next day
    run_series(world.series(), tmp_path, device="cpu")  # with the time given before
    assert world.taken[:3] == [("two", 24), ("two", 24), ("two", 25)]  # counted, then trained on
    assert at(tmp_path / "two") == (61, 61) and len(world.worked) == 1
    rows = [json.loads(row)["step"] for row in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == 61


def test_more_time_is_for_the_runs_to_come(tmp_path: Path, world: World) -> None:
    world.fails = 1030
    with pytest.raises(RuntimeError):
        run_series(world.series(), tmp_path, seconds=80, device="cpu")
    world.fails = float("inf")
    run_series(world.series(), tmp_path, seconds=160, device="cpu")
    assert at(tmp_path / "one")[0] == 21 and at(tmp_path / "two")[1] == 121


def test_a_folder_of_another_series_is_refused(tmp_path: Path, world: World) -> None:
    run_series(world.series(), tmp_path, seconds=8, device="cpu")
    with pytest.raises(ValueError, match="holds a run of 'test' \\(seed 0\\), not of 'test' \\(seed 1\\)"):
        run_series(world.series(seed=1), tmp_path, device="cpu")
    (tmp_path / "chain.json").write_text('{"chain": "test", "seed": 0}')
    with pytest.raises(ValueError, match="is damaged"):
        run_series(world.series(), tmp_path, device="cpu")
    with lock(tmp_path / "one"), lock(tmp_path), pytest.raises(RunInUse):
        run_series(world.series(), tmp_path, device="cpu")


def test_parts_have_different_names() -> None:
    work = Work(name="same", do=lambda folder, place: None)
    with pytest.raises(ValueError, match="different names, got same, same"):
        Series(name="test", seed=0, parts=(work, work), hours=1.0)


def test_all_processes_follow_the_time_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Place):
        def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            assert float(tensor) == 0  # what this process adds
            return tensor + 0.75

    now = [0.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now[0])
    first, second = Budget(seconds=100), Budget(seconds=100)
    for budget in (first, second):
        budget.start(25)
    now[0] = 50.0
    first.agree(Place())
    second.agree(Second(rank=1, world=2))
    optim = Optim(lr=2.0, warmup=4, decay_from=0.5, floor=0.1)
    assert first.share == second.share == 0.75 and not first.over()
    assert first.rate(optim, 100) == second.rate(optim, 100) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert first.rate(optim, 0) == pytest.approx(first.rate(optim, 100) / 4)
    assert first.steps(300) == 400
    now[0] = 75.0
    first.agree(Place())
    assert first.over() and first.steps(300) == 300


def test_a_budget_needs_time() -> None:
    with pytest.raises(ValueError, match="above 0 seconds, got 0"):
        Budget(seconds=0)
