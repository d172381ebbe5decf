"""``bench/gpu/run.sh`` on a CPU: every part with a tiny setting, the table, and at most eight files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ..warm import warm

ROOT = Path(__file__).parents[2]


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": warm(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "bench/gpu/run.sh", *arguments],
        cwd=ROOT,
        env=environment | {"OUT": str(out)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_every_part(tmp_path: Path) -> None:
    ran = run(tmp_path, "40", str(tmp_path), "--device", "cpu", "--quick", "--only", "tests,speed,mid,cache,training")
    parts = {p["part"]: p["exit"] for p in map(json.loads, (tmp_path / "parts.jsonl").read_text().splitlines())}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert parts == dict.fromkeys(("tests", "speed float32", "mid", "cache", "training"), 0)
    assert len(list(tmp_path.iterdir())) <= 8
    table = (tmp_path / "table.txt").read_text()
    assert table in ran.stdout
    for figure in (
        "gpu.mid.draw.fused.step",
        "gpu.train.1b.peak",
        "cache.exact",
        "speed.twin.fp32_over_bf16",
        "gpu.mid.draw.int8.step",
    ):
        assert figure in table
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all({"name", "value", "unit", "machine", "commit"} <= set(row) for row in rows)


@pytest.mark.slow
def test_training_for_the_time_that_is_left(tmp_path: Path) -> None:
    """``small`` in a tiny setting; a second call continues from the shards of the first."""
    for _ in range(2):
        run(tmp_path, "0.55", str(tmp_path), "--device", "cpu", "--quick", "--only", "small")
        names = {p.name for p in tmp_path.iterdir()}
        assert {"small.tar.0", "parts.jsonl", "table.txt", "logs.tar.gz"} <= names and len(names) <= 8
        assert all(p.stat().st_size < 16 * 2**20 for p in tmp_path.iterdir())
    again = tmp_path.parent / "again"
    subprocess.run([warm(), "bench/gpu/pack.py", str(tmp_path), str(again)], cwd=ROOT, check=True)
    assert any(again.rglob("*.safetensors"))


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    ran = run(tmp_path, "1", str(tmp_path), "--device", "cpu", "--only", "speed,middle")
    assert ran.returncode == 2 and "no part middle" in ran.stderr and "released" in ran.stderr
    assert not list(tmp_path.iterdir())
