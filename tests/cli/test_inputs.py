"""What commands read and write: several pictures, patterns, stdin and stdout; missing, swapped and unquoted arguments."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

PNG = b"\x89PNG"


@pytest.fixture
def two(here: Path) -> Path:
    """A folder with in.png, a.png, "my dog.png", a text and a folder."""
    Image.new("RGB", (50, 50), "blue").save("a.png")
    Image.new("RGB", (50, 50), "blue").save("my dog.png")
    Path("letter.txt").write_text("hello")
    Path("folder").mkdir()
    return here


def _stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def _run(capfdbinary: pytest.CaptureFixture[bytes], *words: str | Path) -> tuple[bytes, str]:
    code = main([str(w) for w in words])
    out, err = capfdbinary.readouterr()
    assert code == 0, err.decode()
    return out, err.decode()


def test_every_picture_gets_one_line(folder: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["a.png", "in.png"], ["[ai]*.png"]):
        assert main(["ask", *given, "what is it?", "--model", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[0] for line in lines] == ["a.png", "in.png"]
    assert main(["ask", "in.png", "what is it?", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == lines[1].split("\t", 1)[1].strip(), "not the answer as if it were alone"
    assert main(["ask", "a.png", "in.png", "what is it?", "--model", str(folder), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["image"] for t in told] == ["a.png", "in.png"] and all(t["question"] == "what is it?" for t in told)


def test_ground_and_edit_take_several_pictures(folder: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", str(folder))
    assert main(["ground", "a.png", "in.png", "the cat", "a dog", "--out", "b.png", *model]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[5]) for row in rows] == [
        (picture, phrase) for picture in ("a.png", "in.png") for phrase in ("the cat", "a dog")
    ]
    assert Path("b-1.png").exists() and Path("b-2.png").exists()
    assert main(["ground", "?n.png", "the cat", "--json", *model]) == 0
    assert len(json.loads(capsys.readouterr().out)["boxes"]) == 1
    words = ["edit", "a.png", "in.png", "add a cat", "-n", "2", "--out", "new/", "--json", "-o", "schedule.steps=2"]
    assert main([*words, *model]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(t["image"], t["seed"]) for t in told] == [("a.png", 0), ("a.png", 1), ("in.png", 0), ("in.png", 1)]
    assert sorted(os.listdir("new")) == [f"edited-{i}.png" for i in (1, 2, 3, 4)]


def test_pictures_and_texts_come_from_stdin_and_go_to_stdout(
    folder: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("-o", "schedule.steps=2", "--model", folder)
    _stdin(monkeypatch, b"a red\napple\n")
    drawn, err = _run(capfdbinary, "generate", "-", "--no-plan", "--out", "-", *few)
    assert drawn.startswith(PNG) and Image.open(io.BytesIO(drawn)).size == (128, 128) and err == ""
    assert os.listdir(here) == ["in.png"]
    for words in (
        ("edit", "-", "add a cat"),
        ("infill", "-", "--box", "0,0,64,64"),
        ("ground", "-", "the cat"),
        ("world", "show", "-n", "1"),
    ):
        _stdin(monkeypatch, drawn)
        more = () if words[0] == "world" else ("--model", folder)
        out, _ = _run(capfdbinary, *words, "--out", "-", *more)
        Image.open(io.BytesIO(out)).verify()
        assert out.startswith(PNG)
    _stdin(monkeypatch, drawn)
    out, _ = _run(capfdbinary, "ask", "-", "what is it?", "--model", folder)
    _stdin(monkeypatch, drawn)
    assert _run(capfdbinary, "ask", "-", "what is it?", "--model", folder)[0] == out
    _stdin(monkeypatch, b"a [mask] apple")
    assert b"[mask]" not in _run(capfdbinary, "infill", "-", "--model", folder)[0]


def test_batch_reads_stdin_and_prints_its_results(
    folder: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        {"id": "a", "task": "ask", "image": "in.png", "prompt": "what is it?"},
        {"id": "b", "task": "generate", "prompt": "a cat", "settings": ["schedule.steps=2"]},
    ]
    _stdin(monkeypatch, "\n".join(map(json.dumps, jobs)).encode())
    out, _ = _run(capfdbinary, "batch", "-", "-", "--model", folder)
    told = {t["id"]: t for t in map(json.loads, out.splitlines())}
    assert told["a"]["ok"] and told["b"]["ok"], told
    assert told["b"]["result"]["image"].startswith("data:image/png;base64,") and "file" not in told["b"]["result"]
    assert os.listdir(here) == ["in.png"]
    _stdin(monkeypatch, b'{"id": "c", "task": "ask", "prompt": "a"}')
    assert main(["batch", "-", "-", "--model", str(folder)]) == 1
    assert b"1 failed; line 1: " in capfdbinary.readouterr().err


def test_quiet_says_nothing_but_the_result(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "a cat", "--no-plan", "--trace", "t.gif", "-o", "schedule.steps=2", "--model", str(folder))
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr() == ("drawing.png\n", "")
    assert main(words) == 0
    assert capsys.readouterr().err == "trace: t.gif\n"


MISTAKES = [
    ("ask in.png", "the question is missing", 'unmask ask in.png "…"'),
    ("ask in.png a.png", "the question is missing", "unmask ask in.png a.png"),
    ("ask what_is_it?", "the picture is missing", 'unmask ask PICTURE "what_is_it?"'),
    ("ask what_is_it? in.png", "the pictures come before the question", 'unmask ask in.png "what_is_it?"'),
    ("ask in.png what is it?", "'what' is not a picture", 'unmask ask in.png "what is it?"'),
    ("ask my dog.png what?", "a file name with spaces in quotes", 'unmask ask "my dog.png"'),
    ("ask im.png what?", "there is no file im.png", "did you mean in.png?"),
    ("ask in.png nosuch.png neither.png what?", "there are no files nosuch.png, neither.png", "check the paths"),
    ("ask *.jpg what?", "no file matches '*.jpg'", "check the pattern"),
    ("ask folder what?", "folder is a folder, not a picture", "'folder/*.png'"),
    ("ask letter.txt what?", "letter.txt is not a supported image", "use one of"),
    ("ask in.png letter.txt folder what?", "2 of 3 pictures cannot be read", "leave them out"),
    ("ask - -", "- stands for the picture and for the question", "in quotes"),
    ("ask - - what?", "- reads one picture from stdin", "give it once"),
    ("ask - what?", "which is empty", "check the command"),
    ("ask in.png what? --plain", "--plain is for text models", "leave out --plain"),
    ("edit in.png", "the instruction is missing", "unmask edit in.png"),
    ("edit make_it_blue", "the picture is missing", "unmask edit dog.png"),
    ("edit make_it_blue in.png", "the pictures come before the instruction", "unmask edit in.png"),
    ("edit in.png make it blue", "'make' is not a picture", 'unmask edit in.png "make it blue"'),
    ("edit folder x", "folder is a folder", "'folder/*.png'"),
    ("ground in.png", "the phrases are missing", "unmask ground in.png"),
    ("ground the_cat in.png", "the picture comes before the phrases", "unmask ground in.png"),
    ("ground nosuch.png cat", "there is no file nosuch.png", "check the path"),
    ("ground in.png nosuch.png cat", "there is no file nosuch.png", "check the path"),
    ("infill nosuch.png --box 0,0,1,1", "there is no file nosuch.png", "check the path"),
    ("infill folder --box 0,0,1,1", "folder is a folder", "'folder/*.png'"),
    ("ask in.png ''", "the question is empty", 'for example "what is it?"'),
    ("edit in.png ''", "the instruction is empty", "make the apple blue"),
    ("generate ''", "the prompt is empty", "a red apple"),
    ("generate -", "which is empty", "see `unmask generate --help`"),
    ("generate a red apple", "unexpected extra arguments (red apple)", "put a text with spaces in quotes"),
    ("generate", "Missing argument 'PROMPT'", "for example: unmask generate"),
    ("generate x --out -  -n 2", "writes one picture to stdout", "see"),
    ("generate x --out - --json", "both write to stdout", "see"),
    ("edit in.png a.png x --out -", "writes one picture to stdout", "see"),
    ("ground in.png a.png x --out -", "writes one picture to stdout", "see"),
    ("demo --out in.png", "'in.png' is a file", "see"),
    ("chat --out in.png", "'in.png' is a file", "see"),
    ("evaluate --out in.png", "'in.png' is a file", "see"),
    ("train mini.tower --out in.png", "'in.png' is a file", "see"),
    ("train mini", "there is no recipe 'mini'", "did you mean 'mini."),
    ("world shwo", "No such command 'shwo'", "did you mean show?"),
    ("batch - - --json", "leave out --json", "see"),
    ("generate x --out letter.txt/a.png", "is not a folder", "choose another place"),
    ("generate x --out x", "'x' must end in .png", "see"),
    ("generate x --trace folder", "'folder' must end in .gif", "see"),
    ("generate x -n 1000", "1000 is not in the range", "see"),
]  # fmt: skip


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where a model is opened: every one of these mistakes is seen before."""

    def load(*given: object, **named: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("unmask.pipeline.opening.load", load)
    yield


@pytest.mark.parametrize(("words", "error", "hint"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_named_before_a_model_is_opened(
    words: str,
    error: str,
    hint: str,
    two: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _stdin(monkeypatch, b"")
    before = set(two.rglob("*"))
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    assert error in lines[0] and hint in lines[1], err
    assert set(two.rglob("*")) == before, "something was written"


def test_a_folder_without_permission_is_named_before_the_work(
    two: Path, no_model: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "folder")  # tests may run as root
    assert main(["generate", "x", "--out", "folder/new/x.png"]) == 2
    assert "no permission to write in" in capsys.readouterr().err


def test_a_picture_is_not_written_to_a_terminal(
    two: Path, no_model: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["generate", "x", "--out", "-"]) == 2
    assert "stdout is a terminal" in capsys.readouterr().err
