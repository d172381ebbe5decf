"""Batch invariance: whatever else arrives, leaves or fails in the engine, every bit is that of the plain sampler on a batch of one."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch
from torch import Tensor, nn

from unmask.models.elastic import Elastic
from unmask.models.lora import LoRA, adapters, sharing
from unmask.rng import generator
from unmask.serving.requests import Cancelled, Handle

from .tiny import POOL, alone, engine, net, request, spied

torch.set_num_threads(1)


@functools.cache
def model() -> Elastic:
    return net()


@functools.cache
def adapted(rank: int) -> Elastic:
    """The model with an adapter of every linear layer; 0: without one."""
    if not rank:
        return model()
    made = sharing(model())
    LoRA(where=lambda name: True, rank=rank)(made)
    rng = generator("adapter", rank)
    for _, _, adapter in adapters(made):
        nn.init.normal_(adapter.up, 0, 0.1, generator=rng)
    return made


@functools.cache
def reference(index: int, seed: int, rank: int = 0) -> tuple[Tensor, list[Tensor]]:
    return alone(adapted(rank), *POOL[index], seed)


def check(handle: Handle, seen: list[Tensor], index: int, rank: int = 0) -> None:
    """The ids, and every prediction on the way, are those of the reference."""
    ids, wanted = reference(index, handle.request.seed, rank)
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
        idle=rng.choice([0, 100, 100, 9999]),
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


@pytest.mark.parametrize("case", range(16))
def test_requests_with_different_adapters_do_not_affect_each_other(case: int) -> None:
    rng = random.Random(case)
    served = engine(model(), running=8, queued=99, rows=16)
    taken: list[tuple[Handle, list[Tensor], int, int]] = []
    ranks = rng.sample([0, 1, 3, 8, 16, 20], 3)
    for _ in range(10):
        index, rank = rng.randrange(len(POOL)), rng.choice(ranks)
        spy, seen = spied(POOL[index][1])
        made = dataclasses.replace(request(POOL[index][0], spy, seed=rng.randrange(3)), net=adapted(rank))
        taken.append((served.submit(made), seen, index, rank))
    served.drain()
    for handle, seen, index, rank in taken:
        check(handle, seen, index, rank)
    metrics = served.metrics()
    assert metrics.rows > metrics.forwards


def test_adapters_change_the_predictions() -> None:
    """Otherwise the test above would prove little; the pictures of both are in one cache."""
    for index in (4, 7):
        base, *others = (reference(index, 0, rank)[1] for rank in (0, 3, 16))
        assert not any(torch.equal(base[-1], other[-1]) for other in others)


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
