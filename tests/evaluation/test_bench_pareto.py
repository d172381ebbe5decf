"""bench/pareto.py: rows as they come, a run that goes on where it was stopped, the front, and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .test_bench import BENCH, needs_judge, ran


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_judge
def test_a_run_that_was_stopped_goes_on(
    bench: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, history = tmp_path / "out", tmp_path / "history.jsonl"
    given = ["--model", str(model_folder), "--n", "6", "--rounds", "2", "--out", str(out), "--history", str(history)]
    ran("pareto.py", monkeypatch, *given, "--tasks", "draw", "--only", "steps=0.5")
    first = history.read_text()
    assert [row["name"] for row in rows_of(history)] == [
        "pareto.validation.draw.exact",
        "pareto.validation.draw.steps=0.5",
    ]
    more = rows_of(history)[1]["more"]
    assert {"gain", "low", "high", "seconds", "speedup", "rows", "n", "seed"} <= more.keys()
    exact = rows_of(history)[0]["more"]
    assert exact["gain"] == 0 and exact["speedup"] == 1 and more["rows"] * 2 == exact["rows"]
    timed = (out / "seconds.jsonl").read_text()
    with (out / "seconds.jsonl").open("a") as file:
        file.write('{"task": "draw", "set')  # a run that was killed while it wrote
    plot, figures = tmp_path / "front.png", tmp_path / "all.json"
    again = [*given, "--tasks", "draw,ask", "--only", "steps=0.5|threshold=0.9"]
    ran("pareto.py", monkeypatch, *again, "--plot", str(plot), "--json", str(figures))
    assert history.read_text().startswith(first) and len(rows_of(history)) == 4
    assert (out / "seconds.jsonl").read_text().startswith(timed)
    timed_rows = [(row["task"], row["setting"], row["round"]) for row in rows_of(out / "seconds.jsonl")]
    assert len(timed_rows) == len(set(timed_rows)) == 8, "every round of every setting once, and every line whole"
    assert len(json.loads(figures.read_text())["figures"]) == 4
    assert Image.open(plot).size == (900, 920) and plot.stat().st_size < 150_000
    capsys.readouterr()


def test_an_unknown_task_is_an_error(bench: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        ran("pareto.py", monkeypatch, "--tasks", "drow", "--out", str(tmp_path))


def test_the_front(bench: None) -> None:
    from pareto import front  # type: ignore[import-not-found]

    def row(setting: str, value: float, seconds: float) -> dict[str, Any]:
        return {"setting": setting, "value": value, "seconds": seconds}

    some = [row("a", 0.9, 1.0), row("b", 0.8, 0.5), row("c", 0.8, 0.6), row("d", 0.85, 1.1), row("e", 0.8, 0.5)]
    assert [one["setting"] for one in front(some)] == ["a", "b", "e"]
