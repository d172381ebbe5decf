"""LLaDA2's loop as released: blocks of a row, each unmasked over a few steps (arXiv 2512.15745), and token editing (2.1, 2602.08676).

Public ideas: ``Blocks(..).run(scorer, prompt, length) -> Finished`` and ``Editing(..).run(..)``. Any id may be written, the mask too: such
a token stays masked, and a block may end with masks. ``sampling.llada2`` has the samplers that serve users and never write the mask. A
scorer gives the logits of a block (``Row``, ``sampling.sprint``), a reveal rule says which tokens are taken.

Shapes: L tokens of a row · b tokens of a block · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.prefix import Passed, through


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Of each token, [b]: the id, its rank (higher is taken first), and the probability that a threshold compares."""

    ids: Tensor
    rank: Tensor
    probability: Tensor


Pick = Callable[[Tensor], Candidates]  # of logits [b, V]


class Scorer(Protocol):
    """``forwards``: calls of the network so far. ``logits(ids, start, stop, step)``: of a block's tokens, [b, V]."""

    @property
    def forwards(self) -> int: ...
    def logits(self, ids_L: Tensor, start: int, stop: int, step: int) -> Tensor: ...


class Reveal(Protocol):
    """Which masked tokens of a block are taken at a step, [b] bool."""

    def __call__(self, found: Candidates, masked_b: Tensor, step: int, steps: int) -> Tensor: ...


def greedy(logits_bV: Tensor) -> Candidates:
    """The most probable id."""
    best = logits_bV.float().softmax(-1).max(-1)
    return Candidates(ids=logits_bV.argmax(-1), rank=best.values, probability=best.values)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """All candidates above ``threshold`` if they are at least as many as the step's share of a whole block, else that many."""

    threshold: float

    def __call__(self, found: Candidates, masked_b: Tensor, step: int, steps: int) -> Tensor:
        block = len(masked_b)
        count = block // steps + (step < block % steps)
        sure_b = masked_b & (found.probability > self.threshold)
        if int(sure_b.sum()) >= count:
            return sure_b
        return surest(found.rank, masked_b, count)


def surest(rank_b: Tensor, masked_b: Tensor, count: int) -> Tensor:
    """The ``count`` masked tokens of the highest rank, or all of them."""
    taken = torch.zeros_like(masked_b)
    best = rank_b.masked_fill(~masked_b, -torch.inf).topk(min(count, int(masked_b.sum()))).indices
    return taken.index_fill(0, best, True)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """``ids [n]``: prompt and answer · ``order [n]``: the step at which each token was written, -1: never · ``steps``: taken in all ·
    ``trace``: the row before each step, if it was kept.
    """

    ids: Tensor
    order: Tensor
    steps: int
    trace: tuple[Tensor, ...] = ()


@dataclass(kw_only=True)
class Row:
    """A scorer of one row without a cache. ``prompt``: other ids in place of the row's first ones (guidance); None: its own · ``hidden``:
    how many of them are padding that nobody reads, and positions begin behind it.
    """

    net: Elastic
    block: int
    prompt: Tensor | None = None
    hidden: int = 0
    forwards: int = field(default=0, init=False)

    def ids(self, ids_L: Tensor) -> Tensor:
        return ids_L if self.prompt is None else torch.cat([self.prompt, ids_L[len(self.prompt) :]])

    def places(self, length: int) -> Tensor:
        """Positions, [length]: those of padding are 0."""
        return (torch.arange(length, device=self.net.embed.weight.device) - self.hidden).clamp(min=0)

    def passed(self, ids_L: Tensor) -> Passed:
        """A whole row, every block of which reads itself and earlier ones."""
        at = torch.arange(len(ids_L), device=ids_L.device)
        number = at // self.block
        attend = (number[:, None] >= number[None]) & (at >= self.hidden)[None]
        self.forwards += 1
        return through(self.net, self.ids(ids_L), self.places(len(ids_L)), attend)

    def logits(self, ids_L: Tensor, start: int, stop: int, step: int) -> Tensor:
        return self.net.text_head(self.passed(ids_L[:stop]).hidden[start:stop]).float()


