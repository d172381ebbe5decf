"""Bayesian optimisation finds a peak with fewer evaluations than random points need."""

from __future__ import annotations

import pytest

from unmask.evaluation.bayesian import maximise


def peak(point: tuple[float, ...]) -> float:
    return -sum((x - y) ** 2 for x, y in zip(point, (0.2, 0.45, 0.8), strict=True))


def test_guided_points_come_nearer_than_random_ones() -> None:
    guided = [maximise(peak, 3, first=10, guided=25, seed=seed).score for seed in range(3)]
    random = [maximise(peak, 3, first=35, guided=0, seed=seed).score for seed in range(3)]
    assert min(guided) > max(random) and min(guided) > -0.01


def test_a_search_is_repeatable_and_keeps_all_it_tried() -> None:
    one, two = (maximise(peak, 3, first=4, guided=3, seed=5, start=((0.9, 0.5, 0.1),), ordered=True) for _ in range(2))
    assert one == two and len(one.tried) == 8 and one.tried[0][0] == (0.1, 0.5, 0.9)
    assert one.score == max(score for _, score in one.tried) == peak(one.best)
    assert all(list(point) == sorted(point) for point, _ in one.tried)


def test_wrong_searches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need 3 numbers, got \[2\]"):
        maximise(peak, 3, start=((0.1, 0.2),))
    with pytest.raises(ValueError, match="at least 1 point, got 3 and 0"):
        maximise(peak, 3, first=0)
