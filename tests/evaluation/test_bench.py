"""The scripts of bench/ run on a tiny model and leave their lines in the history."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

BENCH = Path(__file__).parents[2] / "bench"
SHIPPED_JUDGE = files("unmask.evaluation") / "assets" / "judge.safetensors"
needs_judge = pytest.mark.skipif(not SHIPPED_JUDGE.is_file(), reason="the judge's weights are not in this source tree")


def ran(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(BENCH / script), run_name="__main__")


def lines(path: Path) -> dict[str, float]:
    return {row["name"]: row["value"] for row in map(json.loads, path.read_text().splitlines())}


def test_speed(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = tmp_path / "history.jsonl"
    given = (
        "--model",
        str(model_folder),
        *("--repeats", "1", "--warm", "0", "--prompts", "1", "--attempts", "1,2"),
        "--only",
        "latency,thinking,throughput,twins",
    )
    ran("speed.py", monkeypatch, *given, "--history", str(history))
    found = lines(history)
    assert {f"speed.latency.{task}" for task in ("draw", "answer", "ground", "edit", "critique")} <= found.keys()
    assert {f"speed.reflect.{n}" for n in (1, 2)} <= found.keys()
    assert {"speed.batch16.draw", "speed.twin.understanding_to_the_end"} <= found.keys() and min(found.values()) > 0


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, picture = tmp_path / "history.jsonl", tmp_path / "growth.png"
    monkeypatch.syspath_prepend(str(BENCH))
    small = ("--layers", "1", "--steps", "1", "--repeats", "1", "--warm", "0", "--only", "boxes", "--sizes", "1", "3")
    ran("growth.py", monkeypatch, *small, "--record", "--history", str(history), "--plot", str(picture))
    rows = {row["name"]: row for row in map(json.loads, history.read_text().splitlines())}
    sides = importlib.import_module("growth").COSTS["canvas"][2]
    assert all(side & (side - 1) == 0 for side in sides), "the stratified order of the random networks halves them"
    grown = rows["growth.boxes"]["more"]
    assert set(rows) == {"growth.boxes.1", "growth.boxes.3", "growth.boxes"}
    assert grown["operations"] > 1 and (grown["least"], grown["most"]) == (1, 3)
    assert rows["growth.boxes"]["value"] == pytest.approx(grown["seconds"] / grown["operations"])
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and len(drawn.convert("RGB").getcolors(10_000) or []) > 3
    with pytest.raises(SystemExit):
        ran("growth.py", monkeypatch, "--sizes", "1", "2")


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = tmp_path / "history.jsonl"
    monkeypatch.syspath_prepend(str(BENCH))
    small = (
        "--width",
        "128",
        "--layers",
        "1",
        "--lengths",
        "4",
        "8",
        "--canvas",
        "4",
        "--phrases",
        "1",
        "2",
        "--steps",
        "1",
    )
    ran("text.py", monkeypatch, *small, "--repeats", "1", "--warm", "0", "--record", "--history", str(history))
    found = lines(history)
    assert {f"text.mini.{task}" for task in ("answer", "boxes4", "plan", "critique", "turn")} <= found.keys()
    released = {"answer4", "answer8", "canvases8", "boxes1", "boxes2"}
    assert {f"text.released.{name}" for name in released} <= found.keys() and min(found.values()) > 0


def test_an_unknown_group_is_misuse(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        ran("speed.py", monkeypatch, "--model", str(model_folder), "--only", "latencies")
    assert stopped.value.code == 2


@needs_judge
def test_quality(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, out = tmp_path / "history.jsonl", tmp_path / "verdicts"
    common = ("--model", str(model_folder), "--n", "6", "--out", str(out), "--history", str(history))
    ran("quality.py", monkeypatch, *common, "--steps", "2")
    orders = {f"quality.sampler.{o}.2steps.overall" for o in ("stratified", "halton", "random", "confidence")}
    assert orders <= lines(history).keys()
    ran("quality.py", monkeypatch, *common, "--sweep", "guidance.scale=0,3", "--sweep", "schedule.steps=2")
    assert "quality.sweep.draw.guidance.scale=3,schedule.steps=2.single" in lines(history)
    records = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len({r["run"] for r in records}) == 7  # five orders and two scales, each with settings of its own


def test_a_report_is_copied_under_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, report = tmp_path / "history.jsonl", tmp_path / "report.json"
    for about, more, name in (({"level": "grid"}, [], "grid"), ({}, [], "public"), ({}, ["--name", "a.b"], "a.b")):
        report.write_text(json.dumps({"geneval": {"overall": {"value": 0.5, "n": 2}}, "about": about}))
        ran("quality.py", monkeypatch, "--record", str(report), "--history", str(history), *more)
        assert lines(history)[f"evaluate.{name}.geneval.overall"] == 0.5
