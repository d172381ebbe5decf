"""Failure search: budgets, stopping and going on, and how much more a search finds than random requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unmask.analysis.search import (
    CrossEntropy,
    Fails,
    Point,
    Random,
    Space,
    Strategy,
    Thompson,
    Trial,
    agreed,
    around,
    found_points,
    search,
)
from unmask.rng import generator

torch.set_num_threads(1)
SPACE = Space(sizes=(12, 8), allowed=lambda point: point[0] != point[1])
STRATEGIES: list[Strategy] = [Random(), Thompson(), CrossEntropy()]


def planted(weak: set[int], often: float = 0.6, rarely: float = 0.02) -> Fails:
    """Points whose first factor is in ``weak`` fail often, all others rarely."""

    def fails(point: Point, seed: int) -> bool:
        rate = often if point[0] in weak else rarely
        return float(torch.rand((), generator=generator("fail", point, seed))) < rate

    return fails


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_budget_is_kept_and_a_stopped_search_goes_on(strategy: Strategy) -> None:
    calls: list[Point] = []

    def fails(point: Point, seed: int) -> bool:
        calls.append(point)
        return planted({3})(point, seed)

    whole = search(SPACE, strategy, fails, budget=60, seed=5)
    assert len(calls) == len(whole) == 60 and all(SPACE.allowed(trial.point) for trial in whole)
    half = search(SPACE, strategy, planted({3}), budget=25, seed=5)
    seen: list[Trial] = []
    again = search(SPACE, strategy, planted({3}), budget=60, seed=5, before=half, on_trial=seen.append)
    assert again == whole and seen == whole[25:] and search(SPACE, strategy, fails, budget=60, before=whole) == whole
    assert search(SPACE, strategy, planted({3}), budget=60, seed=6) != whole


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=repr)
def test_a_search_finds_at_least_twice_the_failures_of_random_requests(strategy: Strategy) -> None:
    def failures(one: Strategy) -> int:
        return sum(t.failed for seed in range(3) for t in search(SPACE, one, planted({3}), budget=200, seed=seed))

    assert failures(strategy) > 2 * failures(Random())


def test_failures_replay_and_chance_ones_are_told_apart() -> None:
    fails = planted({3})
    trials = search(SPACE, Thompson(), fails, budget=120)
    failed = [trial for trial in trials if trial.failed]
    assert all(fails(trial.point, trial.seed) for trial in failed)
    weak = next(trial for trial in failed if trial.point[0] == 3)
    chance = Trial(point=(0, 1), seed=1, failed=True)
    assert around(fails, weak, 100) > 0.4 > 0.1 > around(fails, chance, 100)
    assert found_points(trials) == {trial.point for trial in failed}


def test_judges_must_agree() -> None:
    def odd(point: Point, seed: int) -> bool:
        return seed % 2 == 1

    def large(point: Point, seed: int) -> bool:
        return seed > 10

    both: Callable[[Point, int], bool] = agreed(odd, large)
    assert [both((0,), seed) for seed in (1, 12, 13)] == [False, False, True]


def test_wrong_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one value each, got the sizes \(2, 0\)"):
        Space(sizes=(2, 0))
    with pytest.raises(ValueError, match="is allowed; widen the factors"):
        search(Space(sizes=(2,), allowed=lambda point: False), Random(), planted({0}), budget=1)
