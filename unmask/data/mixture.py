"""Mixtures of sources (spec 3.4). Public idea: ``Joint`` returns a batch of every source that is due, ``Weighted`` of one, by weight."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from unmask.protocols import Source

B = TypeVar("B")  # a batch


@dataclass(frozen=True, kw_only=True)
class Joint(Generic[B]):
    """{name: batch} of all sources that are due: source i contributes to every ``every``-th batch.

    Processes take batches in turn: if ``every`` is a multiple of their number, one process gets all batches of that source.
    """

    parts: tuple[tuple[str, Source[B], int], ...]

    def __call__(self, step: int) -> dict[str, B]:
        return {name: source(step // every) for name, source, every in self.parts if step % every == 0}


@dataclass(frozen=True, kw_only=True)
class Weighted(Generic[B]):
    """{name: batch} of one source, drawn by weight as a function of (seed, step)."""

    parts: tuple[tuple[str, Source[B], float], ...]
    seed: int = 0

    def __call__(self, step: int) -> dict[str, B]:
        rng = Random(f"mixture/{self.seed}/{step}")
        name, source, _ = rng.choices(self.parts, [w for _, _, w in self.parts])[0]
        return {name: source(step)}
