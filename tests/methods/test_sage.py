"""SAGE against its arrays, an enumerated world with planted failures: exact rates, replays, and one update of the search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.analysis.search import updated
from unmask.methods.sage import Conditional, failure, outcomes, replay

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("sage")


def conditional(arrays: dict[str, Tensor], prompt: int) -> Conditional:
    """softmax(bias_i + sum over j of table[x_j, j, i])."""
    table, bias = arrays["table"][prompt], arrays["bias"][prompt]
    places = torch.arange(len(bias))
    return lambda x: (bias + table[x, places].sum(0)).softmax(-1)


def mask(arrays: dict[str, Tensor]) -> int:
    return arrays["table"].shape[1] - 1


def none_is_one(x: Tensor) -> bool:
    return not bool((x == 1).any())


def test_failure_rates_are_exact(arrays: dict[str, Tensor]) -> None:
    found = torch.tensor(
        [
            [failure(conditional(arrays, p), order, mask(arrays), none_is_one) for order in arrays["orders"].tolist()]
            for p in range(len(arrays["bias"]))
        ]
    )
    assert torch.allclose(found.double(), arrays["failure"], atol=1e-6, rtol=1e-4)


def test_outcomes_are_a_distribution(arrays: dict[str, Tensor]) -> None:
    every = list(outcomes(conditional(arrays, 0), arrays["orders"][0].tolist(), mask(arrays)))
    assert len({tuple(x.tolist()) for x, _ in every}) == len(every) == 2 ** arrays["orders"].shape[1]
    assert sum(p for _, p in every) == pytest.approx(1, abs=1e-5)


def test_failures_replay_from_their_numbers(arrays: dict[str, Tensor]) -> None:
    order = range(arrays["orders"].shape[1])
    found = torch.tensor(
        [
            [float(none_is_one(replay(conditional(arrays, p), order, u, mask(arrays)))) for u in arrays["replay.u"]]
            for p in range(len(arrays["bias"]))
        ]
    )
    assert torch.equal(found, arrays["replay.failed"])


def test_one_update_of_the_cross_entropy_method(arrays: dict[str, Tensor]) -> None:
    prompts = len(arrays["failure"])
    samples, first = arrays["cem.samples"], arrays["failure"][:, 0]
    assert torch.allclose(first[samples], arrays["cem.scores"])
    p = torch.full((prompts,), 1 / prompts, dtype=torch.float64)
    share = float(arrays["cem.smoothing"])
    best, new = updated(p, samples, arrays["cem.scores"], elite=len(arrays["cem.elite"]), share=share)
    assert torch.equal(best, arrays["cem.elite"]) and torch.allclose(new, arrays["cem.updated"], atol=1e-6)
