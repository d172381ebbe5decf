"""Ctrl-C and SIGTERM finish the step and save; nothing is lost, alone or among several processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unmask.step import Loss
from unmask.training.parallel import Place, launch
from unmask.training.states import STATE, saved_step
from unmask.training.stopping import Stopped, stop_after_step
from unmask.training.train import train

from . import line
from .line import recipe

PROGRAM = str(Path(__file__).with_name("tiny.py"))


def signalled(number: int, at: int, times: int = 1):  # noqa: ANN201
    """The recipe whose objective receives a signal in step ``at``."""
    calls: list[int] = []

    def objective(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Loss:
        calls.append(len(calls))
        for _ in range(times if calls[-1] == at else 0):
            signal.raise_signal(number)
        return line.error(module, batch)

    return dataclasses.replace(recipe(save_every=100), objective=objective)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 5, which is saved in"):
        train(signalled(number, 4), tmp_path / "stopped")
    assert saved_step(tmp_path / "stopped") == 5
    assert "finishing this step, then saving; press Ctrl-C again" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    done = train(recipe(), tmp_path / "stopped")
    whole = train(recipe(), tmp_path / "whole")
    assert all(torch.equal(p, q) for p, q in zip(done.parameters(), whole.parameters(), strict=True))
    assert line.rows(tmp_path / "stopped")[-1]["step"] == 8


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    train(signalled(signal.SIGTERM, 7), tmp_path)
    assert saved_step(tmp_path) == 8


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as error:
        train(signalled(signal.SIGINT, 2, times=2), tmp_path)
    assert not isinstance(error.value, Stopped) and saved_step(tmp_path) is None


def test_ctrl_c_while_a_state_is_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(), tmp_path, stop_after=3)
    before = (tmp_path / STATE).read_bytes()

    def interrupted(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half a state")
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.training.saving.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", STATE]


LEFT = (
    ".tmpAb12Cd",
    STATE + ".part",
    "model-00001-of-00002.safetensors.part",
    "metrics.jsonl.part",
    "config.json.part",
)
KEPT = (".tmp", ".tmpdir12345", "notes.part", "model.safetensors", "sub/.tmpAb12Cd", "sub/state.safetensors.part")


def test_what_a_killed_run_left_half_written_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(recipe(), folder, stop_after=3)
    (folder / "sub").mkdir()
    (tmp_path / ".tmpAb12Cd").touch()  # of another run
    for name in (*LEFT, *KEPT):
        (folder / name).write_bytes(b"x")
    done, whole = train(recipe(), folder), train(recipe(), tmp_path / "whole")
    assert not [name for name in LEFT if (folder / name).exists()]
    assert all((folder / name).exists() for name in KEPT) and (tmp_path / ".tmpAb12Cd").exists()
    assert all(torch.equal(p, q) for p, q in zip(done.parameters(), whole.parameters(), strict=True))


def test_the_first_step_prints_a_line_and_no_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(recipe(log_every=4), tmp_path)
    told = [text.split()[1] for text in capfd.readouterr().err.splitlines()]
    assert told == ["1/8", "4/8", "8/8"]
    assert [row["step"] for row in line.rows(tmp_path)] == [4, 8]


def test_a_run_is_never_silent_for_long(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.training.meters.QUIET", -1.0)  # as if every step took longer
    train(recipe(log_every=4), tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert [text.split()[1] for text in lines] == [f"{n}/8" for n in range(1, 9)]
    assert all("square" in text for text in lines)


def test_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(signalled(signal.SIGTERM, 2, times=2), tmp_path)
    assert saved_step(tmp_path) == 3


def test_sigterm_after_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """So torchrun passes on a second Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), stop_after_step() as received:
        signal.raise_signal(signal.SIGINT)
        assert received()
        signal.raise_signal(signal.SIGTERM)


def test_who_was_told_to_end_does_not_wait_for_processes_that_are_gone(warmed: None) -> None:
    """torchrun sends SIGTERM when a process was killed; the others cannot finish their step and exit without another message."""
    program = (
        "import signal, sys\nfrom unmask.training.stopping import stop_after_step\n"
        "with stop_after_step(): signal.raise_signal(signal.SIGTERM); raise RuntimeError(sys.argv[1])"
    )
    ends = [
        subprocess.run([sys.executable, "-c", program, text], capture_output=True)
        for text in ("Connection closed", "bug")
    ]
    assert [end.returncode for end in ends] == [-signal.SIGTERM, 1]
    assert b"Traceback" not in ends[0].stderr and b"bug" in ends[1].stderr


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with stop_after_step() as received:
            seen.append((received(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert saved_step(tmp_path) is None
    train(recipe(), tmp_path, stop_after=3)
    assert saved_step(tmp_path) == 3
    (tmp_path / STATE).write_bytes(b"half a state")
    assert saved_step(tmp_path) is None


def test_alone_nobody_else_is_asked() -> None:
    assert Place().any(True, False) == [True, False]


def test_processes_know_whether_their_launcher_is_there() -> None:
    assert not Place().abandoned() and not Place(launcher=os.getppid()).abandoned()
    assert Place(launcher=os.getpid()).abandoned()


def test_all_processes_stop_after_the_same_step(warmed: None, tmp_path: Path) -> None:
    """Batch 7 is the second process's: it alone receives the signal."""
    two = [PROGRAM, str(tmp_path), "--accumulate", "2"]
    assert launch(2, [*two, "--signal-at", "7"]) == 130
    assert saved_step(tmp_path) == 8
    assert launch(2, two) == 0
    assert saved_step(tmp_path) == 12


def test_sigterm_reaches_the_processes_through_the_one_that_started_them(warmed: None, tmp_path: Path) -> None:
    program = (
        "import sys; from unmask.training.parallel import launch\n"
        "try: launch(2, ['-c', sys.argv[2], sys.argv[1]])\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    worker = (
        "import os, signal, sys, time; from pathlib import Path; rank = os.environ['RANK']\n"
        "signal.signal(signal.SIGTERM, lambda *given: (Path(sys.argv[1], 'end' + rank).touch(), sys.exit(130)))\n"
        "Path(sys.argv[1], 'begin' + rank).touch(); time.sleep(100)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), worker])
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("begin*"))) < 2:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.terminate()
    assert child.wait(60) == 130
    assert {p.name for p in tmp_path.glob("end*")} == {"end0", "end1"}
