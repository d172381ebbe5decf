"""Which tokens a step computes, and which lend the keys and values of an earlier one.

Public idea: a cache is a value ``plan(batch, block, predict, held, progress) -> CachePlan | None``. ``PrefixCache`` is exact: it keeps
what can no longer change. ``CroppedCache`` and ``BlockCache`` keep tokens that still would change a little, and are approximate.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.positions import of_position
from unmask.sampling.spans import still_masked
from unmask.sequence import Batch, Span
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
    """Keeps the tokens that read no token which may still change, and computes only what the scored tokens read.

    ``Span.order`` and ``Span.segment`` say who reads whom. With a prompt of order 0 and an answer of order 1 this is the prefix-LM cache of
    LaViDa (arXiv 2505.16839, section 3.3); with a causal or block-causal answer every finished block joins it; questions in segments of
    their own share the picture before them, and one that is not being answered is not computed. A layout in which everything reads
    everything is computed without a cache.

    Not exact for a network that reads ``Batch.time``: the time changes at every step, and with it what was kept. Use ``NoCache`` there.

    ``least``: a run with fewer tokens times steps to come is computed without a cache, which costs less for a small model.
    """

    least: int = 1

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least counts tokens times steps, got {self.least}; 1 is always to cache")

    @property
    def exact(self) -> bool:
        return True

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        segments = _segments(batch.span_table)
        if segments is None or not _pays(batch, block, held, progress, self.least):
            return None
        # A position of four codes has the order and segment of its first: a masked code changes what is read there.
        order_BL, segment_BL = of_position(batch, batch.order), of_position(batch, batch.segment)
        number_BL = torch.searchsorted(segments.to(batch.device), segment_BL)
        read_to_BL = _highest_scored(order_BL, number_BL, predict, len(segments))
        compute_BL = batch.valid & ~held & (order_BL <= read_to_BL)
        # Tokens that are scored again after they were unmasked may be redrawn.
        open_BL = (batch.masked | predict) & batch.valid
        final_BL = ~open_BL & (order_BL < _lowest_read(order_BL, number_BL, open_BL, len(segments)))
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


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """A full pass at the first step; then the tokens before the answer are lent, but for the last of them, and never computed again.

    Approximate: the prompt has read the masked answer (prefilling of Dimple, arXiv 2505.16990). The last token of the prompt predicts the
    first of the answer where logits are shifted.
    """

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        answer_BL = (batch.writable & batch.valid).long().cumsum(1) > 0
        behind_BL = answer_BL | F.pad(answer_BL[:, 1:], (0, 1))
        compute_BL = batch.valid & (behind_BL | ~held)
        return CachePlan(compute=compute_BL, keep=compute_BL & ~behind_BL)


def _pays(batch: Batch, block: Tensor, held: Tensor, progress: Progress, least: int) -> bool:
    """Whether something is held, or ``least`` tokens times steps are to come. More steps than planned may be as many as masked tokens."""
    masked_BL = still_masked(batch)
    more_B = torch.where(progress.number > 0, (masked_BL & block).sum(1), 0)
    more_B = torch.where(progress.number + 1 < progress.of, progress.of - progress.number - 1, more_B)
    more_B = more_B + (masked_BL & ~block).sum(1)
    return bool((held.any(1) | (batch.valid.sum(1) * more_B >= least)).any())


@functools.lru_cache(maxsize=64)
def _segments(span_table: tuple[tuple[Span, ...], ...]) -> Tensor | None:
    """The segments that tokens of these spans may have, in rising order from 0; None where everything reads everything."""
    spans = [span for table in span_table for span in table]
    if not any(span.segment or span.order or span.order_step for span in spans):
        return None
    return torch.tensor(sorted({0, *(span.segment for span in spans)}))


def _lowest_read(order_BL: Tensor, number_BL: Tensor, open_BL: Tensor, segments: int) -> Tensor:
    """The lowest order of an open token in segment 0 or in a token's own segment, for every token, [B, L]. ``number``: of its segment."""
    lowest_BS = order_BL.new_full((len(order_BL), segments), _NEVER)
    lowest_BS = lowest_BS.scatter_reduce(1, number_BL, order_BL.masked_fill(~open_BL, _NEVER), "amin")
    return torch.minimum(lowest_BS, lowest_BS[:, :1]).gather(1, number_BL)


def _highest_scored(order_BL: Tensor, number_BL: Tensor, predict_BL: Tensor, segments: int) -> Tensor:
    """The highest order of a scored token that may read a token: one in its own segment, or anywhere if its own is segment 0; [B, L]."""
    highest_BS = order_BL.new_full((len(order_BL), segments), -_NEVER)
    highest_BS = highest_BS.scatter_reduce(1, number_BL, order_BL.masked_fill(~predict_BL, -_NEVER), "amax")
    highest_BS = torch.cat([highest_BS.amax(1, keepdim=True), highest_BS[:, 1:]], 1)
    return highest_BS.gather(1, number_BL)
