"""The one loop. Everything that generates runs it: text, pictures, edits and boxes differ in the parts alone.

Public idea: ``Sampler(schedule=.., token_sampler=.., selection=..).sample(model, batch) -> Batch`` with nothing left undecided. For each
step: views -> model -> merge -> draw -> select -> write -> stop -> watch. Rows run at their own speed: each follows its own plan of
windows and counts, and its random numbers and schedules know nothing of the other rows. ``Sampler.start(batch) -> Run`` is the
same loop with the model left to the caller, who may put the queries of several runs into one forward.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import (
    BlockSchedule,
    Denoiser,
    EarlyStopping,
    Guidance,
    Selection,
    TokenSampler,
    UnmaskingSchedule,
)
from unmask.sampling.blocks import Whole
from unmask.sampling.guidance import NoGuidance
from unmask.sampling.selection import Foresees
from unmask.sampling.spans import undecided
from unmask.sampling.stopping import Never
from unmask.sequence import Batch, Move, Prediction, Progress, Proposal, Query, stack


class NothingUnmasked(RuntimeError):
    """A select took nothing from a row that had something to decide; the run would never end."""


class NothingPredicted(RuntimeError):
    """A token was selected that the model did not score: there is no prediction to write."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a watcher sees after a step: ``number`` from 1 (0: before), ``of`` how many are planned (a stop may end sooner), ``batch``."""

    number: int
    of: int
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How undecided tokens get decided; the parts are described in the files of their names."""

    schedule: UnmaskingSchedule
    token_sampler: TokenSampler
    selection: Selection
    guidance: Guidance = NoGuidance()
    blocks: BlockSchedule = Whole()
    stopping: EarlyStopping = Never()

    @torch.no_grad()  # not inference_mode: what comes out is trained on by post-training, and such tensors could not be
    def sample(
        self, model: Denoiser, batch: Batch, *, on_step: Callable[[Step], None] | None = None, carry: object = None
    ) -> Batch:
        """Decide every masked token that is writable. ``on_step`` sees the batch after each step; the model is first given ``carry``.

        Raises NothingUnmasked or NothingPredicted where a selection breaks its contract.
        """
        run = self.start(batch)
        while (query := run.query) is not None:
            prediction = model(query.batch, ask=query.ask, carry=carry)
            carry = prediction.carry
            run.advance(prediction)
            if on_step is not None:
                on_step(run.step)
        return run.batch

    def start(self, batch: Batch) -> Run:
        """The same, one step at a time: the caller holds the model, and may ask it for several runs at once."""
        return Run(self, batch)


class Run:
    """The loop between two steps. ``batch``: as far as it got · ``query``: what it wants of the model next, None once all is decided.

    To cancel a run is to drop it: nothing else is held.
    """

    @torch.no_grad()
    def __init__(self, sampler: Sampler, batch: Batch) -> None:
        self.sampler, self.batch = sampler, sampler.stopping(batch)
        self.open = undecided(batch)  # what was masked at the start: no move touches anything else
        self.agenda = _Agenda(sampler.schedule, sampler.blocks(self.batch), undecided(self.batch))
        self.number = 0
        self.task: _Task | None = None
        self.query = self._next()

    @property
    def step(self) -> Step:
        """The last step taken; number 0 before the first."""
        return Step(number=self.number, of=max(self.number, self.agenda.planned), batch=self.batch)

    @torch.no_grad()
    def advance(self, prediction: Prediction) -> None:
        """Take the step that ``prediction``, the answer to ``query``, allows."""
        parts, batch, task = self.sampler, self.batch, self.task
        if task is None or self.query is None:
            raise ValueError("the run is finished; there is nothing left to decide")
        views = _split(prediction, self.query.batch.rows // batch.rows, batch.ids.numel())
        merged = parts.guidance.merge(views, task.progress)
        proposal = parts.token_sampler(batch, merged, task.progress)
        move = parts.selection(batch, proposal, task.window, task.counts, task.progress)
        self.batch = parts.stopping(_write(batch, move, proposal, task.window, self.open))
        self.number += 1
        self.query = self._next()

    def _next(self) -> Query | None:
        """All views of what is to be decided next, stacked. They share their pixels, so what the model carries stays valid."""
        self.task = task = self.agenda.next(undecided(self.batch))
        if task is None:
            return None
        parts = self.sampler
        ask = task.window
        if isinstance(parts.selection, Foresees):
            ask = parts.selection.ask(self.batch, task.window, task.counts)
        views = parts.guidance.views(self.batch, task.progress)
        return Query(batch=stack(views) if len(views) > 1 else views[0], ask=ask.repeat(len(views), 1))


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One step: ``window [B, L]`` what may be unmasked, ``counts [B]`` how many, and how far each row is."""

    window: Tensor
    counts: Tensor
    progress: Progress


