"""The scheduler by itself: fairness, priority, no starvation, and which steps share a forward. Numbers only, no model."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from unmask.serving.scheduler import BESIDE, BESIDE_SHORT, SHORT, NextStep, Scheduler


def step(positions: int = 10, *, rows: int = 1, group: str = "text", **more: Any) -> NextStep:
    return NextStep(group=group, rows=rows, positions=positions, **more)


def scheduler(*, rows: int = 1, stretch: float = 1.34, idle: int = 0) -> Scheduler:
    return Scheduler(rows=rows, stretch=stretch, idle=idle)


def taken(scheduled: Scheduler, steps: dict[int, NextStep], ticks: int) -> Counter[int]:
    """How many steps each request takes in so many ticks; its steps are all alike."""
    count: Counter[int] = Counter()
    for number, planned in steps.items():
        scheduled.plan(number, planned)
    for _ in range(ticks):
        chosen = scheduled.choose()
        scheduled.charge(chosen)
        for number in chosen:
            scheduled.plan(number, steps[number])
            count[number] += 1
    return count


def test_equal_requests_take_turns_in_the_order_of_submission() -> None:
    scheduled, order = scheduler(), []
    for number in (2, 0, 1):
        scheduled.enter(number)
        scheduled.plan(number, step())
    for _ in range(6):
        (number,) = scheduled.choose()
        scheduled.charge([number])
        scheduled.plan(number, step())
        order.append(number)
    assert order == [0, 1, 2, 0, 1, 2]


def test_the_device_is_shared_by_positions_and_not_by_steps() -> None:
    scheduled = scheduler()
    scheduled.enter(0)
    scheduled.enter(1)
    assert taken(scheduled, {0: step(30), 1: step(10)}, 400) == {0: 100, 1: 300}


@pytest.mark.parametrize("priority", [-2, -1, 1, 3])
def test_each_level_of_priority_doubles_the_share(priority: int) -> None:
    scheduled = scheduler()
    scheduled.enter(0)
    scheduled.enter(1, priority)
    count = taken(scheduled, {0: step(), 1: step()}, 900)
    assert count[1] == pytest.approx(count[0] * 2.0**priority, abs=8)


def test_no_request_falls_behind_by_more_than_one_step() -> None:
    """Any mix of prices, one step a tick: virtual times differ by at most the most expensive step, so no request starves."""
    for seed in range(20):
        rng, scheduled = Random(seed), scheduler(rows=1)
        steps = {number: step(rng.randint(1, 50)) for number in range(5)}
        paid = dict.fromkeys(steps, 0)
        for number, planned in steps.items():
            scheduled.enter(number)
            scheduled.plan(number, planned)
        for _ in range(200):
            (number,) = scheduled.choose()
            assert paid[number] == min(paid.values())
            scheduled.charge([number])
            scheduled.plan(number, steps[number])
            paid[number] += steps[number].positions
            assert max(paid.values()) - min(paid.values()) <= max(s.positions for s in steps.values())


@pytest.mark.parametrize("own", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_stream_of_newcomers_does_not_starve_a_request(own: int, rows: int) -> None:
    """Four newcomers of ``own`` steps, each replaced as soon as it leaves; nothing shares a forward with request 0."""
    scheduled, left, steps = scheduler(rows=rows), dict.fromkeys(range(1, 5), own), 0
    for number in range(5):
        scheduled.enter(number)
        scheduled.plan(number, step(group="text" if number else "image"))
    arrived, ticks = 5, 500
    for _ in range(ticks):
        chosen = scheduled.choose()
        scheduled.charge(chosen)
        for number in chosen:
            if number == 0:
                steps += 1
            else:
                left[number] -= 1
            if number and not left[number]:
                scheduled.leave(number)
                number, arrived = arrived, arrived + 1
                left[number] = own
                scheduled.enter(number)
            scheduled.plan(number, step(group="text" if number else "image"))
    assert steps == pytest.approx(ticks / 5 if rows == 1 else ticks / 2, rel=0.25)


def test_a_newcomer_steps_soon_while_long_requests_run() -> None:
    """Random arrivals, eight requests at a time, of 1 to 30 steps and three groups: 95 % wait at most two ticks for their first step."""
    waits: list[int] = []
    for seed in range(3):
        rng, scheduled, number = Random(seed), scheduler(rows=16), 0
        left: dict[int, int] = {}
        entered: dict[int, int] = {}
        steps: dict[int, NextStep] = {}
        for tick in range(2000):
            while len(left) < 8 and rng.random() < 0.5:
                scheduled.enter(number, rng.choice([-2, 0, 0, 0, 1]))
                positions, left[number] = rng.randint(5, 60), rng.choice([1, 1, 4, 30])
                steps[number] = step(positions, group=rng.choice("abc"), left=positions * left[number])
                scheduled.plan(number, steps[number])
                entered[number] = tick
                number += 1
            chosen = scheduled.choose()
            scheduled.charge(chosen)
            for one in chosen:
                if one in entered:
                    waits.append(tick - entered.pop(one))
                left[one] -= 1
                if left[one]:
                    scheduled.plan(one, steps[one])
                else:
                    scheduled.leave(one)
                    del left[one]
    assert sorted(waits)[len(waits) * 95 // 100] <= 2 and max(waits) <= 8


def test_a_newcomer_starts_level_with_the_others_and_not_at_zero() -> None:
    scheduled = scheduler()
    scheduled.enter(0)
    taken(scheduled, {0: step()}, 50)
    scheduled.enter(1)
    assert taken(scheduled, {0: step(), 1: step()}, 10) == {0: 5, 1: 5}


def test_every_second_forward_may_go_to_a_short_request_and_no_more() -> None:
    """Three long requests, and beside them an endless row of requests that need a quarter of what the first one needs, or a little more."""

    def order(short: int) -> list[int]:
        scheduled, found, number = scheduler(), [], 3
        for long in range(3):
            scheduled.enter(long)
            scheduled.plan(long, step(left=100))
        for _ in range(40):
            if number not in scheduled._accounts:
                scheduled.enter(number)
                scheduled.plan(number, step(left=short))
            (chosen,) = scheduled.choose()
            scheduled.charge([chosen])
            found.append(min(chosen, 3))
            if chosen < 3:
                scheduled.plan(chosen, step(left=100))
            else:
                scheduled.leave(chosen)
                number += 1
        return found

    passing, waiting = order(100 // SHORT), order(100 // SHORT + 1)
    assert passing[:6:2] == [3, 3, 3] and 3 not in passing[1:6:2]
    assert all(Counter(passing)[long] >= 40 // 2 // 3 for long in range(3))
    assert waiting[:4] == [0, 1, 2, 3]


def test_longer_requests_add_a_multiple_of_what_the_first_one_needs() -> None:
    scheduled = scheduler(rows=99)
    scheduled.enter(0)
    scheduled.plan(0, step(10, left=20))
    for number in range(1, 9):
        scheduled.enter(number)
        scheduled.plan(number, step(30, left=60) if number % 2 else step(30, left=20))
    # Beside request 0: all that need no longer, and of the others 4 x 20 positions at most.
    assert scheduled.choose() == [0, 1, 2, 3, 4, 6, 8] and BESIDE * 20 // 30 == 2


def test_a_short_request_has_fewer_longer_ones_beside_it() -> None:
    def chosen(positions: int, left: int) -> list[int]:
        scheduled = scheduler(rows=99)
        scheduled.enter(0)
        scheduled.plan(0, step(10, left=20))
        for number in range(1, 9):
            scheduled.enter(number)
            scheduled.plan(number, step(positions, left=left if number % 2 else 20))
        return scheduled.choose()

    assert chosen(15, SHORT * 20) == [0, 1, 2, 3, 4, 6, 8] and BESIDE_SHORT * 20 // 15 == 2
    assert chosen(15, SHORT * 20 - 1) == [0, 1, 2, 3, 4, 5, 6, 7, 8] and BESIDE * 20 // 15 == 5


def test_only_equal_groups_share_a_forward() -> None:
    scheduled = scheduler(rows=9)
    for number, group in enumerate("abab"):
        scheduled.enter(number)
        scheduled.plan(number, step(group=group))
    assert scheduled.choose() == [0, 2]
    scheduled.charge([0, 2])
    assert scheduled.choose() == [1, 3]


def test_rows_are_a_limit_that_only_the_first_may_exceed() -> None:
    scheduled = scheduler(rows=4)
    for number, rows in enumerate((2, 3, 1, 1, 1)):
        scheduled.enter(number)
        scheduled.plan(number, step(rows=rows))
    assert scheduled.choose() == [0, 2, 3]  # the second does not fit, later ones do
    wide = scheduler(rows=2)
    wide.enter(0)
    wide.enter(1)
    wide.plan(0, step(rows=3))
    wide.plan(1, step(rows=1))
    assert wide.choose() == [0]


def test_stretch_limits_the_longest_row_against_the_shortest() -> None:
    scheduled = scheduler(rows=9, stretch=1.5)
    for number, length in enumerate((12, 16, 10, 18, 11)):
        scheduled.enter(number)
        scheduled.plan(number, step(length=length, padded=True))
    # 16 and 12 fit; 10 does not fit beside 16; 18 fits beside 12 (equal to the limit); 11 does not fit beside 18.
    assert scheduled.choose() == [0, 1, 3]
    equal = scheduler(rows=9, stretch=1.0)
    for number, length in enumerate((12, 13, 12)):
        equal.enter(number)
        equal.plan(number, step(length=length, padded=number == 2))
    assert equal.choose() == [0, 1], "rows of any lengths share a forward until one of them is padded"
    equal.plan(0, step(length=12, padded=True))
    assert equal.choose() == [0, 2]


def test_beside_padded_rows_all_have_their_shape() -> None:
    scheduled = scheduler(rows=9)
    for number, (shape, padded) in enumerate((("a", False), ("b", False), ("a", True), ("b", True))):
        scheduled.enter(number)
        scheduled.plan(number, step(shape=shape, padded=padded))
    assert scheduled.choose() == [0, 1]
    scheduled.leave(1)
    assert scheduled.choose() == [0, 2]


def test_idle_positions_are_limited_where_text_is_scored() -> None:
    scheduled = scheduler(rows=9, idle=50)
    for number, (text, idle) in enumerate(((True, 0), (False, 30), (False, 30), (True, 0), (False, 20))):
        scheduled.enter(number)
        scheduled.plan(number, step(text=text, idle=idle))
    assert scheduled.choose() == [0, 1, 3, 4]
    scheduled.leave(0)
    assert scheduled.choose() == [1, 2, 4], "without text no position is idle; request 3 would make 60 of them so"


def test_only_requests_with_a_planned_step_are_chosen() -> None:
    scheduled = scheduler(rows=9)
    assert scheduled.choose() == []
    scheduled.enter(0)
    scheduled.enter(1)
    assert scheduled.choose() == []
    scheduled.plan(1, step())
    assert scheduled.choose() == [1]
    scheduled.charge([1])
    assert scheduled.choose() == []
    with pytest.raises(ValueError, match="request 1 has no planned step"):
        scheduled.charge([1])
    scheduled.plan(0, step())
    scheduled.leave(0)
    scheduled.leave(0)
    assert scheduled.choose() == []
