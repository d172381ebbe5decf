"""The command ``train``: settings, folders, devices and stopped runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.cli.recipe_files import recipes
from unmask.training.losses import Update
from unmask.training.meters import Meters

from ..warm import warm

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


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
    assert main(("train", "mini.tower", "--out", "run", "--processes", "2", "-o", "training.accumulate=2")) == 130
    told = capsys.readouterr().err
    assert "nothing was saved in run" in told and "--resume" not in told


def test_the_command_that_continues_has_all_options(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run as it stands, and the processes get the same settings."""
    started: list[list[str]] = []

    def interrupted(count: int, argv: list[str]) -> int:
        started.append(argv)
        raise KeyboardInterrupt

    first = ("train", "mini.tower", "--out", "it's a run", "-o", "training.steps=1", "-o", "training.accumulate=2")
    assert main(first) == 0
    monkeypatch.setattr("unmask.training.parallel.launch", interrupted)
    words = (
        "train",
        "mini.tower",
        "--out",
        "it's a run",
        "--resume",
        "-o",
        "training.steps=9",
        "-o",
        "optim.lr = 3e-4",
        "-o",
        "training.accumulate=2",
    )
    more = ("--seed", "0", "--device", "cpu", "--processes", "2", "--threads", "1", "--json")
    told = []
    given = (*words, *more)
    for _ in range(2):
        capsys.readouterr()
        assert main(given) == 130
        told.append(capsys.readouterr().err)
        command = shlex.split(told[-1].partition("saved at step 1; continue with: unmask ")[2].splitlines()[0])
        given = tuple(command)
    settings = ["seed=0", "training.steps=9", "optim.lr = 3e-4", "training.accumulate=2", "training.device=cpu"]
    assert [w for w in command if "=" in w] == settings and command[command.index("--out") + 1] == "it's a run"
    assert command[-5:] == ["--processes", "2", "--threads", "1", "--json"]
    assert told[0] == told[1] and started[0] == started[1] and [w for w in started[0] if "=" in w] == settings


def test_a_run_that_is_interrupted_before_its_first_step_keeps_the_old_state(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "mini.tower", "--out", "run", "-o", "training.steps=1")
    run(capsys, *words)
    before = Path("run/state.safetensors").read_bytes()

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.cli.train.find", interrupted)
    assert main((*words, "--resume")) == 130
    assert "saved at step 1; continue with: unmask train mini.tower" in capsys.readouterr().err
    assert Path("run/state.safetensors").read_bytes() == before


def test_resume_says_where_it_begins(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "mini.tower", "--out", "run", "--resume", "-o", "training.steps=1")
    assert "no saved state in run; the run begins anew at step 0" in run(capsys, *words)[1]
    assert "anew" not in run(capsys, *words)[1]


def test_the_help_of_a_recipe_describes_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "train", "gill.bridge", "--help")[0]
    assert said.startswith("gill.bridge: ") and "  data=''" in said and "  steps=" in said
    assert "--processes" in run(capsys, "train", "--help")[0]


def test_a_run_is_resumed_without_its_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "mini.tower", "--out", "run")
    run(capsys, *words, "-o", "training.steps=1", "-o", "source.batch=3", "--seed", "4")
    kept = Path("run/settings.json")
    assert json.loads(kept.read_text()) == ["seed=4", "training.steps=1", "source.batch=3"]
    assert json.loads(run(capsys, *words, "--resume", "--json")[0])["steps"] == 1
    assert "source.batch" in mistake(capsys, *words, "--resume", "-o", "source.batch=2")
    assert json.loads(run(capsys, *words, "--resume", "--json", "-o", "training.steps=2")[0])["steps"] == 2
    assert json.loads(kept.read_text()) == ["seed=4", "source.batch=3", "training.steps=2"]
    for damaged in ("{", "[" * 100_000, '{"seed": 4}'):
        kept.write_text(damaged)
        assert "(seed 4), not of 'mini.tower' (seed 0)" in mistake(capsys, *words, "--resume")


