"""An answer never depends on its company: whatever arrives, leaves or fails beside it, every bit is that of the plain sampler alone."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.serving.requests import Cancelled, Handle

from .tiny import POOL, Made, alone, engine, net, request, spied

torch.set_num_threads(1)


@functools.cache
def model() -> Elastic:
    return net()


@functools.cache
def solo(index: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    return alone(model(), *POOL[index], seed)


def agree(handle: Handle, told: list[Tensor], index: int) -> None:
    ids, wanted = solo(index, handle.request.seed)
    assert torch.equal(handle.result(0), ids)
    assert len(told) == len(wanted) and all(torch.equal(a, b) for a, b in zip(told, wanted, strict=True))


@pytest.mark.parametrize("schedule", range(48))
def test_any_schedule_gives_every_request_the_bits_it_has_alone(schedule: int) -> None:
    rng = random.Random(schedule)
    served = engine(
        model(),
        live=rng.randint(1, 8),
        waiting=99,
        rows=rng.randint(1, 16),
        multiple=rng.choice([1, 4, 4, 64]),
        stretch=rng.choice([1.0, 1.34, 1.34, 9.0]),
    )
    taken: list[tuple[Handle, list[Tensor], int]] = []
    arrivals = [rng.randrange(len(POOL)) for _ in range(rng.randint(4, 10))]
    while arrivals or not all(handle.done for handle, _, _ in taken):
        if arrivals and rng.random() < 0.5:
            index = arrivals.pop()
            built, sampler = POOL[index]
            spy, told = spied(sampler)
            asked = request(built, spy, seed=rng.randrange(3), priority=rng.choice([-1, 0, 0, 2]))
            taken.append((served.submit(asked), told, index))
        if taken and rng.random() < 0.05:
            rng.choice(taken)[0].cancel()
        if rng.random() < 0.7:
            served.tick()
    assert not served.tick()
    for handle, told, index in taken:
        if handle.cancelled:
            try:
                handle.result(0)
            except Cancelled:
                continue
        agree(handle, told, index)


def test_rows_really_run_stacked() -> None:
    """Else the property above would say little."""
    served = engine(model(), rows=16)
    taken = []
    for index in (0, 1, 4, 5, 6) * 2:
        spy, told = spied(POOL[index][1])
        taken.append((served.submit(request(POOL[index][0], spy)), told, index))
    served.drain()
    for handle, told, index in taken:
        agree(handle, told, index)
    metrics = served.metrics()
    assert metrics.rows > 2.5 * metrics.forwards


def test_a_task_may_build_something_that_is_decided_already() -> None:
    built, sampler = POOL[1]
    asked = request(built, sampler)
    finished = Made(sequence=built.__class__(ids=built.ids, masked=built.masked & False, spans=built.spans))
    served = engine(model())
    handle = served.submit(asked.__class__(task=finished, sampler=sampler))
    assert not served.tick()
    assert torch.equal(handle.result(0), built.ids)
