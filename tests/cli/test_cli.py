"""The command line: its help word for word, and what it prints and writes.

After a wanted change of the help: ``python tests/cli/test_cli.py`` writes the golden files anew.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image, ImageSequence

from unmask.cli.main import TABLE, main, program

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "help"
WIDE = {"COLUMNS": "100", "LINES": "50"}


# -- help -------------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[tuple[str, ...]]:
    """The program, every command, every command of a group."""
    yield ()
    for name in TABLE:
        yield (name,)
        command = program([name]).commands[name]
        if isinstance(command, click.Group):
            yield from ((name, inner) for inner in command.commands)


def _help(words: tuple[str, ...]) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "unmask.cli.main", *words, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **WIDE},
    )
    assert found.returncode == 0 and not found.stderr, found.stderr
    return found.stdout


def _golden(words: tuple[str, ...]) -> Path:
    return GOLDEN / f"{'_'.join(('unmask', *words))}.txt"


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_help_is_as_written(words: tuple[str, ...]) -> None:
    assert _help(words) == _golden(words).read_text(), "wanted? python tests/cli/test_cli.py writes it anew"


def test_there_is_no_golden_help_without_its_command() -> None:
    assert sorted(GOLDEN.glob("*.txt")) == sorted(_golden(words) for words in _commands())


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_every_help_has_examples(words: tuple[str, ...]) -> None:
    assert f"Examples:\n    unmask {words[0] if words else ''}" in _golden(words).read_text()


@pytest.mark.parametrize("name", list(TABLE))
def test_the_table_says_what_the_command_says(name: str) -> None:
    assert (program([name]).commands[name].help or "").partition("\n")[0] == TABLE[name][1]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], ["world", "show", "--help"]])
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from unmask.cli.main import main; code = main(sys.argv[1:]);"
        "assert not code, code; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


# -- a model to work with ---------------------------------------------------------------------------------------------


def _run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    """(stdout, stderr) of a call that succeeds."""
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_generate_writes_numbered_pictures_and_traces(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "a red apple", "-n", "2", "--no-plan", "--out", "p.png", "--trace", "t.gif", "--model", folder)
    out, err = _run(capsys, *words)
    assert out.split() == ["p-1.png", "p-2.png"] and "trace: t-1.gif" in err
    assert sorted(os.listdir(here)) == ["in.png", "p-1.png", "p-2.png", "t-1.gif", "t-2.gif"]
    assert Image.open("p-1.png").size == (128, 128) and len(list(ImageSequence.Iterator(Image.open("t-1.gif")))) > 1


def test_json_settings_and_seeds_do_what_they_say(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "a cat", "--json", "--no-plan", "--model", folder, "-o", "schedule.steps=3", "--out")
    first = json.loads(_run(capsys, *words, "a.png")[0])
    _run(capsys, *words, "b.png")
    _run(capsys, *words, "c.png", "--seed", "1")
    assert [d["file"] for d in first] == ["a.png"] and first[0]["settings"]["schedule"]["steps"] == 3
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_generate_thinks_and_shows_what_it_thought(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "a cat", "--json", "--model", folder, "-o", "schedule.steps=2", "--thoughts", "t.png", "--out")
    boxes = "red cat: 0,0,0.5,0.5; dog: 0.5,0.5,1,1"
    out, err = _run(capsys, *words, "a.png", "--boxes", boxes)
    things = json.loads(out)[0]["plan"]["things"]
    assert [(t["phrase"], t["box"]) for t in things] == [("red cat", [0, 0, 0.5, 0.5]), ("dog", [0.5, 0.5, 1, 1])]
    assert err == "thoughts: t.png\n" and Image.open("t.png").width == 1200
    Path("boxes.json").write_text(json.dumps(things))
    _run(capsys, *words, "b.png", "--boxes", "boxes.json")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    attempts = json.loads(_run(capsys, *words, "c.png", "--plan", "--attempts", "3")[0])[0]["attempts"]
    assert 1 <= len(attempts) <= 3 and all(r["accepted"] is False for r in attempts[:-1])
    assert Image.open("t.png").height > 100
    out, _ = _run(
        capsys, "edit", "in.png", "add a cat", "--plan", "--json", "--model", folder, "-o", "schedule.steps=2"
    )
    assert "troubles" in json.loads(out)[0]["plan"]
    words = (
        "edit",
        "in.png",
        "add a cat",
        "--json",
        "--model",
        folder,
        "-o",
        "schedule.steps=2",
        "--thoughts",
        "e.png",
    )
    attempts = json.loads(_run(capsys, *words, "--plan", "--attempts", "2")[0])[0]["attempts"]
    assert 1 <= len(attempts) <= 2 and all(r["critique"] and r["plan"] for r in attempts)
    assert Image.open("e.png").width == 1200


def test_generate_tells_the_model_what_light_was_asked_for(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "a cat", "--no-plan", "--model", folder, "-o", "schedule.steps=2", "--out")
    asked = ((), ("--luminance", "0.2"), ("--contrast", "0.2"), ("--score", "2"), ("--crop", "0", "2"))
    for i, light in enumerate(asked):
        _run(capsys, *words, f"{i}.png", *light)
    assert len({Path(f"{i}.png").read_bytes() for i in range(len(asked))}) == len(asked)


def test_chat_reads_lines_and_saves_pictures(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "/image in.png",
        "what is this?",
        "/image nosuch.png",
        "/help",
        "",
        "draw a cat",
        "/new",
        "x " * 5000,
        "a",
        "/quit",
        "b",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    out, err = _run(capsys, "chat", "--json", "--model", folder, "--out", "chat")
    turns = [json.loads(line) for line in out.splitlines()]
    assert [t["unread"] for t in turns] == [0, 2, 0]  # the embedded wording reads the last message alone
    assert [t["seed"] for t in turns] == [0, 1, 0]
    files = [file for t in turns for file in t["files"]]
    assert sorted(files) == sorted(str(p) for p in Path("chat").glob("*.png"))
    assert "nosuch.png" in err and "/quit" in err and "longer than" in err


def test_ask_prints_the_answer_and_saves_the_steps(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = _run(capsys, "ask", "in.png", "what is this?", "--model", folder, "--trace", "t.txt")
    assert out.count("\n") == 1 and err == "trace: t.txt\n" and len(Path("t.txt").read_text().splitlines()) > 1
    told = json.loads(_run(capsys, "ask", "in.png", "what is this?", "--model", folder, "--json")[0])
    assert told["text"] == out.strip() and told["question"] == "what is this?"


def test_ground_prints_a_box_a_phrase_in_pixels_of_the_picture(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = _run(capsys, "ground", "in.png", "the cat", "a red apple", "--out", "b.png", "--model", folder)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[4] for row in rows] == ["the cat", "a red apple"] and err == "boxes drawn: b.png\n"
    assert all(0 <= float(row[i]) <= (60, 40)[i % 2] for row in rows for i in range(4))
    assert Image.open("b.png").size == (420, 280)
    told = json.loads(_run(capsys, "ground", "in.png", "the cat", "--steps", "4", "--model", folder, "--json")[0])
    assert len(told["boxes"]) == 1 and told["settings"]["schedule"]["steps"] == 4


def test_edit_and_infill_write_pictures(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "edit", "in.png", "make it blue", "--model", folder)[0] == "edited.png\n"
    assert _run(capsys, "infill", "in.png", "--box", "0,0,20,20", "--model", folder)[0] == "filled.png\n"
    Image.new("RGB", (60, 40), "white").save("region.png")
    assert (
        _run(capsys, "infill", "in.png", "--region", "region.png", "--out", "f.png", "--model", folder)[0] == "f.png\n"
    )
    assert all(Image.open(name).size == (128, 128) for name in ("edited.png", "filled.png", "f.png"))


def test_infill_fills_the_gaps_of_a_text(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _run(capsys, "infill", "a [mask] apple", "--model", folder)[0]
    assert out.startswith("a") and "[mask]" not in out


def test_evaluate_writes_figures_and_a_report(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", folder, "--only", "grounding,questions", "--limit", "2", "--json", "f.json", "--out", "report")
    out, err = _run(capsys, *words)
    told = json.loads(Path("f.json").read_text())
    assert "p50_1step" in told["grounding"] and "overall" in told["questions"] and "p50_1step" in out
    assert "results: f.json" in err and list(Path("report").glob("*.html"))


def test_evaluate_measures_a_network_as_it_is_kept(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    _run(
        capsys, "evaluate", folder, "--only", "questions", "--limit", "2", "--json", "f.json", "--quantise", "und=int8"
    )
    assert "overall" in json.loads(Path("f.json").read_text())["questions"]


def test_demo_writes_a_sheet_and_says_what_it_shows(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = _run(capsys, "demo", "--model", folder)
    assert [line.split()[0] for line in out.splitlines()].count("generated") == 6 and "sheet     demo/sheet.png" in out
    assert {"sheet.png", "boxes.png", "edited.png", "trace.gif", "drawing-6.png"} <= set(os.listdir("demo"))
    assert Image.open("demo/sheet.png").width == 1200


# -- without a model --------------------------------------------------------------------------------------------------


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Commands:" in _run(capsys)[0]


def test_world_show_is_the_same_for_ever_and_says_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("world", "show", "--level", "free", "--split", "test", "--seed", "3", "-n", "3", "--out")
    assert _run(capsys, *words, "a.png")[0] == "a.png\n"
    told = json.loads(_run(capsys, *words, "b.png", "--json")[0])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert [t["index"] for t in told] == [0, 1, 2] and all(t["caption"] and t["layout"] for t in told)


def test_inspect_counts_what_the_files_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(_run(capsys, "inspect", folder, "--json")[0])
    assert {p["file"] for p in told["parts"]} == {"model-*.safetensors", "vq.safetensors"}
    assert told["parameters"] == sum(p["parameters"] for p in told["parts"]) == told["bytes"] / 4
    assert "blocks.und" in _run(capsys, "inspect", folder)[0]


def test_inspect_knows_named_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {p["part"]: p["parameters"] for p in json.loads(_run(capsys, "inspect", "lavida_o", "--json")[0])["parts"]}
    assert parts["blocks.gen"] == 32 * 75_501_568 and parts["blocks.und"] + parts["blocks.out"] == 32 * 218_112_000


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for command_words in _commands():
        _golden(command_words).write_text(_help(command_words))
