"""The line of a training run: what it says of the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.training.meters import Meters


def test_the_time_left_is_that_of_steps_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first step also makes what later ones have: a guess from it would be hours too long."""
    now = [100.0]
    monkeypatch.setattr("unmask.training.meters.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("unmask.training.meters.QUIET", -1.0)
    meters = Meters(tmp_path, steps=12, start=2)
    for step, seconds in ((3, 60.0), (4, 2.0), (5, 2.0)):
        now[0] += seconds
        meters.progress(step)
    now[0] += 2.0
    meters.report(6)
    meters.close()
    lines = capfd.readouterr().err.splitlines()
    assert "left" not in lines[0]
    assert [line.rpartition(" left ")[2] for line in lines[1:]] == ["0:00:16", "0:00:14", "0:00:12"]
