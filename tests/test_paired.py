"""``unmask bench speed --only paired``: our network beside the published amount of work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

FIGURES = {"published_s", "forwards", "tflop", "published_tflop", "over_necessary", "peak", "memory_mb", "equal"}


def test_every_task_beside_the_slow_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture, history = (tmp_path / name for name in ("speed.json", "speed.png", "rows.jsonl"))
    words = ["--threads", "1", "--steps", "2", "--repeats", "1", "--warm", "0"]
    assert (
        main(["bench", "speed", *words, "--history", str(history), "--json", str(figures), "--plot", str(picture)]) == 0
    )
    found = {row["name"]: row for row in json.loads(figures.read_text())["figures"]}
    shown = capsys.readouterr().out
    for task in ("draw", "edit", "answer", "boxes"):
        row = found[f"speed.paired.mini.{task}.s"]
        assert set(row) >= FIGURES and row["equal"] == 1  # the same weights, the same seed, the same ids
        assert row["forwards"] == (1 if task == "boxes" else 2)
        # What we compute is little more than what is needed, and less than what is published.
        assert 1.0 <= row["over_necessary"] < 1.2
        # An answer of mini reads its 25 tokens of context anew at every step, which is faster than a cache; as published, they are kept.
        assert (row["tflop"] < row["published_tflop"]) == (task != "answer")
        assert f"\n{task} " in shown
        assert row["pace_s"] >= row["value"] and row["of"] >= row["forwards"]
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and len(drawn.convert("RGB").getcolors(10_000) or []) > 3
    assert len(history.read_text().splitlines()) == 8


def test_where_the_time_of_a_step_goes(tmp_path: Path) -> None:
    history = tmp_path / "rows.jsonl"
    words = ["--only", "profile", "--threads", "1", "--tasks", "draw,boxes", "--history", str(history)]
    assert main(["bench", "speed", *words]) == 0
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["speed.profile.mini.draw", "speed.profile.mini.boxes"]
    for row in rows:
        shares = row["more"]
        assert sum(shares.values()) == pytest.approx(1.0) and shares["linear layers"] > 0.1 and shares["other"] < 0.5
        assert row["value"] == pytest.approx(sum(v for k, v in shares.items() if "attention" in k or "linear" in k))
