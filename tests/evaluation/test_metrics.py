"""Figures, intervals, distances, and their lines in the history."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unmask.evaluation.history import Line, append, figures
from unmask.evaluation.metrics import (
    average,
    clip_score,
    correlation,
    frechet,
    mean_of,
    psnr,
    psnr_of_mean,
    share,
    share_of_groups,
)


def test_figures() -> None:
    assert share([True, False]) | {"low": 0, "high": 0} == {"value": 0.5, "n": 2, "low": 0, "high": 0}
    assert share([])["value"] is None and average([])["n"] == 0
    assert average([1.0, 3.0])["value"] == 2 and average([1.0, 3.0])["low"] < 2 < average([1.0, 3.0])["high"]
    assert psnr(0.01) == pytest.approx(20) and psnr(0.0) == pytest.approx(100)
    mixed = psnr_of_mean([0.01, 0.0001])
    assert mixed["low"] <= mixed["value"] <= mixed["high"] and mixed["value"] < (psnr(0.01) + psnr(0.0001)) / 2


def test_pictures_of_one_prompt_are_one_trial() -> None:
    alike = share_of_groups([[True] * 4, [False] * 4])
    assert alike == {**share([True, False]), "pictures": 8}
    assert share_of_groups([[True, False]])["value"] == 0.5 and share_of_groups([])["n"] == 0
    uneven = share_of_groups([[True], [False, False, False]])
    assert uneven["value"] == 0.5, "a prompt counts once, however many pictures it has"


def test_the_mean_of_categories() -> None:
    some = [share([True] * 9 + [False]), share([False] * 3), share([])]
    mean = mean_of(some)
    assert mean["value"] == pytest.approx(0.45) and mean["n"] == 13
    widths = [[f["value"] - f["low"], f["high"] - f["value"]] for f in (*some[:2], mean)]
    for side in (0, 1):
        assert widths[2][side] == pytest.approx((widths[0][side] ** 2 + widths[1][side] ** 2) ** 0.5 / 2)
    assert mean_of([share([])])["value"] is None


def test_correlation_of_known_pairs() -> None:
    line = [(float(x), 3 - 2.0 * x) for x in range(6)]
    assert correlation(line)["value"] == pytest.approx(-1) and correlation(line)["n"] == 6
    square = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert correlation(square)["value"] == pytest.approx(0)
    some = correlation([(0.0, 0.1), (1.0, 0.0), (2.0, 1.9), (3.0, 1.2), (4.0, 2.8)])
    assert some["low"] < some["value"] == pytest.approx(6.6 / 57**0.5) and some["value"] < some["high"] < 1
    assert correlation(line[:3])["value"] is None, "three pairs are too few for an interval"
    assert correlation([(1.0, float(y)) for y in range(9)])["value"] is None, "nothing was asked for"


def test_clip_score_of_known_angles() -> None:
    images = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    texts = np.array([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    score = clip_score(images, texts)
    assert score["value"] == pytest.approx((100 + 100 * 0.5**0.5 + 0 + 0) / 4) and score["n"] == 4
    with pytest.raises(ValueError, match="of the same shape for images and texts"):
        clip_score(images, texts[:2])


def test_frechet_of_normal_clouds() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(4000, 3))
    assert frechet(cloud, cloud) == pytest.approx(0, abs=1e-6)
    assert frechet(cloud, cloud + [2, 0, 0]) == pytest.approx(4, abs=1e-6)
    assert frechet(cloud, 3 * cloud) == pytest.approx(3 * (3 - 1) ** 2, rel=0.1)
    assert frechet(cloud[:1], cloud) is None


def test_history_lines(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "history.jsonl"
    append(path, [Line(name="a", value=1.0, unit="s")])
    append(path, figures({"edit": {"overall": share([True])}, "about": {"n": 1}}, "evaluate.grid"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["name"], r["value"], r["unit"]) for r in rows] == [
        ("a", 1.0, "s"),
        ("evaluate.grid.edit.overall", 1.0, "share"),
    ]
    assert all({"date", "commit", "machine", "command"} <= r.keys() for r in rows) and rows[1]["more"]["n"] == 1
