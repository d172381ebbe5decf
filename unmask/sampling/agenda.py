"""Which block each row works on, and how many of its tokens are unmasked at this step: all the state of a run besides its batch.

Public idea: ``Agenda(sampler, batch, open).next(batch) -> Todo``, None at the end.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from unmask.derived import remember, tell, tell_counts
from unmask.protocols import (
    BlockSchedule,
    Bounded,
    Correcting,
    DependentBlocks,
    EarlyStopping,
    Lingering,
    Selection,
    UnmaskingSchedule,
)
from unmask.rng import sent
from unmask.sampling.plan import PlannedStep, planned
from unmask.sampling.schedule import Rest
from unmask.sampling.spans import STILL_MASKED, still_masked
from unmask.sampling.stopping import Never
from unmask.sequence import Batch
from unmask.step import Progress

_NONE = torch.iinfo(torch.long).max


class Parts(Protocol):
    """What an agenda reads of a sampler."""

    @property
    def schedule(self) -> UnmaskingSchedule: ...
    @property
    def selection(self) -> Selection: ...
    @property
    def blocks(self) -> BlockSchedule: ...
    @property
    def stopping(self) -> EarlyStopping: ...


@dataclass(frozen=True, kw_only=True)
class Todo:
    """One step. ``block [B, L]``: masked tokens that may be unmasked · ``region [B, L]``: all tokens of the rows' blocks that this run may
    change · ``counts [B]``: how many to unmask · ``must_unmask [B]``: rows that have to take one ·
    ``time [B, L]``: masked share of the block; share of the steps left in a row whose steps all correct · ``planned``: the step of a run
    that was planned as a whole.
    """

    block: Tensor
    region: Tensor
    counts: Tensor
    must_unmask: Tensor
    time: Tensor
    progress: Progress
    planned: PlannedStep | None = None


@dataclass(kw_only=True)
class _Row:
    """``number``: step in the current block · ``plan``: its counts · ``tokens``: masked at its beginning · ``extra``: correcting steps,
    ``correcting``: whether this one is · ``all_correcting``: nothing was masked at the start, as in uniform diffusion · ``stayed``: steps
    in the current block since nothing in it is masked.
    """

    block: int = -1
    number: int = 0
    plan: list[int] = field(default_factory=list)
    tokens: int = 0
    extra: int = 0
    correcting: bool = False
    all_correcting: bool = False
    stayed: int = 0


class Agenda:
    """``planned``: steps of the row that takes most · ``plan``: all steps, where they are known before the first (``plan.py``)."""

    def __init__(self, parts: Parts, batch: Batch, open_BL: Tensor) -> None:
        self.parts, self.open, self.taken = parts, open_BL, 0
        self.rows = [_Row(all_correcting=not masked) for masked in still_masked(batch).any(1).tolist()]
        self.correcting = parts.stopping if isinstance(parts.stopping, Correcting) else None
        self.selection = parts.selection if isinstance(parts.selection, Bounded) else None
        self.bound = self.correcting.bound if self.correcting else 0
        self.most_stays = parts.selection.lingering if isinstance(parts.selection, Lingering) else 0
        self.ids = batch.ids  # before the last step
        self.block = parts.blocks(batch, self._progress(batch))
        self.plan = None
        foreseen = isinstance(parts.stopping, Never) and not self.bounded and not self.most_stays
        if foreseen and not isinstance(parts.blocks, DependentBlocks):
            self.plan = planned(parts.schedule, parts.selection, batch, open_BL, self.block)
        if self.plan is not None:
            self.planned = len(self.plan)
            return
        finest = parts.blocks.finest(batch) if isinstance(parts.blocks, DependentBlocks) else self.block
        totals = (
            block[live].unique(return_counts=True)[1].tolist()
            for block, live in zip(finest, still_masked(batch), strict=True)
        )
        steps = (sum(len(parts.schedule.counts(n)) + self.most_stays for n in total) for total in totals)
        self.planned = max(steps, default=0)
        self.planned += self.bound

    def next(self, batch: Batch) -> Todo | None:
        """What to do now, or None where every row is finished. A finished row gets count 0 and no block."""
        if self.plan is not None:
            return self._foreseen(batch, self.plan)
        live_BL = still_masked(batch)
        here_BL, current_B, states = self._where(live_BL)
        stays = self._stays(batch, [now for now, _ in states])
        still = [row.block if stay else now for row, (now, _), stay in zip(self.rows, states, stays, strict=True)]
        if self._ask_again(batch, still):
            here_BL, current_B, states = self._where(live_BL)
        if any(stays):
            stay_B = sent(torch.tensor(stays), batch.device)
            current_B = torch.where(
                stay_B, sent(torch.tensor([row.block for row in self.rows]), batch.device), current_B
            )
            here_BL = here_BL & ~stay_B[:, None]
            states = [[now, 0 if stay else left] for (now, left), stay in zip(states, stays, strict=True)]
        more_B = self._more(batch, [left == 0 and not stay for (_, left), stay in zip(states, stays, strict=True)])
        if more_B is None and not any(stays) and not any(left for _, left in states):
            return None
        counts = [self._advance(self.rows[r], now, left) if left else 0 for r, (now, left) in enumerate(states)]
        region_BL = self.open & (self.block == current_B[:, None])
        if more_B is not None:
            region_BL = region_BL | (self.open & more_B[:, None])
        must = [left > 0 and self._must(row) for row, (_, left) in zip(self.rows, states, strict=True)]
        share = [self._time(row, left) for row, (_, left) in zip(self.rows, states, strict=True)]
        device = live_BL.device
        return Todo(
            block=tell_counts(here_BL, tuple(left for _, left in states)),
            region=region_BL,
            counts=tell(sent(torch.tensor(counts), device), counts),
            must_unmask=sent(torch.tensor(must), device),
            time=sent(torch.tensor(share), device)[:, None].expand_as(batch.ids),
            progress=self._progress(batch),
        )

    def _foreseen(self, batch: Batch, plan: tuple[PlannedStep, ...]) -> Todo | None:
        if self.taken == len(plan):
            return None
        step = plan[self.taken]
        self.taken += 1
        remember(STILL_MASKED, step.left, batch.masked)
        return Todo(
            block=tell_counts(self.open & batch.masked, step.left),
            region=self.open if step.all_live else self.open & step.live[:, None],
            counts=step.counts,
            must_unmask=step.live,
            time=step.time,
            progress=step.progress,
            planned=step,
        )

    def _where(self, live_BL: Tensor) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Masked tokens of each row's lowest block, that block, and both as numbers: (block, how many are left)."""
        current_B = self.block.masked_fill(~live_BL, _NONE).amin(1)
        here_BL = live_BL & (self.block == current_B[:, None])
        return here_BL, current_B, torch.stack([current_B, here_BL.sum(1)], dim=1).tolist()

    def _time(self, row: _Row, left: int) -> float:
        """Time of a row's step: the masked share of its block; where every step corrects, the share of steps that are left."""
        if row.all_correcting and row.correcting:
            return 1 - (row.extra - 1) / self.bound
        return left / max(1, row.tokens)

    def _progress(self, batch: Batch) -> Progress:
        number_of = [
            (row.extra - 1, self.bound) if row.correcting else (row.number, max(1, len(row.plan))) for row in self.rows
        ]
        number_B, of_B = sent(torch.tensor(number_of), batch.device).unbind(1)
        return Progress(number=number_B, of=of_B, length=batch.ids.shape[1], known=tuple(number_of))

    def _ask_again(self, batch: Batch, current: list[int]) -> bool:
        """New blocks for the rows that finished one. Other rows keep theirs: no row's blocks depend on the others."""
        done = [row.block >= 0 and now not in (row.block, _NONE) for row, now in zip(self.rows, current, strict=True)]
        if not any(done):
            return False
        for row, again in zip(self.rows, done, strict=True):
            row.block = -1 if again else row.block  # a new block may have the number of the finished one
        again_B1 = torch.tensor(done, device=batch.device)[:, None]
        self.block = torch.where(again_B1, self.parts.blocks(batch, self._progress(batch)), self.block)
        return True

    def _stays(self, batch: Batch, current: list[int]) -> list[bool]:
        """Whether each row takes another step in the block whose last masked token it has unmasked."""
        if not self.most_stays:
            return [False] * len(self.rows)
        changed, self.ids = (batch.ids != self.ids).any(1).tolist(), batch.ids
        stays = [
            row.block not in (-1, now) and row.stayed < self.most_stays and (new or not row.stayed)
            for row, now, new in zip(self.rows, current, changed, strict=True)
        ]
        for row, now, stay in zip(self.rows, current, stays, strict=True):
            # A row that left its last block does not come back.
            row.stayed = row.stayed + 1 if stay else self.most_stays if now == _NONE else 0
        return stays

    def _more(self, batch: Batch, finished: list[bool]) -> Tensor | None:
        """Finished rows that take a correcting step, [B]; None where there are none."""
        stopping = self.correcting
        if stopping is None:
            return None
        extra_B = torch.tensor([row.extra for row in self.rows], device=batch.device)
        idle_B = torch.tensor(finished, device=batch.device) & self.open.any(1)
        more_B = stopping.more(batch, extra_B) & idle_B & (extra_B < self.bound)
        for row, more in zip(self.rows, more_B.tolist(), strict=True):
            row.correcting, row.extra = more, row.extra + more
        return more_B if any(row.correcting for row in self.rows) else None

    def _advance(self, row: _Row, block: int, left: int) -> int:
        if block == row.block:
            row.number += 1
        else:
            schedule = self.parts.schedule
            row.block, row.number, row.tokens, row.plan = block, 0, left, schedule.counts(left)
            if isinstance(schedule, Rest):
                row.number, row.tokens = schedule.taken(left), schedule.total
                row.plan = [0] * row.number + row.plan
        # A selection may take fewer than its count; what the plan then leaves over comes in one last step.
        return min(left, row.plan[row.number]) if row.number < len(row.plan) else left

    def _must(self, row: _Row) -> bool:
        """Whether a row must unmask something at this step; a bounded selection only has to end in time."""
        extra = self._extra_steps(row.tokens, len(row.plan))
        return extra is None or row.number + 1 >= len(row.plan) + extra

    @property
    def bounded(self) -> bool:
        """Whether the selection says within how many steps a block ends; others have to unmask something at every step."""
        return self._extra_steps(1, 1) is not None

    def _extra_steps(self, tokens: int, planned: int) -> int | None:
        return self.selection.extra_steps(tokens, planned) if self.selection else None
