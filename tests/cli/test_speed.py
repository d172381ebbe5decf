"""--speed at the command line: what is printed, what the JSON says, and wrong values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import unmask
from unmask.cli.completion import speeds
from unmask.cli.main import main

from ..tiny_model import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("tiny")
    Image.new("RGB", (32, 32), "red").save(place / "red.png")
    return str(make(place))


def test_a_drawing_says_what_acted(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a cat", "--no-plan", "--model", folder, "--out"]
    assert main([*words, "exact.png", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)[0]
    assert "approximate" not in exact
    assert main([*words, "same.png", "--speed", "exact"]) == 0
    assert "approximate" not in capsys.readouterr().err
    assert Path("exact.png").read_bytes() == Path("same.png").read_bytes()
    assert main([*words, "fast.png", "--json", "--speed", "refresh=3,steps=0.25"]) == 0
    fast = json.loads(capsys.readouterr().out)[0]
    assert fast["approximate"] == ["refresh=3", "steps=0.25"]
    assert fast["settings"]["schedule"]["steps"] * 4 == exact["settings"]["schedule"]["steps"]
    assert main([*words, "two.png", "-n", "2", "--speed", "refresh=3,steps=0.25"]) == 0
    assert capsys.readouterr().err.count("approximate: refresh=3, steps=0.25\n") == 1
    assert main([*words, "quiet.png", "-q", "--speed", "steps=0.25"]) == 0
    assert not capsys.readouterr().err


def test_every_command_of_a_model_takes_a_speed(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--model", folder, "--speed", "threshold=0.8,steps=0.5"]
    seen = f"{folder}/red.png"
    for words, acted in (
        (["ask", seen, "what is it?"], "threshold=0.8"),
        (["edit", seen, "make it blue"], "steps=0.5"),
        (["infill", "a [mask] cat"], "threshold=0.8"),
        (["infill", seen, "--box", "0,0,32,32", "--prompt", "a cat"], "steps=0.5"),
        (["ground", seen, "the cat"], ""),
    ):
        assert main([*words, *more]) == 0
        told = capsys.readouterr().err
        assert (f"approximate: {acted}" in told) if acted else ("approximate" not in told), words
    chatted = CliRunner().invoke(_chat(), more, input="hello\n")
    assert chatted.exit_code == 0 and "approximate: " in chatted.stderr


def _chat() -> object:
    from unmask.cli.chat import chat

    return chat


def test_the_demo_says_what_acted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--out", str(tmp_path), "--json", "--threads", "1", "--speed", "steps=0.125,threshold=0.5"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["approximate"] == ["steps=0.125", "threshold=0.5"]
    assert "approximate: steps=0.125, threshold=0.5\n" in shown.err


@pytest.mark.parametrize(
    ("speed", "hint"),
    [("fsat", "did you mean 'fast'?"), ("fast,step=1", "did you mean 'steps'?"), ("steps=2", "0.5 is half the steps")],
)
def test_a_wrong_speed_is_an_error_with_a_hint(
    folder: str, speed: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["generate", "a cat", "--model", folder], ["ask", f"{folder}/red.png", "what?", "--model", folder]):
        assert main([*words, "--speed", speed]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: speed") and f"hint: {hint}" in told


def test_a_file_of_requests_at_a_speed(folder: str, tmp_path: Path) -> None:
    line = {"task": "generate", "prompt": "a cat", "plan": False}
    lines = [
        {**line, "id": "as the command"},
        {**line, "id": "exact", "speed": "exact"},
        {**line, "id": "own", "speed": "steps=0.25", "sampler": "remdm"},
        {**line, "id": "wrong", "speed": "fsat"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out"), "--model", folder, "--speed", "steps=0.5"]
    assert main(words) == 1
    found = map(json.loads, (tmp_path / "out" / "results-0.jsonl").read_text().splitlines())
    records = {record["id"]: record for record in found}
    acted = {name: record["result"].get("approximate") for name, record in records.items() if record["ok"]}
    assert acted == {"as the command": ["steps=0.5"], "exact": None, "own": ["steps=0.25"]}
    assert "did you mean 'fast'" in records["wrong"]["error"]


def test_a_measurement_at_a_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "mini", "--only", "questions", "--limit", "6", "--json", "-", "--threads", "1"]
    assert main([*words, "--speed", "threshold=0.8"]) == 0
    settings = json.loads(capsys.readouterr().out)["about"]["settings"]
    assert settings["questions"]["selection"] == {"part": "Threshold", "value": 0.8}


def test_completion_of_the_last_word() -> None:
    assert speeds(None, None, "re") == ["refresh"]  # type: ignore[arg-type]
    assert speeds(None, None, "fast,st") == ["fast,steps"]  # type: ignore[arg-type]


def test_graphs_can_be_declined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command that runs a model hands --no-graphs to ``unmask.load``."""
    given: list[bool] = []

    def load(name: str, **more: object) -> None:
        given.append(bool(more["graphs"]))
        raise ValueError("enough")

    monkeypatch.setattr(unmask, "load", load)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"task": "generate", "prompt": "a cat"}) + "\n")
    batch = ["batch", str(lines), str(tmp_path / "out")]
    for command in (["generate", "a cat"], ["serve", "--port", "0"], batch, ["evaluate"]):
        before = len(given)
        assert main(command) and main([*command, "--no-graphs"])
        assert given[before:] == [True, False], command