def test_the_folder_of_an_unfinished_run_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text("")
    said = mistake(capsys, "generate", "a cat", "--model", "run")
    assert "run has no config.json" in said and "go on with unmask train RECIPE --resume" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_continues_bit_for_bit(number: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process and a real signal, at its first line of progress, long before the first report and checkpoint."""
    words = ["train", "mini.tower", "--out", "run", "-o", "training.steps=3", "-o", "source.batch=2"]
    child = subprocess.Popen(
        [warm(), "-m", "unmask.cli.main", *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert child.stderr is not None
    assert child.stderr.readline().startswith("step 1/3 ")
    child.send_signal(number)
    told = child.stderr.read()
    assert child.wait(120) == 130, told
    command = told.partition("continue with: unmask ")[2].splitlines()[0]
    assert not Path("run/model.safetensors").exists() and "saved at step " in told
    assert main(shlex.split(command)) == 0
    assert main([word if word != "run" else "whole" for word in words]) == 0
    assert Path("run/state.safetensors").read_bytes() == Path("whole/state.safetensors").read_bytes()
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_train_takes_a_device(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = mistake(capsys, "train", "mini.tower", "--out", "run", "--device", "tpu")
    assert "'tpu' is not a device that unmask runs on" in told and "hint: use " in told


def test_train_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys, "train", "--list")[0]
    assert "mini.stage2 " in listed and run(capsys, "train")[0] == listed
    assert len(listed.splitlines()) == 2 + len(recipes()) and all(recipes().values())


def test_settings_that_changed_are_named_and_can_be_allowed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "mini.tower", "--out", "run", "-o", "source.batch=2", "-o", "training.steps=2")
    run(capsys, *words[:-1], "training.steps=1")
    other = (*words, "--resume", "-o", "optim.lr=0.5", "-o", "source.batch=3")
    told = mistake(capsys, *other)
    assert "source.batch was 2, is 3" in told and "optim.lr was 0.0015, is 0.5" in told and "--allow-changes" in told
    assert "continues with other settings: " in run(capsys, *other, "--allow-changes")[1]


PAIR = (
    "train",
    "mini.tower",
    "--out",
    "run",
    "-o",
    "source.batch=2",
    "-o",
    "training.accumulate=2",
    "--processes",
    "2",
)


def started(*words: str) -> subprocess.Popen[str]:
    command = [warm(), "-m", "unmask.cli.main", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_are_stopped_as_one(number: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state is saved, the error is printed once, and one process can resume."""
    child = started(*PAIR, "-o", "training.steps=400", "-o", "training.log_every=400")
    assert child.stderr is not None
    assert child.stderr.readline().startswith("step 2/400 ")
    child.send_signal(number)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130 and not out, err
    told = [text for text in err.splitlines() if text and not text.startswith("step ")]
    assert told[0].startswith("finishing this step, then saving") and told[2:] == ["stopped"], err
    command = shlex.split(told[1].partition("continue with: unmask ")[2])
    assert command[-2:] == ["--processes", "2"]
    step = int(told[1].split()[3].rstrip(";"))
    steps = f"training.steps={step + 2}"
    assert main([*(word if word != "training.steps=400" else steps for word in command[:-2])]) == 0
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["step"] == step + 2


def test_an_error_of_all_processes_is_told_once(here: Path) -> None:
    Path("run").mkdir()
    Path("run/state.safetensors").write_bytes(b"garbage")
    child = started(*PAIR, "--resume")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 2 and not out
    assert [text for text in err.splitlines() if text.startswith(("error", "hint"))] == err.splitlines()[-2:]
    assert "is damaged" in err and err.count("error: ") == 1


def test_processes_that_would_have_no_batch_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = mistake(capsys, "train", "mini.tower", "--processes", "2")
    assert "2 processes cannot share" in told and "-o training.accumulate=2" in told and not Path("runs").exists()


def test_log_without_its_package_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    told = mistake(capsys, "train", "mini.tower", "--out", "run", "--log", "tensorboard", "-o", "training.steps=1")
    assert "the package 'tensorboard' is not installed" in told
    assert "'csv' is not 'tensorboard'" in mistake(capsys, "train", "mini.tower", "--log", "csv")
