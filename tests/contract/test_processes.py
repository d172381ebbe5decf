"""The laws of forward processes: the mask rate is the schedule's, clean tokens stay, and all draws are the generator's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unmask.rng import generator
from unmask.sequence import Batch, Kind, Span, collate

from .instances import ALL_CORRUPTIONS, COLLAPSING, CORRUPTIONS, POLICIES, name_of, row, tensors

every_process = pytest.mark.parametrize("process", ALL_CORRUPTIONS, ids=name_of)
every_time = pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.9, 1.0])
TEXT, CODES = 60, 64


def clean(rows: int = 40) -> Batch:
    """Given text, writable text, given and writable codes; every second row is shorter."""
    table = [
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=4),
        Span(name="answer", kind=Kind.TEXT, start=4, stop=4 + TEXT, writable=True),
        Span(name="source", kind=Kind.CODE, start=4 + TEXT, stop=20 + TEXT, grid=(4, 4), fold=2),
        Span(name="image", kind=Kind.CODE, start=20 + TEXT, stop=20 + TEXT + CODES, grid=(8, 8), fold=2, writable=True),
        Span(name="tail", kind=Kind.TEXT, start=20 + TEXT + CODES, stop=26 + TEXT + CODES),
    ]
    some = [row(table if n % 2 else table[:4], seed=n) for n in range(rows)]
    batch = collate(some, range(rows))
    ids = batch.ids.masked_fill(batch.ids == COLLAPSING.announce, 8)  # no row announces a picture
    return batch.replace(ids=ids, clean=ids, masked=torch.zeros_like(batch.masked))


def corrupted(process: Any, batch: Batch, *key: object) -> Batch:
    rng = generator(*key)
    return process.corrupt(batch, process.times(batch, rng), rng)


@every_process
def test_what_is_given_and_what_is_clean_stay(process: Any) -> None:
    batch = clean()
    before = {name: tensor.clone() for name, tensor in tensors(batch).items()}
    noisy = corrupted(process, batch, "stay")
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(batch).items()), "the input changed"
    open_ = batch.writable & batch.valid
    assert not (noisy.masked & ~open_).any() and noisy.masked.any()
    assert torch.equal(noisy.ids[~open_], batch.ids[~open_])
    assert noisy.clean is not None and torch.equal(noisy.clean, batch.ids)
    written = {"ids", "masked", "time", "weight", "target", "order", "segment"}
    for name, tensor in tensors(batch).items():
        assert name in written or torch.equal(tensor, getattr(noisy, name)), name


@every_process
def test_time_and_weight_are_set(process: Any) -> None:
    batch = clean()
    noisy = corrupted(process, batch, "set")
    open_ = batch.writable & batch.valid
    assert noisy.time is not None and noisy.weight is not None
    assert noisy.time.shape == noisy.weight.shape == batch.ids.shape
    assert ((noisy.time >= 0) & (noisy.time <= 1))[open_].all() and (noisy.weight[open_] > 0).all()
    scored = noisy.masked if noisy.target is None else noisy.target
    assert scored.any() and not (scored & ~batch.valid).any()


@every_process
@every_time
def test_the_rate_at_a_time_is_the_weight(process: Any, time: float) -> None:
    """Tokens masked, against the sum of the probabilities that ``weight`` states: within five standard deviations."""
    batch = clean(100)
    noisy = process.corrupt(batch, torch.full((100,), time), generator("rate", time))
    assert noisy.weight is not None
    for kind in (Kind.TEXT, Kind.CODE):
        some = batch.writable & batch.valid & (batch.kind == kind) & noisy.weight.isfinite()
        p = noisy.weight[some].double()
        changed = noisy.masked | (noisy.ids != batch.ids)
        sigma = math.sqrt(float((p * (1 - p)).sum().clamp(min=0)) + 1)
        # A group that drew no mask has one forced, of infinite weight; without it the others are a little rarer.
        assert abs(float(changed[some].sum()) - float(p.sum())) < 5 * sigma + 0.02 * len(p) * (time == 0)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_times_follow_the_policy(policy: Any) -> None:
    """The mean over many rows is that of the policy over 0..1, and text and codes have times of their own."""
    process = CORRUPTIONS[POLICIES.index(policy)]
    batch = clean(200)
    time = process.times(batch, generator("times"))
    grid = (torch.arange(20_000) + 0.5) / 20_000
    for kind, wanted in ((Kind.TEXT, policy), (Kind.CODE, POLICIES[0])):
        place = int(((batch.kind[0] == kind) & batch.writable[0]).nonzero()[0])
        assert float(time[:, place].mean()) == pytest.approx(float(wanted(grid).mean()), abs=0.01)
    noisy = process.corrupt(batch, time, generator("mask"))
    text = batch.writable & (batch.kind == Kind.TEXT)
    assert float(noisy.masked[text].float().mean()) == pytest.approx(float(policy(grid).mean()), abs=0.02)


@every_process
def test_the_same_generator_gives_the_same_result(process: Any) -> None:
    batch = clean(6)
    one, same, other = (corrupted(process, batch, key) for key in ("a", "a", "b"))
    assert all(torch.equal(tensor, getattr(same, name)) for name, tensor in tensors(one).items())
    assert not torch.equal(one.masked, other.masked)


@every_process
def test_more_time_masks_more(process: Any) -> None:
    batch = clean(10)
    counts = [
        int(process.corrupt(batch, torch.full((10,), t), generator("more")).masked.sum()) for t in (0.0, 0.2, 0.6, 1.0)
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1]


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_policies_stay_in_0_to_1(policy: Any) -> None:
    time = policy(torch.arange(1000) / 1000)
    assert ((time >= 0) & (time <= 1)).all() and len(time.unique()) > 100
