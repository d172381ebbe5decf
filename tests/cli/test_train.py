"""The command ``train``: settings, folders, devices, and what is said of a run that was stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.training.losses import Update
from unmask.training.meters import Meters


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """(stdout, stderr) of a call that succeeds."""
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The two lines of a call that must fail."""
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 2 and not out and len(err.splitlines()) == 2, (code, out, err)
    return err


def test_settings_of_a_recipe_reach_its_function_and_its_fields() -> None:
    from unmask.cli.train import find

    recipe = find("mini.tower", ["seed=5", "training.steps=7", "optim.lr=3e-4"])
    assert (recipe.training.seed, recipe.training.steps, recipe.optim.lr) == (5, 7, 3e-4)


def test_train_begins_refuses_and_resumes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "mini.tower", "--out", "run", "-o", "training.steps=1")
    assert run(capsys, *words)[0] == "run\n"
    assert {"metrics.jsonl", "state.safetensors", "model.safetensors"} <= set(os.listdir("run"))
    assert "already holds a run" in mistake(capsys, *words)
    told = json.loads(run(capsys, *words[:-1], "training.steps=2", "--resume", "--json")[0])
    assert told == {"recipe": "mini.tower", "folder": "run", "steps": 2}
    assert [json.loads(row)["step"] for row in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert "seed" in mistake(capsys, *words[:-1], "seed=9", "--resume")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_says_how_to_continue(
    number: int, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run that stops long before its first checkpoint."""
    add = Meters.add
    words = ("train", "mini.tower", "--out", "my run", "-o", "training.steps=2", "--seed", "3")

    def stopped(self: Meters, update: Update) -> None:
        add(self, update)
        signal.raise_signal(number)

    monkeypatch.setattr(Meters, "add", stopped)
    assert main(words) == 130
    told = capsys.readouterr().err
    command = "unmask train mini.tower --out 'my run' --resume -o seed=3 -o training.steps=2"
    assert f"saved at step 1; continue with: {command}" in told
    assert not Path("my run/model.safetensors").exists()
    monkeypatch.setattr(Meters, "add", add)
    assert main(shlex.split(command)[1:]) == 0
    assert [json.loads(row)["step"] for row in Path("my run/metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_run_that_saved_nothing_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.training.parallel.launch", interrupted)
    assert main(("train", "mini.tower", "--out", "run", "--processes", "2")) == 130
    command = "unmask train mini.tower --out run --resume --processes 2"
    assert f"nothing was saved; start again with: {command}" in capsys.readouterr().err


def test_train_takes_a_device(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = mistake(capsys, "train", "mini.tower", "--out", "run", "--device", "tpu")
    assert "training.device is 'tpu', but tpu is not available" in told and "hint: use " in told


def test_train_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "mini.stage2 " in run(capsys, "train", "--list")[0]
