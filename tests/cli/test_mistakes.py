"""How the commands report every mistake: two lines and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

ROOT = Path(__file__).parents[2]
WIDE = {"COLUMNS": "100", "LINES": "50"}


def _mistake(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The two lines of a call that must fail."""
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert code == 2 and not out, (code, out, err)
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    assert all(len(line) > 12 for line in lines), err
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generat x", "No such command 'generat'.\nhint: did you mean generate?"),
        ("gen x", "No such command 'gen'.\nhint: did you mean generate?"),
        ("world sho", "No such command 'sho'.\nhint: did you mean show?"),
        ("nothing x", "No such command 'nothing'.\nhint: see `unmask --help`"),
        ("--nonsense", "--nonsense"),
        ("generate", "PROMPT"),
        ("generate x --nonsense", "--nonsense"),
        ("generate x -n 0", "0 is not in the range"),
        ("generate x --seed abc", "'abc'"),
        ("generate x --out x.tiff2", "must end in .png"),
        ("generate x --trace x.mp4", "must end in .gif"),
        ("generate x --out x.png --trace x.png", "both x.png"),
        ("generate x --out x.png --thoughts x.png", "both x.png"),
        ("generate x --thoughts x.txt", "must end in .png"),
        ("generate x --plan --boxes cat:0,0,1,1", "leave out one of them"),
        ("generate x --boxes cat", "is not a layout"),
        ("generate x --boxes cat:0,0,1", "four numbers"),
        ("generate x --boxes cat:0,0,1,a", "is not a layout"),
        ("generate x --boxes cat:0,0,2,1", "fractions of the picture"),
        ("generate x --boxes nosuch.json", "nosuch.json"),
        ("generate x --luminance 2", "2.0 is not in the range"),
        ("generate x --contrast 0.6", "0.6 is not in the range"),
        ("generate x --score 11", "11.0 is not in the range"),
        ("generate x --crop -1 0", "-1 is not in the range"),
        ("generate x --attempts some", "'some' is not a valid integer"),
        ("generate x -o steps", "KEY=VALUE"),
        ("generate x --device toaster", "'toaster' is not a device"),
        ("generate x --model nosuch", "nosuch"),
        ("generate x --threads 0", "0 is not in the range"),
        ("ask in.png", "the question is missing"),
        ("ask missing.png what?", "no file missing.png"),
        ("ask letter.txt what?", "not a supported image"),
        ("ask cut.png what?", "cut"),
        ("ground in.png", "the phrases are missing"),
        ("ground in.png cat --steps 9", "9 is not in the range"),
        ("infill in.png", "--region"),
        ("infill in.png --box 1,2,3", "four numbers"),
        ("infill in.png --box 0,0,600,1", "inside the 60 x 40 picture"),
        ("infill [mask] --box 0,0,6,1", "no --region"),
        ("train nosuch.recipe", "no recipe"),
        ("train mini.stage22", "did you mean 'mini.stage2'"),
        ("train mini.stage2 --out ran", "--resume"),
        ("train mini.tower -o training.stepz=3", "did you mean 'steps'"),
        ("train mini.tower -o training.steps=0", "at least 1"),
        ("train mini.tower -o seed=one", "whole number"),
        ("train mini.stage3 -o t_exp=half", "must be a number"),
        ("train mini.stage3 -o t_exp=2", "between 0 and 1"),
        ("evaluate --suite moon", "'moon'"),
        ("evaluate --level moon", "'moon'"),
        ("inspect nosuch", "tiny, mini, small, lavida_o"),
        ("inspect letter.txt", "not a safetensors file"),
        ("bench nosuch", "bench"),
        ("world show --level moon", "'moon'"),
        ("world show -n 1 --out letter.txt/a.png", "could not write"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2(
    words: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("letter.txt").write_text("hello, I am a letter, not a picture")
    Path("cut.png").write_bytes(Path("in.png").read_bytes()[:100])
    Path("ran").mkdir()
    Path("ran/state.safetensors").touch()
    before = set(here.rglob("*"))
    assert said in _mistake(capsys, *words.split())
    assert set(here.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--attempts", "0"], "attempts must be 1 to 64"),
        (["edit", "in.png", "x", "--attempts", "65"], "attempts must be 1 to 64"),
        (["generate", "apple " * 5000], "longer than"),
        (["generate", "x", "-o", "schedule.stepz=3"], "did you mean 'steps'"),
        (["generate", "x", "-o", "schedule.steps=many"], "wanted a whole number"),
        (["generate", "x", "-o", "schedule.steps=0"], "at least one step"),
        (["generate", "x", "--steps", "4", "-o", "schedule.steps=8"], "--steps 4 and -o schedule.steps=8"),
        (
            ["edit", "in.png", "x", "--guidance", "2", "-o", "guidance.scale=1"],
            "--guidance 2.0 and -o guidance.scale=1",
        ),
        (["ask", "in.png", "x", "--steps", "2"], "use -o schedule.each="),
        (["infill", "a [mask] dog", "--temperature", "1"], "Greedy, which has no temperature"),
        (["ground", "in.png", "x", "--steps", "1", "-o", "schedule.steps=2"], "--steps 1 and -o schedule.steps=2"),
        (["infill", "in.png", "--region", "small.png"], "give both the same size"),
    ],
)
def test_what_the_model_refuses_is_told_alike(
    words: list[str], said: str, folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (2, 2), "white").save("small.png")
    before = set(here.iterdir())
    assert said in _mistake(capsys, *words, "--model", folder)
    assert set(here.iterdir()) == before


def test_an_unknown_part_of_an_evaluation(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no part 'ground'" in _mistake(capsys, "evaluate", folder, "--only", "ground")


def _spoil(name: str, folder: Path, here: Path) -> Path:
    """A copy of the model folder with one thing wrong."""
    place = here / "spoilt"
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    first = sorted(place.glob("model-*"))[0]
    if name == "shard missing":
        first.unlink()
    elif name == "cut off":
        first.write_bytes(first.read_bytes()[:-1000])
    elif name == "garbage":
        first.write_bytes(struct.pack("<Q", 40) + b"{not json" + bytes(100))
    elif name == "other size":
        config = json.loads((place / "config.json").read_text())
        config["model"]["mlp"] += 16
        (place / "config.json").write_text(json.dumps(config))
    else:
        (place / "config.json").write_text("{")
    return place


@pytest.mark.parametrize("name", ["shard missing", "cut off", "garbage", "other size", "config"])
def test_spoilt_checkpoints_are_told(name: str, folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = _spoil(name, folder, here)
    assert "spoilt" in _mistake(capsys, "generate", "x", "--model", place)
    if name in ("shard missing", "cut off", "garbage"):
        assert "copy" in _mistake(capsys, "inspect", place)


def test_a_full_disk_leaves_nothing_behind(here: Path) -> None:
    """The operating system itself refuses to write more than 2,000 bytes to a file."""

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    words = [sys.executable, "-B", "-m", "unmask.cli.main", "world", "show", "-n", "4", "--out", "big.png"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(words, capture_output=True, text=True, cwd=here, env=environment, preexec_fn=no_room)
    assert found.returncode == 2 and found.stderr.startswith("error: could not write big.png"), found.stderr
    assert os.listdir(here) == ["in.png"]


def test_a_defect_shows_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr("unmask.cli.world._described", broken)
    with pytest.raises(TypeError, match="a defect"):
        main(["world", "show"])


def test_traceback_on_request(here: Path) -> None:
    with pytest.raises(ValueError, match="no recipe"):
        main(["--traceback", "train", "nosuch.recipe"])
