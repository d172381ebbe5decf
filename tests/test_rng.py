"""First weights come from their own seed, and torch's stream goes on as if nothing had been made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unmask.rng import seeded


def test_layers_are_a_function_of_the_seed_and_leave_the_stream_alone() -> None:
    torch.manual_seed(7)
    wanted = nn.Linear(3, 2).weight
    torch.manual_seed(1)
    after = torch.rand(4)
    torch.manual_seed(1)
    made, other = seeded(lambda: nn.Linear(3, 2), 7), seeded(lambda: nn.Linear(3, 2), 8)
    assert torch.equal(made.weight, wanted) and not torch.equal(other.weight, wanted)
    assert torch.equal(torch.rand(4), after)


def test_the_stream_is_put_back_after_an_error() -> None:
    torch.manual_seed(1)
    after = torch.rand(4)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError):
        seeded(lambda: torch.rand(2) / (1 // 0), 7)
    assert torch.equal(torch.rand(4), after)
