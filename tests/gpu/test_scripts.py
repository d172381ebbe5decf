"""What can be tested of the scripts for a GPU without one: the released size in small, the table, the card's name in a row."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.evaluation.history import Line, append

SCRIPTS = Path(__file__).parents[2] / "bench" / "gpu"


def ran(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a script."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_released_size_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    assert ran("released.py", monkeypatch, "--device", "cpu", "--quick", "--history", str(tmp_path / "rows.jsonl")) == 0
    found = {row["name"].removeprefix("gpu.released."): row for row in rows(tmp_path / "rows.jsonl")}
    ways = {task: ("fused", "graphs", "fast", "every", "float8", "int8") for task in ("draw", "edit")}
    ways |= {"answer": ("fused", "graphs", "fast", "float8", "int8")}
    assert {f"{task}.{way}.step" for task, some in ways.items() for way in some} <= set(found)
    assert {"batch1.draw", "batch2.answer", "boxes", "generate", "vq.decode", "gpu.peak.bf16"} <= set(found)
    assert found["draw.fused.step"]["more"]["of"] == 64 and found["draw.every.step"]["more"]["of"] == 32
    assert found["draw.fused.peak"]["more"]["tflop"] == found["draw.graphs.peak"]["more"]["tflop"] > 0
    for task in ("draw", "edit", "answer"):
        graphs = found[f"{task}.graphs.difference"]
        assert graphs["value"] == 0 and graphs["more"]["equal_ids"] == 1 and graphs["more"]["replays"] > 3
    assert found["draw.graphs.new_request"]["more"]["captures"] == 1


def test_a_measurement_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CUDA graphs that cannot be captured: the failure is named, and all rows but theirs are written, measured without graphs."""

    def refused(*given: object, **named: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("unmask.models.graphs.Graphs._captured", refused)
    only = "draw,draw graphs,draw fast,boxes"
    given = ["--device", "cpu", "--quick", "--only", only, "--history", str(tmp_path / "rows.jsonl")]
    assert ran("released.py", monkeypatch, *given) == 1
    found = {row["name"].removeprefix("gpu.released."): row for row in rows(tmp_path / "rows.jsonl")}
    names = list(found)
    assert names[0] == "gpu.peak.bf16" and names[-1] == "boxes" and "draw.fused.step" in names
    assert "draw.graphs.step" not in names and found["draw.fast.step"]["more"]["captures"] == 0
    assert "failed: draw graphs" in capsys.readouterr().out


def test_what_has_no_time_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--device", "cpu", "--quick", "--seconds", "0", "--only", "draw"]
    assert ran("released.py", monkeypatch, *given, "--history", str(tmp_path / "rows.jsonl")) == 0
    assert not (tmp_path / "rows.jsonl").exists() and "draw: not started" in capsys.readouterr().out


def test_a_row_names_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    line = Line(name="speed.draw", value=1.0, unit="s")
    append(tmp_path / "rows.jsonl", [line], device="cuda:0")
    append(tmp_path / "rows.jsonl", [line])
    first, second = rows(tmp_path / "rows.jsonl")
    assert first["machine"]["accelerator"] == "card of cuda:0" and "accelerator" not in second["machine"]


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {"cpu": "a CPU", "torch": "2.11", "accelerator": "a card"}
    draw = {"name": "speed.latency.draw", "unit": "s", "machine": machine}
    written = [
        {**draw, "value": 0.5, "command": "speed.py --device cuda"},
        {**draw, "value": 0.25, "command": "speed.py --device cuda --dtype bfloat16 --attention fused"},
        {**draw, "value": 2.0, "command": "speed.py --threads 8"},
        {"name": "gpu.peak.bf16", "value": 790.0, "unit": "TFLOP/s", "machine": machine, "command": "released.py"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    (tmp_path / "parts.jsonl").write_text('{"part": "tests", "exit": 1, "seconds": 9}\n')
    (tmp_path / "tests.log").write_text("FAILED tests/gpu/test_cuda.py::test_x\n1 failed in 8 s\n")
    assert ran("table.py", monkeypatch, str(tmp_path)) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tests", "exit", "1", "9", "s"] in shown and ["FAILED", "tests/gpu/test_cuda.py::test_x"] in shown
    assert ["mini", "float32", "bf16+fused", "CPU"] in shown and ["latency.draw", "s", "0.5", "0.25", "2"] in shown
    assert ["gpu.peak.bf16", "790", "TFLOP/s"] in shown
