"""The trainer: a run continues bit for bit wherever it stopped, in one process or several, and checkpoints are never lost."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.checkpoints.store import load_module
from unmask.recipe import Optim, override
from unmask.training.states import STATE
from unmask.training.train import train

from .tiny import Numbers, model, recipe

torch.set_num_threads(1)
PROGRAM = str(Path(__file__).with_name("tiny.py"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert a.keys() == b.keys()
    different = [k for k in a if a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])]
    assert not different


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, Any]]:
    """The rows without what the clock decides."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s", "peak")} for r in rows(folder)]


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bf16"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, nn.Module]:
    """An uninterrupted run: (bf16, its folder, its result)."""
    folder = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)
    done = train(recipe(bf16=request.param), folder)
    patch.undo()
    return request.param, folder, done


# -- the same to the last bit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(4, 8), (1, 6, 5), (11, 1)])
def test_stopped_and_resumed_equals_uninterrupted(
    whole: tuple[bool, Path, nn.Module], pieces: tuple[int, ...], tmp_path: Path
) -> None:
    bf16, folder, done = whole
    for steps in pieces:
        last = train(recipe(bf16=bf16), tmp_path, stop_after=steps)
    equal(load_file(tmp_path / STATE), load_file(folder / STATE))
    equal(last.state_dict(), done.state_dict())
    equal(load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("whole", [True], indirect=True, ids=["bf16"])
def test_killed_and_resumed_equals_uninterrupted(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    """SIGKILL in step 11, after the checkpoint of step 8 and the report of step 10."""
    bf16, folder, done = whole
    argv = [sys.executable, PROGRAM, str(tmp_path), "--stop-at", "10", *(["--bf16"] if bf16 else [])]
    child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 5:
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert [r["step"] for r in rows(tmp_path)] == [2, 4, 6, 8, 10]
    (tmp_path / (STATE + ".part")).write_bytes(b"half a checkpoint")
    with metrics.open("a") as f:
        f.write('{"step": 12, "te')  # it may also die while it writes a row

    last = train(recipe(bf16=bf16), tmp_path)
    equal(load_file(tmp_path / STATE), load_file(folder / STATE))
    equal(last.state_dict(), done.state_dict())
    assert losses(tmp_path) == losses(folder)  # no row twice, none torn
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_run_stays_as_it_is(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    bf16, _, done = whole
    train(recipe(bf16=bf16), tmp_path)
    before = (tmp_path / STATE).read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    again = train(recipe(bf16=bf16), tmp_path)
    assert ((tmp_path / STATE).read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()) == before
    equal(again.state_dict(), done.state_dict())


def test_another_seed_is_another_run(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    bf16, folder, _ = whole
    train(override(recipe(bf16=bf16), ["training.seed=1"]), tmp_path)
    assert losses(tmp_path) != losses(folder)


def test_masters_stay_float32_and_the_frozen_stay_exact(whole: tuple[bool, Path, nn.Module]) -> None:
    _, folder, done = whole
    state = load_file(folder / STATE)
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert not any("code_embedding.table." in k for k in state)
    first = model().state_dict()
    for name, value in done.state_dict().items():
        moved = not torch.equal(value, first[name])
        assert moved == (not name.startswith("code_embedding.table")), name
        assert value.dtype == torch.float32
    shipped = load_module(model(), folder)
    equal(shipped.state_dict(), done.state_dict())


def test_metrics(whole: tuple[bool, Path, nn.Module]) -> None:
    written = rows(whole[1])
    assert [r["step"] for r in written] == [2, 4, 6, 8, 10, 12]
    for r in written:
        assert set(r) == {"step", "updates", "text", "code", "grad", "tokens_per_s", "seconds"}  # no peak: it is short
        assert all(math.isfinite(v) for v in r.values())
        assert r["text"] > 0 and r["code"] > 0 and r["grad"] > 0 and r["tokens_per_s"] > 0


def test_it_learns(tmp_path: Path) -> None:
    """One batch over and over is learned by heart."""
    base = recipe()
    one = dataclasses.replace(base, source=lambda step: Numbers()(0), optim=Optim(lr=0.02, warmup=2, ema=0.5))
    train(override(one, ["training.steps=30"]), tmp_path)
    assert rows(tmp_path)[-1]["code"] < 0.7 * rows(tmp_path)[0]["code"]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_failing_save_keeps_the_previous_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(), tmp_path, stop_after=4)
    before = (tmp_path / STATE).read_bytes()

    def half(tensors: dict[str, Tensor], path: str, **more: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr("unmask.training.saving.save_file", half)
    with pytest.raises(OSError, match="could not save the checkpoint .*; the previous one is intact"):
        train(recipe(), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    whole = train(recipe(), tmp_path / "whole")
    equal(train(recipe(), tmp_path).state_dict(), whole.state_dict())


def test_a_disk_that_is_truly_full(tmp_path: Path) -> None:
    """A limit on the size of files, as the system enforces it: the library's own writing fails half way."""
    train(recipe(), tmp_path, stop_after=4)
    before = (tmp_path / STATE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="the previous one is intact"):
            train(recipe(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / STATE).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    train(recipe(), tmp_path, stop_after=1)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ValueError, match="holds a run of 'tiny' .* not of 'other'"):
        train(dataclasses.replace(recipe(), name="other"), tmp_path)
    with pytest.raises(ValueError, match="holds a run of 'tiny' \\(seed 0\\)"):
        train(override(recipe(), ["training.seed=5"]), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    (tmp_path / STATE).write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        train(recipe(), tmp_path)


def test_a_checkpoint_of_another_shape_is_named(tmp_path: Path) -> None:
    train(recipe(), tmp_path, stop_after=1)
    wider = dataclasses.replace(recipe(), model=lambda: nn.Linear(3, 3))
    with pytest.raises(ValueError, match="does not fit this recipe: master.weight is missing"):
        train(wider, tmp_path)


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves nothing to train"):
        train(dataclasses.replace(recipe(), trainable=lambda name: False), tmp_path)
