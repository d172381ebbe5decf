"""All steps of a run before its first one, so that no step has to wait for the device to say how far a row got.

Public idea: ``planned(schedule, selection, batch, open, block) -> tuple of PlannedStep``, or None where predictions decide how many steps
there are: early stopping, several blocks in a row, or a selection that may take fewer tokens than its count (``protocols.Foreseeable``).

Shapes: B rows · L tokens · S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.derived import numbers, tell, tell_counts
from unmask.protocols import Foreseeable, Ordered, UnmaskingSchedule
from unmask.rng import sent
from unmask.sampling.schedule import Rest
from unmask.sampling.spans import still_masked
from unmask.sequence import Batch
from unmask.step import Progress


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """``left``: masked tokens of each row before the step · ``counts [B]``: how many it unmasks · ``clock [B]``: after the step ·
    ``live [B]``: rows that take it, ``all_live``: whether all do · ``time [B, L]``: masked share of each row · ``unmask [B, L]``: the
    tokens that it unmasks; None where the selection has no fixed order.
    """

    left: tuple[int, ...]
    counts: Tensor
    clock: Tensor
    live: Tensor
    all_live: bool
    time: Tensor
    progress: Progress
    unmask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _RowStep:
    left: int
    count: int
    number: int
    of: int
    share: float
    clock: int


def planned(
    schedule: UnmaskingSchedule, selection: object, batch: Batch, open_BL: Tensor, block_BL: Tensor
) -> tuple[PlannedStep, ...] | None:
    """The steps of a run that masks ``open`` tokens; ``block``: the number of each token's block."""
    if not (isinstance(selection, Foreseeable) and selection.foreseeable) or batch.stamps:
        return None
    lowest_B, highest_B = block_BL.masked_fill(~open_BL, _NONE).amin(1), block_BL.masked_fill(~open_BL, -_NONE).amax(1)
    facts = torch.stack([open_BL.sum(1), (lowest_B < highest_B).long(), (still_masked(batch) ^ open_BL).any(1).long()])
    tokens, several, filled = facts.tolist()
    if any(several) or any(filled):
        return None
    rows = [_row(schedule, n, clock) for n, clock in zip(tokens, numbers(batch.clock), strict=True)]
    if any(step.count < 1 for row in rows for step in row[:-1]):
        return None
    if not any(tokens):
        return ()
    return _on_device(rows, batch, _ranks(selection, batch, open_BL))


def _row(schedule: UnmaskingSchedule, tokens: int, clock: int) -> list[_RowStep]:
    """The steps of one row, and how it stands after them."""
    counts, steps, left = schedule.counts(tokens) if tokens else [], [], tokens
    before, whole = (schedule.taken(tokens), schedule.total) if isinstance(schedule, Rest) else (0, tokens)
    of = max(1, before + len(counts))
    while left > 0:
        number = len(steps)
        count = min(left, counts[number]) if number < len(counts) else left
        at = _RowStep(
            left=left, count=count, number=before + number, of=of, share=left / whole, clock=clock + number + 1
        )
        steps.append(at)
        if count < 1:
            break
        left -= count
    number = before + max(0, len(steps) - 1)
    return [*steps, _RowStep(left=0, count=0, number=number, of=of, share=0.0, clock=clock + len(steps))]


def _ranks(selection: object, batch: Batch, open_BL: Tensor) -> Tensor | None:
    """The place of each open token in the order in which its row unmasks them, [B, L], and -1 elsewhere; None without a fixed order."""
    if not isinstance(selection, Ordered):
        return None
    place_BL = selection.places(batch, open_BL).masked_fill(~open_BL, _NONE)
    order_BL = place_BL.argsort(dim=1, stable=True)
    number_BL = torch.arange(order_BL.shape[1], device=order_BL.device).expand_as(order_BL)
    return torch.empty_like(order_BL).scatter_(1, order_BL, number_BL).masked_fill_(~open_BL, -1)


def _on_device(rows: Sequence[list[_RowStep]], batch: Batch, rank_BL: Tensor | None) -> tuple[PlannedStep, ...]:
    steps, device, length = max(len(row) for row in rows) - 1, batch.device, batch.ids.shape[1]
    table = [[row[min(s, len(row) - 1)] for row in rows] for s in range(steps)]
    whole = [
        [[r.count for r in now], [r.number for r in now], [r.of for r in now], [r.clock for r in now]] for now in table
    ]
    whole_S4B = sent(torch.tensor(whole).view(steps, 4, -1), device)
    count_SB, number_SB, of_SB, clock_SB = (part.unbind(0) for part in whole_S4B.unbind(1))
    live_SB = sent(torch.tensor([[r.left > 0 for r in now] for now in table]), device).unbind(0)
    time_SB1 = sent(torch.tensor([[[r.share] for r in now] for now in table]), device).unbind(0)
    unmask_SBL = [None] * steps if rank_BL is None else _unmasked(rank_BL, whole_S4B[:, 0])
    found = []
    for s, now in enumerate(table):
        unmask_BL, counts = unmask_SBL[s], [r.count for r in now]
        known = tuple((r.number, r.of) for r in now)
        found.append(
            PlannedStep(
                left=tuple(r.left for r in now),
                counts=tell(count_SB[s], counts),
                clock=tell(clock_SB[s], [r.clock for r in now]),
                live=live_SB[s],
                all_live=all(r.left for r in now),
                time=time_SB1[s].expand(-1, length),
                progress=Progress(number=number_SB[s], of=of_SB[s], length=length, known=known),
                unmask=None if unmask_BL is None else tell_counts(unmask_BL, tuple(counts)),
            )
        )
    return tuple(found)


def _unmasked(rank_BL: Tensor, count_SB: Tensor) -> tuple[Tensor, ...]:
    """The tokens of each step: those whose rank lies between what is unmasked before it and after it."""
    done_SB1 = count_SB.cumsum(0)[..., None]
    return ((rank_BL < done_SB1) & (rank_BL >= done_SB1 - count_SB[..., None])).unbind(0)


_NONE = torch.iinfo(torch.long).max
