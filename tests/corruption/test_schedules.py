"""Policies: where they begin and end, and how often each ratio comes."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.corruption.schedules import Between, Cosine, OftenAll, Policy, Uniform

torch.set_num_threads(1)
U = torch.linspace(0, 1, 10_001)
POLICIES = [Uniform(), Cosine(), OftenAll(policy=Uniform(), all=0.25), OftenAll(policy=Cosine(), all=0.4)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_times_lie_between_clean_and_all_masked(policy: Policy) -> None:
    time = policy(U)
    assert time.shape == U.shape
    assert float(time.min()) >= -1e-6 and float(time.max()) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("policy", "mean"), [(Uniform(), 0.5), (Cosine(), 2 / math.pi), (OftenAll(policy=Uniform(), all=0.25), 0.625)]
)
def test_mean_time(policy: Policy, mean: float) -> None:
    assert float(policy(U).mean()) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_cosine_has_the_arc_density(ratio: float) -> None:
    """P(time <= r) = 1 - acos(r) * 2/pi: high ratios are more frequent than under ``Uniform``."""
    assert float((Cosine()(U) <= ratio).float().mean()) == pytest.approx(1 - 2 * math.acos(ratio) / math.pi, abs=1e-3)


def test_often_all_keeps_the_rest_of_its_policy() -> None:
    time = OftenAll(policy=Uniform(), all=0.3)(U)
    everything = time == 1
    assert float(everything.float().mean()) == pytest.approx(0.3, abs=1e-3)
    rest = time[~everything]
    assert float(rest.mean()) == pytest.approx(0.5, abs=1e-3) and float(rest.min()) < 1e-3


def test_times_between_two_levels() -> None:
    found = Between(low=0.2, high=0.8)(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(found, torch.tensor([0.2, 0.5, 0.8]))
    with pytest.raises(ValueError, match="0 <= low <= high <= 1, got 0.8 and 0.2"):
        Between(low=0.8, high=0.2)
