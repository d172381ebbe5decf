"""Chains of runs: shares of the time, checkpoints in small files, and a chain that goes on wherever it was stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unmask.checkpoints.store import load_module, read_tensors, save_module
from unmask.recipe import Optim, Recipe, Training
from unmask.training import chain as chains
from unmask.training import clock as clocks
from unmask.training.chain import Chain, Done, Stage, read, run_chain
from unmask.training.saving import RunInUse, lock

from . import line


class World:
    """Two stages of a line that share a file, over a clock that every batch moves by a second. ``fails``: raise at this time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shares: tuple[float, float] = (0.25, 0.75)) -> None:
        self.now, self.fails, self.shares = 0.0, float("inf"), shares
        self.finished: list[tuple[str, float]] = []
        self.began: list[tuple[str, bool]] = []
        self.taken: list[tuple[str, int]] = []
        for module in (chains, clocks):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def stage(self, name: str, share: float, file: str) -> Stage:
        def source(step: int) -> torch.Tensor:
            self.now += 1
            if self.now >= self.fails:
                raise RuntimeError("the machine is gone")
            self.taken.append((name, step))
            return line.source(step)

        def recipe(folder: Path, resumed: bool) -> Recipe:
            self.began.append((name, resumed))

            def model() -> nn.Module:
                there = (folder / f"{file}.safetensors").exists()
                return load_module(line.model(), folder, name=file) if there else line.model()

            def export(module: nn.Module, _: Path) -> None:
                save_module(module, folder, name=file, dtype=torch.bfloat16)

            return Recipe(
                name=name,
                model=model,
                source=source,
                objective=line.objective,
                optim=Optim(lr=0.01, warmup=1),
                training=Training(steps=10**6, bf16=False),
                export=export,
            )

        return Stage(name=name, share=share, file=file, recipe=recipe)

    def chain(self, seed: int = 0) -> Chain:
        first, second = self.shares
        stages = (self.stage("one", first, "one"), self.stage("two", second, "net"))
        return Chain(name="test", seed=seed, stages=stages, finish=self.finish, reserve=0.2)

    def finish(self, folder: Path, device: str, seconds: float) -> None:
        self.finished.append((device, seconds))


def steps(folder: Path) -> dict[str, int]:
    return {name: fields["step"] for name, fields in json.loads((folder / "chain.json").read_text())["stages"].items()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_every_stage_has_its_share_of_the_time(tmp_path: Path, world: World) -> None:
    run_chain(world.chain(), tmp_path, seconds=100, device="cpu")
    found = read(world.chain(), tmp_path)
    assert {name: done.share for name, done in found.items()} == {"one": 1.0, "two": 1.0}
    assert found["one"].seconds == 20 and found["two"].seconds == 60
    assert steps(tmp_path) == {"one": 19, "two": 59}  # one batch of each is counted, not trained on
    assert world.finished == [("cpu", 20)]
    assert {p.name for p in tmp_path.iterdir()} == {"chain.json", "one", "two", "one.safetensors", "net.safetensors"}
    assert {str(t.dtype) for t in read_tensors(tmp_path, "net").values()} == {"torch.bfloat16"}


def test_a_chain_goes_on_where_it_was_stopped(tmp_path: Path, world: World) -> None:
    world.fails = 101  # stage two began at 40 and has saved at 85
    with pytest.raises(RuntimeError, match="gone"):
        run_chain(world.chain(), tmp_path, seconds=200, device="cpu")
    before = read(world.chain(), tmp_path)
    assert (
        before["one"].share == 1
        and before["two"].step == 44
        and before["two"].share == pytest.approx(45 / 120, abs=0.01)
    )
    assert not world.finished

    world.fails, world.began, world.taken = float("inf"), [], []
    run_chain(world.chain(), tmp_path, seconds=50, device="cpu")
    assert world.began == [("two", True)]
    assert world.taken[:3] == [("two", 44), ("two", 44), ("two", 45)]  # counted, then trained on
    after = read(world.chain(), tmp_path)["two"]
    assert after.share == 1 and after.step == 44 + 39 and after.seconds == pytest.approx(45 + 40, abs=1)
    assert len(world.finished) == 1


def test_what_was_saved_goes_on_from_another_folder(tmp_path: Path, world: World) -> None:
    world.fails = 100
    with pytest.raises(RuntimeError):
        run_chain(world.chain(), tmp_path / "a", seconds=200, device="cpu")
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a").glob("*.*"):
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    world.fails = float("inf")
    run_chain(world.chain(), tmp_path / "b", seconds=50, device="cpu")
    assert read(world.chain(), tmp_path / "b")["two"].share == 1


def test_a_finished_chain_trains_its_last_stage_further(tmp_path: Path, world: World) -> None:
    run_chain(world.chain(), tmp_path, seconds=100, device="cpu")
    first = read_tensors(tmp_path, "net")
    world.began = []
    run_chain(world.chain(), tmp_path, seconds=100, device="cpu")
    assert world.began == [("two", True)] and steps(tmp_path) == {"one": 19, "two": 59 + 79}
    assert any(not torch.equal(first[name], t) for name, t in read_tensors(tmp_path, "net").items())
    assert len(world.finished) == 2


def test_time_that_a_stage_took_too_much_is_shared_by_the_others(tmp_path: Path, world: World) -> None:
    chain = world.chain()
    slow = dataclasses.replace(
        chain.stages[0],
        recipe=lambda *given: (setattr(world, "now", world.now + 40), chain.stages[0].recipe(*given))[1],
    )
    run_chain(dataclasses.replace(chain, stages=(slow, chain.stages[1])), tmp_path, seconds=100, device="cpu")
    assert world.now <= 81 and steps(tmp_path)["two"] < 59


def test_another_chain_seed_or_process_is_refused(tmp_path: Path, world: World) -> None:
    run_chain(world.chain(), tmp_path, seconds=10, device="cpu")
    with pytest.raises(ValueError, match="seed 0.*not of 'test' .seed 1.; choose another --out"):
        run_chain(world.chain(seed=1), tmp_path, seconds=10, device="cpu")
    other = dataclasses.replace(world.chain(), name="other")
    with pytest.raises(ValueError, match="holds a run of 'test'"):
        run_chain(other, tmp_path, seconds=10, device="cpu")
    with lock(tmp_path), pytest.raises(RunInUse):
        run_chain(world.chain(), tmp_path, seconds=10, device="cpu")
    (tmp_path / "chain.json").write_text('{"stages": 3}')
    with pytest.raises(ValueError, match=r"chain.json is damaged.*choose another --out"):
        run_chain(world.chain(), tmp_path, seconds=10, device="cpu")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_chain_needs_time(seconds: float, tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match="above 0"):
        run_chain(world.chain(), tmp_path, seconds=seconds)


def test_nothing_is_done_before_the_first_run(tmp_path: Path, world: World) -> None:
    assert read(world.chain(), tmp_path) == {"one": Done(), "two": Done()}