@dataclass(kw_only=True)
class Guided:
    """Rows that are merged into one, the guided first. A step in which all are computed whole counts as one forward."""

    rows: Sequence[Scorer]
    merge: Callable[[Sequence[Tensor]], Tensor]
    whole: Callable[[int, int], bool] = lambda start, step: True
    forwards: int = field(default=0, init=False)

    def logits(self, ids_L: Tensor, start: int, stop: int, step: int) -> Tensor:
        self.forwards += 1 if self.whole(start, step) else len(self.rows)
        return self.merge([row.logits(ids_L, start, stop, step) for row in self.rows])


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """``steps``: of a block at most · ``end``: the id that ends a text; None: none does."""

    block: int
    steps: int
    mask_id: int
    reveal: Reveal
    end: int | None = None

    def run(self, scorer: Scorer, prompt: Tensor, length: int, pick: Pick = greedy) -> Finished:
        """The prompt with ``length`` tokens behind it, or fewer up to the first end."""
        begun = len(prompt)
        whole = math.ceil((begun + length) / self.block) * self.block
        ids = torch.cat([prompt, prompt.new_full((whole - begun,), self.mask_id)])
        order, number = torch.full_like(ids, -1), 0
        for start in range(begun // self.block * self.block, whole, self.block):
            stop = start + self.block
            for step in range(min(self.steps, length)):
                masked = ids[start:stop] == self.mask_id
                if not bool(masked.any()):
                    break
                found = pick(scorer.logits(ids, start, stop, step))
                taken = self.reveal(found, masked, step, min(self.steps, length))
                written = taken & (found.ids != self.mask_id)
                ids[start:stop] = torch.where(taken, found.ids, ids[start:stop])
                order[start:stop] = order[start:stop].masked_fill(written, number)
                number += 1
                if self.end is not None and bool((found.ids[taken] == self.end).any()):
                    first = int((ids == self.end).nonzero()[0])
                    if not bool((ids[begun:first] == self.mask_id).any()):
                        return Finished(ids=ids[: first + 1], order=order[: first + 1], steps=number)
            if self.end is not None and bool((ids[begun:stop] == self.end).any()):
                break
        ids, order = ids[: begun + length], order[: begun + length]
        ends = (ids[begun:] == self.end).nonzero() if self.end is not None else ids.new_zeros(0, 1)
        kept = begun + int(ends[0]) + 1 if len(ends) else len(ids)
        return Finished(ids=ids[:kept], order=order[:kept], steps=number)


@dataclass(frozen=True, kw_only=True)
class Editing:
    """Token editing of LLaDA2.1: beside unmasking, a written token of the current block whose rival is more probable than
    ``editing_threshold`` is replaced. ``most_post_steps``: steps of a block without a mask · ``least``: tokens that a step unmasks.
    """

    block: int
    mask_id: int
    threshold: float = 0.95
    editing_threshold: float = 0.9
    most_post_steps: int = 16
    least: int = 1
    end: int | None = None

    def run(self, scorer: Scorer, prompt: Tensor, length: int, pick: Pick = greedy) -> Finished:
        """The answer alone, with ``trace``: whole rows of masks behind what is there. A token may be edited back to the mask."""
        begun = len(prompt)
        whole = math.ceil((begun + length) / self.block) * self.block
        ids = torch.cat([prompt, prompt.new_full((whole - begun,), self.mask_id)])
        order, trace = torch.full_like(ids, -1), list[Tensor]()
        for start in range(begun // self.block * self.block, whole, self.block):
            self._edit(scorer, ids, order, (start, begun), trace, pick)
            stop, found = start + self.block, ids[begun : start + self.block]
            if self.end is not None and bool((found == self.end).any()):
                first = begun + int((found == self.end).nonzero()[0])
                if not bool((ids[begun:stop] == self.mask_id).any()):
                    return self._finished(ids[begun : first + 1], order[begun : first + 1], trace)
        return self._finished(ids[begun : begun + length], order[begun : begun + length], trace)

    def _finished(self, ids: Tensor, order: Tensor, trace: list[Tensor]) -> Finished:
        return Finished(ids=ids, order=order, steps=len(trace), trace=tuple(trace))

    def _edit(
        self, scorer: Scorer, ids: Tensor, order: Tensor, at: tuple[int, int], trace: list[Tensor], pick: Pick
    ) -> None:
        """One block, in place. ``at``: its first token, and the first of the answer."""
        start, begun = at
        stop, post = start + self.block, 0
        answer = torch.arange(start, stop, device=ids.device) >= begun
        while True:
            now = ids[start:stop]
            masked = now == self.mask_id
            post += int(not bool(masked.any()))
            if post > self.most_post_steps:
                return
            trace.append(ids[:stop].clone())
            found = pick(scorer.logits(ids, start, stop, 0))
            taken = masked & (found.probability > self.threshold)
            if int(taken.sum()) < self.least:
                taken = surest(found.rank, masked, self.least)
            edited = ~masked & answer & (found.probability > self.editing_threshold) & (found.ids != now)
            ids[start:stop] = torch.where(taken | edited, found.ids, now)
            order[start:stop] = order[start:stop].masked_fill(taken | edited, len(trace) - 1)
            if not bool(masked.any()) and not bool(edited.any()):
                return
