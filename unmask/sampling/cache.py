"""Which tokens a step computes, and which lend the keys and values of an earlier one.

Public idea: a cache is a value ``plan(batch, block, predict, held, progress) -> CachePlan | None``. ``PrefixCache`` is exact: it keeps
what can no longer change. ``CroppedCache`` and ``BlockCache`` keep tokens that still would change a little, and are approximate.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sampling.spans import of_position
from unmask.sequence import Batch
from unmask.step import CachePlan, Progress

_NEVER = torch.iinfo(torch.long).max


@dataclass(frozen=True, kw_only=True)
class NoCache:
    """Every step computes every token."""

    @property
    def exact(self) -> bool:
        return True

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        return None


@dataclass(frozen=True, kw_only=True)
class PrefixCache:
    """Keeps the tokens that read no masked token, which ``Span.order`` and ``Span.segment`` say; skips those that nobody reads yet.

    With a prompt of order 0 and an answer of order 1 this is the prefix-LM cache of LaViDa (arXiv 2505.16839, section 3.3); with a causal
    or block-causal answer every finished block joins it.

    Not exact for a network that reads ``Batch.time``: the time changes at every step, and with it what was kept. Use ``NoCache`` there.
    """

    @property
    def exact(self) -> bool:
        return True

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        # A position of four codes has the order and segment of its first: a masked code changes what is read there.
        order_BL, segment_BL = of_position(batch, batch.order), of_position(batch, batch.segment)
        masked_BL = batch.masked & batch.valid
        read_to_B = order_BL.masked_fill(~predict, -_NEVER).amax(1)
        compute_BL = batch.valid & ~held & (order_BL <= read_to_B[:, None])
        final_BL = ~masked_BL & (order_BL < _lowest_read(order_BL, segment_BL, masked_BL))
        return CachePlan(compute=compute_BL, keep=compute_BL & final_BL)


@dataclass(frozen=True, kw_only=True)
class CroppedCache:
    """A full pass at the first step of a block; then the tokens before the block are lent, the block and all behind it computed.

    Approximate: what is lent has read the block before it was unmasked (prefix cache of Fast-dLLM, arXiv 2505.22618).
    """

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        first_B1 = (progress.number == 0)[:, None]
        behind_BL = block.long().cumsum(1) > 0
        compute_BL = batch.valid & (first_B1 | behind_BL | ~held)
        return CachePlan(compute=compute_BL, keep=compute_BL & ~behind_BL)


@dataclass(frozen=True, kw_only=True)
class BlockCache:
    """A full pass at the first step of a block and every ``refresh`` steps; between them only the block is computed.

    Approximate: the tokens before and behind the block are as they were at the last full pass (dual cache of Fast-dLLM, arXiv 2505.22618;
    dLLM-Cache, arXiv 2506.06295, refreshes at intervals). ``refresh`` 1 is no cache, 0 refreshes at the first step alone.
    """

    refresh: int = 0

    def __post_init__(self) -> None:
        if self.refresh < 0:
            raise ValueError(f"refresh counts steps, got {self.refresh}; 1 is every step, 0 only the first of a block")

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        due_B = progress.number == 0 if self.refresh == 0 else progress.number % self.refresh == 0
        compute_BL = batch.valid & (due_B[:, None] | block | predict | ~held)
        return CachePlan(compute=compute_BL, keep=compute_BL & ~block)


def _lowest_read(order_BL: Tensor, segment_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """The lowest order of a masked token in segment 0 or in a token's own segment, for every token, [B, L]."""
    order_BL = order_BL.masked_fill(~masked_BL, _NEVER)
    segments, number_BL = segment_BL.unique(return_inverse=True)
    lowest_BS = order_BL.new_full((len(order_BL), len(segments)), _NEVER)
    lowest_BS = lowest_BS.scatter_reduce(1, number_BL, order_BL, "amin")
    common_B1 = order_BL.masked_fill(segment_BL != 0, _NEVER).amin(1, keepdim=True)
    return torch.minimum(lowest_BS.gather(1, number_BL), common_B1)
