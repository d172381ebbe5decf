"""States in parts: written in the background, complete or absent, and read on any number of processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.recipe import override
from unmask.training.parallel import Place, launch
from unmask.training.parts import Parts, fill, own_part
from unmask.training.saving import refuse_apart
from unmask.training.states import INDEX, STATE, Saved, newest, read, saved_step
from unmask.training.train import train

from .tiny import recipe
from .whole import state_of

torch.set_num_threads(1)
PROGRAM = str(Path(__file__).with_name("tiny.py"))
FOUR = ("--accumulate", "4")


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def at(step: int) -> Saved:
    return Saved(recipe="r", seed=0, step=step, updates=step, settings={"optim.lr": "0.1"})


def values() -> dict[str, Tensor]:
    return {"master.a": torch.arange(6.0).reshape(2, 3), "step.a": torch.tensor(3.0), "buffer.b": torch.tensor([1, 2])}


# -- writing ----------------------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_state_is_written(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state at the time of the call."""
    go_on, real = threading.Event(), os.fsync
    monkeypatch.setattr("os.fsync", lambda file: go_on.wait(60) and real(file))
    parts, state = Parts(tmp_path, Place(), 1), values()
    parts.save(state, at(3))
    assert newest(tmp_path) is None and not parts.failed()
    for tensor in state.values():
        tensor.zero_()
    go_on.set()
    parts.wait()
    assert newest(tmp_path) == tmp_path / "state-3" and read(tmp_path / "state-3") == at(3)
    fill(state, tmp_path / "state-3")
    assert all(torch.equal(tensor, values()[name]) for name, tensor in state.items())


def test_the_last_states_are_kept(alone: None, tmp_path: Path) -> None:
    """Of both kinds: a run may go on in several processes where one process has begun it."""
    save_file(values(), tmp_path / STATE, metadata={"unmask": json.dumps(dataclasses.asdict(at(2)))})
    save_file(values(), tmp_path / "state-1.safetensors")
    parts = Parts(tmp_path, Place(), 3)
    for step, there in ((3, {STATE, "state-1.safetensors"}), (4, {STATE, "state-3"}), (5, {"state-3", "state-4"})):
        parts.save(values(), at(step))
        parts.wait()
        assert {p.name for p in tmp_path.iterdir()} == there | {f"state-{step}"}


def test_a_full_disk_keeps_the_previous_state(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path, Place(), 1)
    parts.save(values(), at(3))
    parts.wait()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    parts.save(values(), at(4))
    with pytest.raises(OSError, match="could not save the checkpoint in .*No space left.*the previous one is intact"):
        parts.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["state-3"]
    parts.save(values(), at(5))
    while not parts.failed():
        assert parts.pending is not None
    monkeypatch.undo()
    with pytest.raises(OSError):
        parts.save(values(), at(6))
    assert saved_step(tmp_path) == 3


