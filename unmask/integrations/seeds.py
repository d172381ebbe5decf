"""Torch generators as seeds of this package. Public idea: ``seeds_of(generator, prompts, each) -> seeds of every prompt``.

A generator that is as ``manual_seed(7)`` left it means the seed 7, so that its pictures are those of ``model.generate(..., seed=7)``. One
that has been used means a number drawn from it. Either way the generator moves on, so that a second call with it gives other pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

_RANGE = 2**31  # of seeds that are drawn; any of them fits 32 bits
_LARGEST = 2**62  # as of ``unmask.tasks.arguments``


def seed_of(generator: torch.Generator) -> int:
    """The seed that a generator stands for; moves the generator on."""
    first = generator.initial_seed()
    fresh = torch.Generator(device=generator.device).manual_seed(first)
    unused = torch.equal(fresh.get_state(), generator.get_state())
    drawn = int(torch.randint(_RANGE, (), generator=generator, device=generator.device))
    if not unused:
        return drawn
    signed = first - 2**64 if first >= 2**63 else first  # manual_seed(-1) is stored as 2**64 - 1
    return signed if abs(signed) < _LARGEST else signed % _LARGEST


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None, prompts: int, each: int) -> list[list[int]]:
    """One list of ``each`` seeds for every prompt.

    One generator: its seed and the following ones, for every prompt alike · a list: one generator a picture, the pictures of the first
    prompt first · None: a seed drawn from torch's global generator. ValueError for a list of another length.
    """
    if isinstance(generator, Sequence):
        if len(generator) != prompts * each:
            raise ValueError(
                f"{len(generator)} generators were given for {prompts * each} pictures; give one for every picture, or one for all"
            )
        seeds = [seed_of(one) for one in generator]
        return [seeds[row * each : (row + 1) * each] for row in range(prompts)]
    start = int(torch.randint(_RANGE, ())) if generator is None else seed_of(generator)
    return [list(range(start, start + each)) for _ in range(prompts)]


def consecutive(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first seed, how many) of every stretch of consecutive seeds, which one call can draw."""
    start = 0
    for at in range(1, len(seeds) + 1):
        if at == len(seeds) or seeds[at] != seeds[at - 1] + 1:
            yield seeds[start], at - start
            start = at
