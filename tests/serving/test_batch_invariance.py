"""Batch invariance: whatever else arrives, leaves or fails in the engine, every bit is that of the plain sampler on a batch of one."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.serving.requests import Cancelled, Handle

from .tiny import POOL, alone, engine, net, request, spied

torch.set_num_threads(1)


@functools.cache
def model() -> Elastic:
    return net()


@functools.cache
def reference(index: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    return alone(model(), *POOL[index], seed)


def check(handle: Handle, seen: list[Tensor], index: int) -> None:
    """The ids, and every prediction on the way, are those of the reference."""
    ids, wanted = reference(index, handle.request.seed)
    result = handle.result(0)
    assert torch.equal(result.ids, ids) and not result.masked.any()
    assert len(seen) == len(wanted) and all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("case", range(48))
def test_any_order_of_arrivals_gives_the_bits_of_a_batch_of_one(case: int) -> None:
    rng = random.Random(case)
    served = engine(
        model(),
        running=rng.randint(1, 8),
        queued=99,
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
            spy, seen = spied(sampler)
            submitted = request(built, spy, seed=rng.randrange(3), priority=rng.choice([-1, 0, 0, 2]))
            taken.append((served.submit(submitted), seen, index))
        if taken and rng.random() < 0.05:
            rng.choice(taken)[0].cancel()
        if rng.random() < 0.7:
            served.tick()
    assert not served.tick()
    for handle, seen, index in taken:
        if handle.cancelled:
            try:
                handle.result(0)
            except Cancelled:
                continue
        check(handle, seen, index)


def test_requests_do_share_forwards() -> None:
    """Otherwise the test above would prove little."""
    served = engine(model(), rows=16)
    taken = []
    for index in (0, 1, 4, 5, 6) * 2:
        spy, seen = spied(POOL[index][1])
        taken.append((served.submit(request(POOL[index][0], spy)), seen, index))
    served.drain()
    for handle, seen, index in taken:
        check(handle, seen, index)
    metrics = served.metrics()
    assert metrics.rows > 2.5 * metrics.forwards


def test_a_sequence_without_masked_tokens_needs_no_forward() -> None:
    built, sampler = POOL[1]
    served = engine(model())
    handle = served.submit(request(dataclasses.replace(built, masked=built.masked & False), sampler))
    assert not served.tick()
    assert torch.equal(handle.result(0).ids, built.ids)
