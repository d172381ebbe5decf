"""Generators as seeds, without any other library."""

from __future__ import annotations

import pytest
import torch

from unmask.integrations.seeds import consecutive, seed_of, seeds_of


@pytest.mark.parametrize("seed", [0, 7, -1, 2**62 - 1, -(2**62) + 1])
def test_a_new_generator_is_its_seed(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert seed_of(generator) == seed
    assert seed_of(generator) not in (seed, seed_of(generator))


def test_every_seed_fits_the_model() -> None:
    assert abs(seed_of(torch.Generator().manual_seed(2**63 - 5))) < 2**62
    assert abs(seed_of(torch.Generator().manual_seed(-(2**63)))) < 2**62


def test_a_used_generator_is_what_it_draws_next() -> None:
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    torch.rand(1, generator=first)
    torch.rand(1, generator=second)
    assert seed_of(first) == seed_of(second) != 3
    torch.rand(1, generator=first)
    assert seed_of(first) != seed_of(second)


def test_seeds_of_several_prompts() -> None:
    assert seeds_of(torch.Generator().manual_seed(4), 2, 3) == [[4, 5, 6], [4, 5, 6]]
    several = [torch.Generator().manual_seed(seed) for seed in (9, 1, 2, 3)]
    assert seeds_of(several, 2, 2) == [[9, 1], [2, 3]]
    with pytest.raises(ValueError, match="1 generators were given for 2 pictures"):
        seeds_of(several[:1], 2, 1)


def test_consecutive_seeds_are_one_call() -> None:
    assert list(consecutive([4, 5, 6, 1, 2, 9])) == [(4, 3), (1, 2), (9, 1)]
    assert list(consecutive([])) == []
