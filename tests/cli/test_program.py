"""The program itself: help, version, completion, typing errors, devices and settings by name, broken pipes, progress."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unmask.cli import progress
from unmask.cli.main import TABLE, main

ROOT = Path(__file__).parents[2]


def _told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """(error, hint) of a call that must fail."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert not out and error.startswith("error: ") and hint.startswith("hint: ")
    return error, hint


@pytest.mark.parametrize("name", list(TABLE))
def test_every_command_has_short_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-h"]) == 0
    short = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out == short and short.startswith(f"Usage: unmask {name}")
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == short


@pytest.mark.parametrize(("given", "wanted"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given: str | None, wanted: str) -> None:
    """The variable is read when torch is imported, so it must be set before."""
    said = "import sys, os; from unmask.cli.main import main; assert 'torch' not in sys.modules; main(['-h'])"
    said += "; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = kept | ({} if given is None else {"OMP_WAIT_POLICY": given})
    done = subprocess.run([sys.executable, "-c", said], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [wanted], done.stderr


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world"]) == 0 and "Commands:" in capsys.readouterr().out


def test_the_package_runs_as_a_module() -> None:
    for words in (["--version"], ["-V"]):
        done = subprocess.run([sys.executable, "-m", "unmask", *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and done.stdout.startswith("unmask, version "), done.stderr


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["generat"], "No such command 'generat'.", "did you mean generate?"),
        (["gen"], "No such command 'gen'", "did you mean generate?"),
        (["generate", "x", "--step", "3"], "--steps", "see `unmask generate --help`"),
        (["generate", "x", "--stepz=3"], "'--steps'", "see"),
        (["generate", "-5 apples"], "No such option '-5'", 'unmask generate -- "-5 apples"'),
        (["a red apple"], "No such command 'a red apple'", 'unmask generate "a red apple"'),
        (["methods", "show", "remd"], "there is no method 'remd'", "did you mean 'remdm'?"),
        (["generate", "x", "--sampler", "remd"], "there is no sampler 'remd'", "did you mean 'remdm'?"),
        (["generate", "x", "--sampler", "remdm", "-o", "etta=1"], "no argument 'etta'", "did you mean 'eta'?"),
        (["generate", "x", "--model", "mimi"], "no model is called 'mimi'", "did you mean 'mini'?"),
        (["train", "mini.tower", "-o", "lr=1", "--out", "run"], "no field 'lr'", "did you mean 'optim.lr'?"),
    ],
)
def test_typing_errors_are_guessed(
    words: list[str], error: str, hint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _told(capsys, *words)
    assert error in told[0] and (hint in told[1] or hint == "did you mean"), told


def test_a_picture_alone_gets_a_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unmask ask in.png" in _told(capsys, "in.png")[1]


COMMANDS = {
    "generate": ("generate", "x"),
    "edit": ("edit", "in.png", "x"),
    "ask": ("ask", "in.png", "x"),
    "ground": ("ground", "in.png", "x"),
    "infill": ("infill", "[mask]"),
}


@pytest.mark.parametrize("task", list(COMMANDS))
@pytest.mark.parametrize(
    ("setting", "error", "hint"),
    [
        ("steps=8", "no field 'steps'", "did you mean 'schedule.steps'?"),
        ("schedule.stepz=8", "no field 'stepz'", "did you mean "),
        ("qqq=8", "no field 'qqq'", "known: schedule, "),
        ("schedule=8", "cannot be changed", "schedule."),
        ("schedule.nonsense.x=8", "no field 'nonsense'", ""),
    ],
)
def test_unknown_settings_name_the_nearest_before_weights_are_read(
    task: str,
    setting: str,
    error: str,
    hint: str,
    folder: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*given: object) -> None:
        raise AssertionError("weights were read")

    if task in ("ask", "infill") and setting == "steps=8":
        setting, error, hint = "stepz=8", "no field 'stepz'", ""  # their sampler has no number of steps
    monkeypatch.setattr("unmask.checkpoints.loading._read", read)
    told = _told(capsys, *COMMANDS[task], "-o", setting, "--model", str(folder))
    assert error in told[0] and hint in told[1], told


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:7", "xpu", "nonsense", "meta"])
@pytest.mark.parametrize(
    "words",
    [
        *COMMANDS.values(),
        ("chat",),
        ("demo",),
        ("evaluate",),
        ("serve", "mini", "--port", "0"),
        ("batch", "jobs.jsonl", "out"),
        ("verify", str(ROOT / "tests" / "golden" / "lavida_o_tiny")),
        ("train", "mini.tower", "--out", "run"),
    ],
    ids=lambda words: words[0],
)
def test_a_device_that_is_not_here_is_named(
    words: tuple[str, ...],
    device: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    Path("jobs.jsonl").write_text('{"id": "a", "task": "generate", "prompt": "a cat"}\n')
    error, hint = _told(capsys, *words, "--device", device)
    assert device in error and "cpu" in hint


# -- completion -------------------------------------------------------------------------------------------------------


def _completed(line: str, here: Path) -> list[str]:
    words = line.split(" ")
    environment = {**os.environ, "_UNMASK_COMPLETE": "bash_complete", "COMP_WORDS": line, "PYTHONPATH": str(ROOT)}
    environment["COMP_CWORD"] = str(len(words) - 1)
    code = "import sys; from unmask.cli.main import main; sys.argv = ['unmask']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, env=environment)
    return [row.partition(",")[2] for row in done.stdout.splitlines()]


def test_commands_options_and_names_are_completed(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "config.json").touch()
    assert _completed("unmask gen", here) == ["generate"]
    assert {"--steps", "--seed", "--sampler"} <= set(_completed("unmask generate --s", here))
    assert _completed("unmask generate x --model mi", here) == ["mine", "mini"]
    assert _completed("unmask serve mi", here) == ["mine", "mini"]
    assert "remdm" in _completed("unmask generate x --sampler re", here)
    assert "remdm" in _completed("unmask methods show re", here)
    assert "mini.stage2" in _completed("unmask train mini.st", here)
    assert _completed("unmask generate x --device m", here) == ["mps"]
    assert _completed("unmask evaluate --suite g", here) == ["geneval"]
    assert _completed("unmask world s", here) == ["show"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", shell]) == 0
    out = capsys.readouterr().out
    assert "_UNMASK_COMPLETE" in out and "unmask" in out


# -- pipes and progress -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--help", "generate --help", "methods", "world show -n 1 --json", "inspect mini"])
def test_a_reader_that_leaves_is_no_traceback(words: str, here: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "unmask", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        env=environment,
    )
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr("unmask.cli.progress.LINE_AFTER", 10.0)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    bar = progress.Bar(what="opening m", words=progress.nbytes)
    for done in range(1, 11):
        bar(done * 2**30, 10 * 2**30)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["opening m: 2.0 of 10.0 GiB", "opening m: 6.0 of 10.0 GiB"]
    silent = progress.Bar(what="opening m", words=progress.nbytes, lines=False)
    for done in range(1, 11):
        silent(done, 10)
    assert capsys.readouterr().err == ""


def test_a_bar_is_drawn_on_a_terminal_and_removed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.cli.progress.BAR_AFTER", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    bar = progress.Bar(what="unmasking", words=progress.steps)
    bar(1, 3)
    assert bar._shown is not None and bar._shown.tasks[0].fields["words"] == "step 1 of 3"
    bar(3, 3)
    assert bar._shown is None


def test_work_without_a_count_moves_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.working("converting mini"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.working("converting mini"):
        time.sleep(0.2)
    shown = capsys.readouterr()
    assert "converting mini …" in shown.err and shown.out == ""


def test_opening_and_unmasking_report_to_a_bar(
    folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int, int]] = []

    class Seen(progress.Bar):
        def __call__(self, done: int, of: int) -> None:
            seen.append((self.what, done, of))

    monkeypatch.setattr(progress, "Bar", Seen)
    words = ["generate", "a cat", "-n", "2", "-o", "schedule.steps=3", "--no-plan", "--model", str(folder)]
    words.remove("--no-plan") if "--no-plan" not in _options("generate") else None
    assert main(words) == 0
    opening = [(done, of) for what, done, of in seen if what.startswith("opening")]
    assert opening == sorted(opening) and opening[-1][0] == opening[-1][1] > 100_000
    assert [(done, of) for what, done, of in seen if what == "unmasking"] == [(i, 3) for i in (1, 2, 3)]
    seen.clear()
    assert main([*words, "--quiet"]) == 0 and not seen


def _options(name: str) -> str:
    return (ROOT / "tests" / "golden" / "help" / f"unmask_{name}.txt").read_text()