def test_no_process_writes_much_more_than_another() -> None:
    state = {f"master.{i}": torch.zeros(10 + i) for i in range(20)} | {"buffer.a": torch.zeros(3)}
    shares = [own_part(state, Place(rank=rank, world=3)) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(state) and "buffer.a" in shares[0]
    sizes = [sum(t.numel() for t in share.values()) for share in shares]
    assert max(sizes) - min(sizes) < 40


def test_a_disk_that_is_truly_full(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The system refuses files of more than half a part."""
    assert launch(2, [PROGRAM, str(tmp_path), *FOUR, "--signal-at", "1"]) == 130
    before = {p.name: p.read_bytes() for p in (tmp_path / "state-4").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())) // 2, hard))
    try:
        assert launch(2, [PROGRAM, str(tmp_path), *FOUR]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capfd.readouterr().err
    assert "could not save the checkpoint" in told and "the previous one is intact" in told
    assert {p.name: p.read_bytes() for p in (tmp_path / "state-4").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "state-4"]


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes with shards, stopped at step 4."""
    folder = tmp_path_factory.mktemp("halves")
    assert launch(2, [PROGRAM, str(folder), *FOUR, "--shard", "--signal-at", "1"]) == 130
    return folder


@pytest.fixture
def begun(halves: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(halves, tmp_path / "run"))


def files(folder: Path) -> list[Path]:
    return sorted((folder / "state-4").glob("*.safetensors"))


def test_every_process_has_a_file_and_no_file_is_a_pickle(begun: Path) -> None:
    assert len(files(begun)) == 2 and {p.suffix for p in (begun / "state-4").iterdir()} == {".safetensors", ".json"}
    ours, theirs = (sum(t.numel() for t in load_file(path).values()) for path in files(begun))
    assert ours == pytest.approx(theirs, rel=0.1)


def test_one_process_continues_and_writes_one_file(begun: Path, tmp_path: Path) -> None:
    before = state_of(begun)
    train(recipe(accumulate=4), begun, stop_after=4)
    assert [p.name for p in begun.glob("state*")] == [STATE]
    train(recipe(accumulate=4), tmp_path / "whole", stop_after=4)
    for name, tensor in load_file(tmp_path / "whole" / STATE).items():
        torch.testing.assert_close(before[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def cut(folder: Path) -> None:
    os.truncate(files(folder)[1], 100)


def lose(folder: Path) -> None:
    files(folder)[0].unlink()


def add(folder: Path) -> None:
    shutil.copy(files(folder)[0], folder / "state-4" / "more.safetensors")


def overwrite(folder: Path) -> None:
    path = files(folder)[1]
    path.write_bytes(b"\xff" * path.stat().st_size)


def no_index(folder: Path) -> None:
    (folder / "state-4" / INDEX).unlink()


def index(text: str, folder: Path) -> None:
    (folder / "state-4" / INDEX).write_text(text)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (cut, r"is damaged: shard-00002\S+ has 100 bytes, its run.json has \d+ bytes"),
        (lose, r"is damaged: shard-00001\S+ is missing"),
        (add, r"is damaged: more.safetensors has \d+ bytes, its run.json has no such file"),
        (overwrite, "is damaged: "),
        (no_index, "is damaged: .*No such file"),
        (lambda folder: index("{", folder), "has no readable metadata of a run"),
        (lambda folder: index("[]", folder), "has no readable metadata of a run"),
        (lambda folder: index('{"step": 4, "files": 7}', folder), "is damaged: shard"),
    ],
)
def test_a_damaged_state_is_named(damage, error: str, begun: Path) -> None:  # noqa: ANN001
    damage(begun)
    with pytest.raises(ValueError, match=error) as found:
        train(recipe(accumulate=4), begun)
    assert str(begun / "state-4") in str(found.value) and "delete it to start again" in str(found.value)


def test_a_damaged_state_names_the_one_before(begun: Path) -> None:
    shutil.copytree(begun / "state-4", begun / "state-2")
    lose(begun)
    with pytest.raises(ValueError, match="is damaged.*; delete it to continue from state-2$"):
        train(recipe(accumulate=4), begun)


def test_values_that_are_not_finite_are_named(begun: Path) -> None:
    path = files(begun)[0]
    with safe_open(str(path), "pt") as f:
        meta = f.metadata()
    tensors = load_file(path)
    tensors[min(name for name in tensors if name.startswith("exp_avg."))].fill_(float("nan"))
    save_file(tensors, path, metadata=meta)
    told = json.loads((begun / "state-4" / INDEX).read_text())
    told["files"][path.name] = path.stat().st_size
    index(json.dumps(told), begun)
    with pytest.raises(ValueError, match=r"state-4: exp_avg\.\S+ holds values that are not finite"):
        train(recipe(accumulate=4), begun)


def test_a_state_of_another_model_is_named(begun: Path) -> None:
    with pytest.raises(ValueError, match="does not fit this recipe: master.weight is missing"):
        train(dataclasses.replace(recipe(accumulate=4), model=lambda: nn.Linear(3, 3)), begun)
    with pytest.raises(ValueError, match="training.accumulate was 4, is 2"):
        train(recipe(accumulate=2), begun)
    with pytest.raises(ValueError, match="beyond the last step, 3"):
        train(override(recipe(accumulate=4), ["training.steps=3"]), begun)


def test_what_a_killed_run_left_is_deleted(begun: Path) -> None:
    shutil.copytree(begun / "state-4", begun / "state-8.part")
    (begun / "state-mine.part").mkdir()
    assert saved_step(begun) == 4
    train(recipe(accumulate=4), begun, stop_after=4)
    assert not (begun / "state-8.part").exists() and (begun / "state-mine.part").exists()


def test_processes_that_see_other_folders_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuse_apart(3, tmp_path, Place())
    monkeypatch.setattr(Place, "gather", lambda self, values: [*values, 0])
    with pytest.raises(ValueError, match="at steps 3, 0; all machines of a run must share its folder"):
        refuse_apart(3, tmp_path, Place(world=2))