class _Agenda:
    """Which window each row works on and how far it is: all the state of a run besides the batch."""

    def __init__(self, schedule: UnmaskingSchedule, window_BL: Tensor, live_BL: Tensor) -> None:
        self.schedule, self.window = schedule, window_BL
        rows = window_BL.shape[0]
        self.current, self.number = [-1] * rows, [0] * rows
        self.plan: list[list[int]] = [[] for _ in range(rows)]
        totals = (
            window[live].unique(return_counts=True)[1].tolist() for window, live in zip(window_BL, live_BL, strict=True)
        )
        self.planned = max((sum(len(schedule.counts(n)) for n in total) for total in totals), default=0)

    def next(self, live_BL: Tensor) -> _Task | None:
        """What to do now, or None where nothing is undecided. A finished row gets count 0."""
        beyond = torch.iinfo(torch.long).max
        current_B = self.window.masked_fill(~live_BL, beyond).amin(1)
        here_BL = live_BL & (self.window == current_B[:, None])
        states = torch.stack([current_B, here_BL.sum(1)], dim=1).tolist()
        if not any(left for _, left in states):
            return None
        counts = [self._advance(row, current, left) if left else 0 for row, (current, left) in enumerate(states)]
        number_of = torch.tensor([self.number, [max(1, len(plan)) for plan in self.plan]], device=live_BL.device)
        progress = Progress(number=number_of[0], of=number_of[1], length=live_BL.shape[1])
        return _Task(window=here_BL, counts=torch.tensor(counts, device=live_BL.device), progress=progress)

    def _advance(self, row: int, current: int, left: int) -> int:
        if current == self.current[row]:
            self.number[row] += 1
        else:
            self.current[row], self.number[row], self.plan[row] = current, 0, self.schedule.counts(left)
        plan, number = self.plan[row], self.number[row]
        # A select may take fewer than its count; what the plan then leaves over comes in one last step.
        return min(left, plan[number]) if number < len(plan) else left


def _write(batch: Batch, move: Move, proposal: Proposal, window_BL: Tensor, open_BL: Tensor) -> Batch:
    """Apply a move to the tokens in ``open [B, L]``; everything else was given and stays."""
    move = Move(unmask=move.unmask & open_BL, remask=move.remask & open_BL, redraw=move.redraw & open_BL)
    unscored_BL = (move.unmask | move.redraw) & (proposal.score == -torch.inf)
    if bool(unscored_BL.any()):
        row, token = unscored_BL.nonzero()[0].tolist()
        raise NothingPredicted(
            f"row {row}, token {token} (kind {int(batch.kind[row, token])}) was selected, but the model did not score it; "
            "select tokens that were predicted, of a kind that the model knows"
        )
    idle_B = window_BL.any(1) & ~(move.unmask & window_BL).any(1)
    if bool(idle_B.any()):
        raise NothingUnmasked(
            f"nothing was unmasked in rows {idle_B.nonzero().flatten().tolist()}; a selection must take one"
        )
    return batch.write(move, proposal)


def _split(prediction: Prediction, views: int, tokens: int) -> list[Prediction]:
    """The prediction of each view. All were asked for the same tokens, so each has its share in order."""
    parts = (prediction.text, prediction.text_logits, prediction.code, prediction.code_logits)
    return [
        dataclasses.replace(prediction, text=t - i * tokens, text_logits=tl, code=c - i * tokens, code_logits=cl)
        for i, (t, tl, c, cl) in enumerate(zip(*(part.tensor_split(views) for part in parts), strict=True))
    ]
