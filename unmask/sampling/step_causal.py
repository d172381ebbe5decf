"""Step-causal decoding, the inference of Sparse-LaViDa (arXiv 2512.14008, sections 3 and 4): what is unmasked is computed once, and what
stays masked is left out.

Public idea: ``sparse_image(base, grid=.., fold=..)`` and ``sparse_text(base)`` change a sampler. A step computes the tokens that the last
step unmasked and those that it unmasks itself, beside the registers of the network. No unmasked token ever reads a masked one, so its
keys and values are final when they are first computed. For networks that were trained for it (``recipes/sparse.py``).

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.protocols import UnmaskingSchedule
from unmask.sampling.orders import halton, stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import InOrder
from unmask.sequence import ON_UNMASK, Batch
from unmask.step import CachePlan, Progress


@dataclass(frozen=True, kw_only=True)
class StepCausal:
    """A prior: masked tokens are ordered when they are unmasked. The given tokens are block 0, which reads itself alone."""

    def __call__(self, batch: Batch) -> Batch:
        open_BL = batch.masked & batch.valid
        return batch.replace(order=batch.order.masked_fill(~open_BL, 0).masked_fill(open_BL, ON_UNMASK))


@dataclass(frozen=True, kw_only=True)
class SparseCache:
    """Computes the unmasked tokens that are not held and the tokens to score; other masked tokens are absent. Keeps what is unmasked.

    Under ``StepCausal`` what is held equals one forward over the same tokens. ``exact`` is False, because without a cache the masked tokens
    would be there and read each other.
    """

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        new_BL = batch.valid & ~batch.masked & ~held
        return CachePlan(compute=new_BL | (predict & ~held), keep=new_BL)


@dataclass(frozen=True, kw_only=True)
class ByPosition:
    """A schedule over positions of ``codes`` tokens each: a position is unmasked as a whole.

    ValueError where the tokens are not whole positions.
    """

    schedule: UnmaskingSchedule
    codes: int = 4

    def counts(self, tokens: int) -> list[int]:
        if tokens % self.codes:
            raise ValueError(
                f"{tokens} masked codes are not whole positions of {self.codes}; mask whole positions, or decode densely"
            )
        return [self.codes * count for count in self.schedule.counts(tokens // self.codes)]


def by_position(order: Items[int], grid: tuple[int, int], fold: int) -> tuple[int, ...]:
    """Code numbers of a grid (rows, columns) in an order of its positions, each a square of ``fold`` x ``fold`` codes row by row."""
    rows, columns = grid
    codes = torch.arange(rows * columns).view(rows // fold, fold, columns // fold, fold)
    squares = codes.permute(0, 2, 1, 3).reshape(-1, fold * fold)
    return tuple(squares[torch.tensor(list(order), dtype=torch.long)].flatten().tolist())


def position_order(grid: tuple[int, int], fold: int) -> tuple[int, ...]:
    """The stratified order of positions (Halton's where the grid is not the square of a power of two), as code numbers."""
    rows, columns = grid[0] // fold, grid[1] // fold
    square = rows == columns and not rows & (rows - 1)
    return by_position(stratified(rows) if square else halton(rows, columns), grid, fold)


def sparse_image(base: Sampler, *, grid: tuple[int, int], fold: int) -> Sampler:
    """``base`` for pictures, step-causal: a fixed order of positions, and the steps of its schedule over them.

    Guidance, temperature and the schedule stay. The selection becomes a fixed order: a confidence over the whole picture would need all
    masked tokens to be scored.
    """
    return replace(
        sparse_text(base),
        schedule=ByPosition(schedule=base.schedule, codes=fold * fold),
        selection=InOrder(order=position_order(grid, fold)),
    )


def sparse_text(base: Sampler) -> Sampler:
    """``base`` for text, step-causal: a step scores the masked tokens of its block, and later blocks are absent."""
    return replace(base, prior=StepCausal(), cache=SparseCache())
