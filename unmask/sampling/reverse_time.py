"""Selections that follow Dream's time grid from the masked tokens that there are, instead of a plan made at the start.

Public idea: ``OnGrid(steps=.., selection=Confident())`` is the released loop to the step, with its empty steps, and with tokens for which
MASK was predicted left masked; ``Independent`` is its order "origin". ``schedule.ReverseTime`` plans the same counts without empty steps.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import Selection
from unmask.rng import rows
from unmask.sampling.schedule import check_time, time_shares
from unmask.sampling.selection import Confident, first, move
from unmask.sampling.spans import writable_spans
from unmask.sequence import Batch
from unmask.step import Move, Progress, Proposal

Uniforms = Callable[[Batch, Tensor], Tensor]  # (batch, block [B, L]) -> numbers in [0, 1), [B, L]


def keyed_uniforms(batch: Batch, block: Tensor) -> Tensor:
    """One uniform number for every token of the block, from each row's own generator; 1 elsewhere. [B, L]"""
    live_BL = block.cpu()
    counts = live_BL.sum(1).tolist()
    parts = [torch.rand(n, generator=g) for g, n in zip(rows(batch, "select"), counts, strict=True)]
    return torch.ones(live_BL.shape).masked_scatter(live_BL, torch.cat(parts)).to(block.device)


@dataclass(frozen=True, kw_only=True)
class OnGrid:
    """Of the m masked tokens of a block, step i of ``steps`` takes int(m * (1 - t_{i+1} / t_i)), which may be none; the last takes all.

    ``cut``: steps that are taken of the grid, the last of which takes all; 0 for the whole grid (LaViDa's step_ratio without a schedule) ·
    ``selection``: which ones · ``unwritten``: an id that is not written when it is predicted, MASK in the released code: the token stays
    masked, and only the last step writes it; -1 for none. Its schedule plans one step (``Equal(steps=1)``), so that it limits nothing.
    """

    steps: int
    eps: float = 1e-3
    cut: int = 0
    selection: Selection = Confident()
    unwritten: int = -1

    def __post_init__(self) -> None:
        check_time(self.steps, self.eps)
        if not 0 <= self.cut <= self.steps:
            raise ValueError(f"cut {self.cut} is not a number of the grid's {self.steps} steps")

    def extra_steps(self, tokens: int, planned: int) -> int:
        return max(0, self.steps - planned) + 1  # what a schedule left over comes last

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        share_B, last_B = _where(self.steps, self.eps, progress, self.cut)
        wanted_B = torch.minimum(counts, (block.sum(1).float() * share_B).long())
        taken = self.selection(batch, proposal, block, wanted_B, progress)
        stays_BL = (proposal.ids == self.unwritten) & ~last_B[:, None]
        return Move(unmask=taken.unmask & ~stays_BL, remask=taken.remask, redraw=taken.redraw)


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Every masked token on its own, with probability 1 - t_{i+1} / t_i at step i; all at the last step (Dream's "origin").

    ``uniforms``: the numbers that decide. A step may take none.
    """

    steps: int
    eps: float = 1e-3
    uniforms: Uniforms = keyed_uniforms
    unwritten: int = -1

    def __post_init__(self) -> None:
        check_time(self.steps, self.eps)

    def extra_steps(self, tokens: int, planned: int) -> int:
        return max(0, self.steps - planned) + 1  # what a schedule left over comes last

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        share_B, last_B = _where(self.steps, self.eps, progress)
        u_BL = self.uniforms(batch, block)
        hit_BL = block & ((u_BL < share_B[:, None]) | last_B[:, None])
        stays_BL = (proposal.ids == self.unwritten) & ~last_B[:, None]
        return move(first(-u_BL, hit_BL & ~stays_BL, counts))


@dataclass(frozen=True, kw_only=True)
class LeftmostFirst:
    """At the first step of a block its leftmost masked token, which the full pass of a cache decides (Fast-dLLM for Dream); then
    ``selection``.
    """

    selection: Selection

    def extra_steps(self, tokens: int, planned: int) -> int | None:
        own = getattr(self.selection, "extra_steps", None)
        return own(tokens, planned) if own else None

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        begins_B1 = (progress.number == 0)[:, None]
        later = self.selection(batch, proposal, block, counts, progress)
        leftmost_BL = first(torch.zeros_like(proposal.score), block, counts.clamp(max=1))
        return Move(
            unmask=torch.where(begins_B1, leftmost_BL, later.unmask),
            remask=later.remask & ~begins_B1,
            redraw=later.redraw & ~begins_B1,
        )


@dataclass(frozen=True, kw_only=True)
class Postponing:
    """Equal parts of the block over ``steps``, of which only candidates of at least ``threshold`` are taken, one at least; the others are
    candidates again at the next step (Fast-dLLM's "confidence_threshold" for Dream). What the last step refuses takes more steps.
    """

    steps: int
    threshold: float = 0.9

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        if batch.region is None or batch.score is None:
            raise ValueError("the batch has no region and score; Postponing works inside a Sampler")
        taken_B = (batch.region & (batch.score > -torch.inf)).sum(1)
        left_B = block.sum(1)
        due_B = (left_B + taken_B) // self.steps * (progress.number + 1) - taken_B
        due_B = torch.where(progress.number + 1 >= self.steps, left_B, due_B).clamp(min=1)
        candidates_BL = first(proposal.score, block, torch.minimum(due_B, counts))
        sure_B = (candidates_BL & (proposal.score >= self.threshold)).sum(1).clamp(min=1)
        return move(first(proposal.score, candidates_BL, sure_B))


@dataclass(frozen=True, kw_only=True)
class FirstAlone:
    """The first token of a writable span as soon as it is the block (``blocks.FirstApart``); else ``selection``."""

    selection: Selection

    def extra_steps(self, tokens: int, planned: int) -> int | None:
        own = getattr(self.selection, "extra_steps", None)
        return own(tokens, planned) if own else None

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        layout = writable_spans(batch)
        first_B1 = (~block | ((layout.span >= 0) & (layout.offset == 0))).all(1, keepdim=True)
        later = self.selection(batch, proposal, block, counts, progress)
        return Move(
            unmask=torch.where(first_B1, block, later.unmask),
            remask=later.remask & ~first_B1,
            redraw=later.redraw & ~first_B1,
        )


def _where(steps: int, eps: float, progress: Progress, cut: int = 0) -> tuple[Tensor, Tensor]:
    """The share of each row's step, and whether it is the row's last step, both [B]."""
    taken = cut or steps
    number_B = progress.number.clamp(max=steps - 1)
    share_B = time_shares(steps, eps).to(number_B.device)[number_B]
    share_B = torch.where(progress.number + 1 >= taken, 1.0, share_B)
    return share_B, progress.number + 1 >= progress.of.clamp(min=taken)
