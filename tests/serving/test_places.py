"""Places by cost: which requests run, which are parked, and that none waits forever. Numbers first, then an engine with a tiny model."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
import torch

from unmask.models.elastic import Elastic
from unmask.sampling import schedule
from unmask.sequence import Sequence
from unmask.serving.cost import cost_of
from unmask.serving.places import LONGER, Places, Turn

from .tiny import BLOCKS, DRAW, FAST, HALF, ONE_BY_ONE, alone, asking, drawing, engine, net, request, text, ticks_until

torch.set_num_threads(1)
SLOW = dataclasses.replace(DRAW, schedule=schedule.Cosine(steps=64))


def turns(places: Places) -> list[Turn]:
    return list(iter(places.admit, None))


@pytest.fixture(scope="module")
def model() -> Elastic:
    return net()


def test_requests_enter_in_the_order_in_which_a_fair_device_would_finish_them() -> None:
    places = Places(most=1, parked=0)
    for number, (cost, priority) in enumerate(((50, 0), (900, 0), (100, 0), (100, 0), (300, 2), (100, -1))):
        places.join(number, cost, priority)
    assert [places.position(n) for n in range(6)] == [1, 6, 3, 4, 2, 5] and places.position(99) == 0
    order = []
    while found := turns(places):
        (turn,) = found
        assert turn.park is None
        order.append(turn.number)
        places.leave(turn.number)
    assert order == [0, 4, 2, 3, 5, 1]


def test_a_short_request_takes_the_place_of_the_longest_which_then_goes_on() -> None:
    places = Places(most=2, parked=1)
    places.join(0, 1000)
    places.join(1, 4000)
    assert turns(places) == [Turn(number=0), Turn(number=1)]
    places.join(2, 1001)  # more than a quarter of what request 1 needs
    assert turns(places) == []
    places.join(3, 1000)
    assert turns(places) == [Turn(number=3, park=1)]
    assert (places.running, places.parked, places.queued) == (2, 1, 1)
    places.join(4, 1)
    assert turns(places) == [], "one run may be parked, no more"
    places.leave(3)
    assert turns(places) == [Turn(number=4)]
    places.leave(4)
    assert turns(places) == [Turn(number=2)], "it would finish before the parked one"
    places.leave(2)
    assert turns(places) == [Turn(number=1)]
    places.serve({1: 3000})
    places.join(5, 250 + 1)
    assert turns(places) == [], "what it has left counts, not what it cost"
    places.leave(1)
    assert turns(places) == [Turn(number=5)]


def test_a_parked_request_that_is_cancelled_frees_what_it_held() -> None:
    places = Places(most=1, parked=1)
    places.join(0, 1000)
    assert turns(places) == [Turn(number=0)]
    places.join(1, 1)
    assert turns(places) == [Turn(number=1, park=0)]
    places.leave(0)
    places.leave(1)
    places.join(2, 1)
    assert turns(places) == [Turn(number=2)] and places.parked == 0
    places.leave(2)
    places.leave(2)
    assert (places.running, places.queued) == (0, 0)


@pytest.mark.parametrize("parked", [0, 3])
def test_no_stream_of_short_requests_starves_a_long_one(parked: int) -> None:
    """One long request beside as many short ones as there are places, without end: it gets its fair share of what is served."""
    places, rng = Places(most=4, parked=parked), Random(0)
    left = {0: 400.0}
    places.join(0, 400)
    number = served = 0
    running: set[int] = set()
    while 0 in left:
        while len(left) < 12:
            number += 1
            left[number] = float(rng.randint(1, 4))
            places.join(number, left[number])
        for turn in turns(places):
            running.add(turn.number)
            if turn.park is not None:
                running.remove(turn.park)
        assert len(running) == 4
        places.serve(dict.fromkeys(running, 1))
        for one in sorted(running):
            served += 1
            left[one] -= 1
            if left[one] <= 0:
                del left[one]
                places.leave(one)
                running.remove(one)
        assert served < 3 * 12 * 400, "twelve requests share the device; a third of its share is the least"


def test_a_short_request_waits_for_few_forwards_beside_forty_long_drawings(model: Elastic) -> None:
    """Forty drawings of 64 steps hold every place; a text of one step took 257 forwards while places were given in order of arrival."""
    served = engine(model)
    for seed in range(40):
        served.submit(request(drawing(seed=seed), SLOW, seed=seed))
    for _ in range(5):
        served.tick()
    assert (served.metrics().running, served.metrics().queued) == (32, 8)
    waits = []
    for seed in range(12):
        small = served.submit(request(text(1, seed=seed)))
        waits.append(ticks_until(served, small))
        for _ in range(seed % 5):
            served.tick()
    assert max(waits) <= 10 and sum(waits) <= 5 * len(waits), waits
    together = [served.submit(request(text(1, seed=seed))) for seed in range(20)]
    assert ticks_until(served, *together) <= 20
    question = served.submit(request(asking(4), FAST))
    assert ticks_until(served, question) <= 2 * 10
    assert served.metrics().parked <= served.limits.parked
    assert served.metrics().finished == 12 + 20 + 1, "and no drawing has ended"
    served.close()


def test_a_parked_request_draws_what_it_draws_alone(model: Elastic) -> None:
    slow = dataclasses.replace(DRAW, schedule=schedule.Cosine(steps=20))
    served = engine(model, running=1, parked=2)
    long = served.submit(request(drawing(seed=5), slow, seed=9), row=0)
    for seed in range(6):
        served.tick()
        assert (served.metrics().running, served.metrics().parked) == (1, 0)
        small = served.submit(request(text(1, seed=seed)))
        served.tick()
        assert small.done and served.metrics().parked == 1 and not long.done
    served.drain()
    assert torch.equal(long.result(0).ids, alone(model, drawing(seed=5), slow, 9)[0])
    assert [event.number for event in long.events()] == list(range(21))
    assert served.metrics().parked == 0


@pytest.mark.parametrize("stop", ["cancel", "close"])
def test_a_parked_request_can_be_cancelled_and_closed(model: Elastic, stop: str) -> None:
    served = engine(model, running=1)
    long = served.submit(request(drawing(), SLOW))
    served.tick()
    small = served.submit(request(text(3)))
    served.tick()
    assert served.metrics().parked == 1 and not small.done
    if stop == "cancel":
        long.cancel()
        served.tick()
    else:
        served.close()
    assert long.done and long.future.exception(0) is not None
    assert served.metrics().parked == 0


@pytest.mark.parametrize(
    ("built", "sampler", "forwards"),
    [
        (text(9), ONE_BY_ONE, 9),
        (text(9), BLOCKS, 9),
        (text(9), FAST, 2),
        (drawing(), DRAW, 2 * 5),
        (drawing(), dataclasses.replace(DRAW, guidance=HALF), 5),  # its first step has one view
        (asking(4), FAST, 2),
    ],
)
def test_the_cost_is_what_the_sampler_plans(built: Sequence, sampler: object, forwards: int) -> None:
    positions = {"text": 20 + 9, "drawing": 17 + 64 // 4 + 1}
    of = positions["drawing"] if any(s.name == "image" for s in built.spans) else len(built.ids)
    assert cost_of(built, sampler) == forwards * of  # type: ignore[arg-type]


def test_a_sampler_that_cannot_plan_counts_a_step_for_each_token() -> None:
    broken = dataclasses.replace(ONE_BY_ONE, schedule=None)  # type: ignore[arg-type]
    assert cost_of(text(9, given=11), broken) == 9 * 20
    assert LONGER > 1
