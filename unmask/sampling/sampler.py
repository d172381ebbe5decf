"""The one loop. Everything that generates runs it: text, pictures, edits and boxes differ in the parts alone.

Public idea: ``Sampler(schedule=.., token_sampler=.., selection=..).sample(model, batch) -> Batch`` with nothing left masked. Rows run at
their own speed: each follows its own plan of blocks and counts, and its random numbers and schedules know nothing of the other rows.
``Sampler.start(batch)`` is the same loop with the model left to the caller, who may put the queries of several runs into one forward.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.derived import counts_told, remember, tell_counts
from unmask.positions import whole_positions
from unmask.protocols import (
    BlockSchedule,
    Cache,
    Denoiser,
    EarlyStopping,
    Guidance,
    Lending,
    Prior,
    Refreshing,
    Run,
    Selection,
    TokenSampler,
    UnmaskingSchedule,
)
from unmask.sampling.agenda import Agenda, Todo
from unmask.sampling.blocks import Whole
from unmask.sampling.cache import NoCache
from unmask.sampling.cropping import cropped, restored, settled
from unmask.sampling.guidance import NoGuidance
from unmask.sampling.plan import PlannedStep
from unmask.sampling.prior import AllMasked
from unmask.sampling.spans import still_masked, wished
from unmask.sampling.stopping import Never
from unmask.sampling.token_sampler import OF_EACH_ROW
from unmask.sequence import ON_UNMASK, Batch, stack
from unmask.step import Move, Prediction, Progress, Proposal, Query, Reuse, Scored, State, Step, apply, unmasked


class NothingUnmasked(RuntimeError):
    """A selection took nothing from a row that has masked tokens, or a block did not end within its bound."""


class NothingPredicted(RuntimeError):
    """A token was selected that the model did not score: there is no prediction to write."""


class CachedTokenChanged(RuntimeError):
    """A selection changed a token whose keys and values the cache lends; what was computed from them would be wrong."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How masked tokens get unmasked; the parts are described in the files of their names."""

    schedule: UnmaskingSchedule
    token_sampler: TokenSampler
    selection: Selection
    guidance: Guidance = NoGuidance()
    blocks: BlockSchedule = Whole()
    stopping: EarlyStopping = Never()
    prior: Prior = AllMasked()
    cache: Cache = NoCache()

    @torch.no_grad()  # not inference_mode: what comes out is trained on by post-training, and such tensors could not be
    def sample(self, model: Denoiser, batch: Batch, *, on_step: Callable[[Step], None] | None = None) -> Batch:
        """Unmask every masked token that is writable. ``on_step`` sees the batch after each step.

        Raises NothingUnmasked, NothingPredicted or CachedTokenChanged where a part breaks its contract.
        """
        return self.last(model, batch, on_step=on_step).batch

    @torch.no_grad()
    def last(self, model: Denoiser, batch: Batch, *, on_step: Callable[[Step], None] | None = None) -> Step:
        """The last step of ``sample``."""
        run = self.start(batch)
        while (query := run.query) is not None:
            run.advance(model(query.batch, predict=query.predict, reuse=query.reuse))
            if on_step is not None:
                on_step(run.step)
        return run.step

    def start(self, batch: Batch) -> Run:
        """The same, one step at a time: the caller holds the model, and may ask it for several runs at once."""
        return SamplingRun(self, batch)


class SamplingRun:
    """The loop between two steps. ``batch``: as far as it got · ``query``: the next forward that it needs, None at the end.

    To cancel a run, drop it.
    """

    @torch.no_grad()
    def __init__(self, sampler: Sampler, batch: Batch) -> None:
        self.sampler, self.first = sampler, batch
        self.open = still_masked(batch)  # what was masked at the start: no move touches anything else
        unscored_BL = torch.full(batch.ids.shape, -torch.inf, device=batch.device)
        started = _ordered(batch, sampler.prior(batch))
        self.batch = _ordered(started, sampler.stopping(started)).replace(score=unscored_BL)
        self.agenda = Agenda(sampler, self.batch, self.open)
        self.states: list[State | None] = []  # of each guidance view
        self.refreshing = sampler.guidance if isinstance(sampler.guidance, Refreshing) else None
        self.kept: list[Prediction] = []  # what it uses again at the next step
        self.lending = sampler.cache if isinstance(sampler.cache, Lending) else None
        self.lent: list[Any] = []  # what each view lends besides its state
        self.wanted: list[Tensor] = []  # the tokens that each view has to predict
        self.number = 0
        self.todo: Todo | None = None
        self.query: Query | None = None
        self.query = self._next()

    @property
    def step(self) -> Step:
        """The last step taken; number 0 before the first."""
        return Step(number=self.number, of=max(self.number, self.agenda.planned), batch=self.batch)

    @torch.no_grad()
    def advance(self, prediction: Prediction) -> None:
        """Take the step that ``prediction``, the answer to ``query``, allows."""
        parts, batch, todo = self.sampler, self.batch, self.todo
        if todo is None or self.query is None:
            raise ValueError("the run is finished; there is nothing left to unmask")
        # 4. The views become one prediction.
        prediction = restored(prediction, self.query, batch.ids.shape[1])
        views = _split(prediction, self.query, self.query.batch.rows // batch.rows, batch)
        self._keep(views, todo.progress)
        if self.lending:
            views = self._lend(self.lending, views)
        if self.refreshing:
            views, self.kept = self.refreshing.completed(views, self.kept, todo.progress)
        merged = parts.guidance.merge(batch, views, todo.progress)
        # 5. A candidate and a score for each scored token.
        proposal = parts.token_sampler(batch, merged, todo.progress)
        # 6. Some candidates are taken and written; others may be masked again.
        if todo.planned is not None and not any(self.states):
            written = self._write_planned(todo.planned, proposal, todo)
        else:
            move = parts.selection(batch, proposal, todo.block, todo.counts, todo.progress)
            written = self._write(move, proposal, todo)
        # 7. What no longer needs the model is filled in.
        self.batch = _ordered(written, parts.stopping(written))
        self.number += 1
        self.query = self._next()

    def _next(self) -> Query | None:
        parts = self.sampler
        # 1. Every row's block, and how many of its tokens to unmask.
        self.todo = todo = self.agenda.next(self.batch)
        if todo is None:
            if self.agenda.plan:
                self._check_end()
            return None
        self.batch = self.batch.replace(time=todo.time, region=todo.region)
        # 2. The tokens to score.
        planned = todo.planned.unmask if todo.planned else None
        if planned is None:
            planned = wished(parts.selection, self.batch, todo.block, todo.counts)
        wishes = [planned, wished(parts.token_sampler, self.batch, todo.block, todo.counts)]
        some = [wish for wish in wishes if wish is not None]
        predict = todo.block if not some else some[0] if len(some) == 1 else some[0] | some[1]
        # 3. The views of guidance, one under the other, and what each need not compute again.
        views = parts.guidance.views(self.batch, todo.progress)
        if len(views) > 1 and wishes[1] is not None:
            _same_kinds(views, predict)
        others = self.refreshing.to_score(predict, todo.block) if self.refreshing else predict
        self.wanted = predicts = [predict, *[others] * (len(views) - 1)]
        if self.lending:
            predicts = self._to_score(self.lending, views, todo)
        reuse = self._reuse(views, predicts, todo)
        batch = stack(views) if len(views) > 1 else views[0]
        query = Query(batch=batch, predict=_stacked(predicts), reuse=reuse)
        return settled(cropped(query), self.query)

    def _to_score(self, cache: Lending[Any], views: list[Batch], todo: Todo) -> list[Tensor]:
        """The tokens of each view to score for a cache that lends logits."""
        found = []
        for i, (view, wanted) in enumerate(zip(views, self.wanted, strict=True)):
            state = self.states[i] if i < len(self.states) else None
            held = torch.zeros_like(wanted) if state is None else state.held
            lent = self.lent[i] if i < len(self.lent) else None
            found.append(cache.to_score(view, wanted, held, lent, todo.progress))
        return found

    def _lend(self, cache: Lending[Any], views: list[Prediction]) -> list[Prediction]:
        """The predictions with the logits that the cache lends. What they and their states lend next is kept."""
        before = [self.lent[i] if i < len(self.lent) else None for i in range(len(views))]
        states = self.states[: len(views)] or [None] * len(views)
        own = [dataclasses.replace(view, state=state) for view, state in zip(views, states, strict=True)]
        made = [cache.completed(*given) for given in zip(own, before, self.wanted, strict=True)]
        self.lent[: len(views)] = [lent for _, lent in made]
        if self.states:
            self.states[: len(views)] = [view.state for view, _ in made]
        return [view for view, _ in made]

    def _reuse(self, views: list[Batch], predicts: list[Tensor], todo: Todo) -> Reuse | None:
        states = [self.states[i] if i < len(self.states) else None for i in range(len(views))]
        compute, keep = [], []
        for view, predict, state in zip(views, predicts, states, strict=True):
            held = torch.zeros_like(predict) if state is None else state.held
            plan = self.sampler.cache.plan(view, todo.region, predict, held, todo.progress)
            if plan is None:
                return None
            compute.append(whole_positions(view, plan.compute | predict))
            keep.append(compute[-1] & ~whole_positions(view, view.valid & ~plan.keep))
        length = predicts[0].shape[1]
        state = State.stack(states, [view.rows for view in views], length)
        return Reuse(compute=torch.cat(compute), keep=torch.cat(keep), state=state)

    def _keep(self, views: list[Prediction], progress: Progress) -> None:
        """The states of the views that were computed take the place of the old ones; a view that was left out keeps its own.

        Not so where a cache is approximate: what a row's view holds would depend on whether other rows needed that view. A row that
        leaves a view out then loses what that view holds.
        """
        if all(view.state is None for view in views):
            return
        self.states[: len(views)] = [view.state for view in views]
        if self.sampler.cache.exact or len(self.states) == 1:
            return
        of_row = [
            len(self.sampler.guidance.views(self.batch.row(b), progress.of_row(b))) for b in range(self.batch.rows)
        ]
        own_B = torch.tensor(of_row, device=self.batch.device)
        self.states = [
            state and dataclasses.replace(state, held=state.held & (own_B > i)[:, None])
            for i, state in enumerate(self.states)
        ]

    def _write_planned(self, step: PlannedStep, proposal: Proposal, todo: Todo) -> Batch:
        """Unmask what the selection takes, which has promised to take nothing else. What it did is checked at the end of the run."""
        unmask = step.unmask
        if unmask is None:
            unmask = self.sampler.selection(self.batch, proposal, todo.block, todo.counts, todo.progress).unmask
        return unmasked(self.batch, unmask, proposal, step.clock)

    def _write(self, move: Move, proposal: Proposal, todo: Todo) -> Batch:
        """Apply a move to the tokens that this run may change: what was given stays, and so do rows that take no step.

        Only tokens of the row's block are masked again, so a finished block stays finished.
        """
        batch, region_BL = self.batch, todo.region
        open_BL = self.open & region_BL.any(1, keepdim=True)
        move = Move(unmask=move.unmask & open_BL, remask=move.remask & region_BL, redraw=move.redraw & open_BL)
        remasks = self._check(move, proposal, todo)
        written = apply(batch, move, proposal, region_BL.any(1))
        if self.agenda.bounded:
            late_B = todo.must_unmask & (still_masked(written) & region_BL).any(1)
            if bool(late_B.any()):
                raise NothingUnmasked(
                    f"a block of rows {late_B.nonzero().flatten().tolist()} has masked tokens left after its last step; "
                    f"{type(self.sampler.selection).__name__} must end within its bound (see extra_steps)"
                )
        if remasks:
            if not self.agenda.bounded:
                raise NothingUnmasked(
                    f"{type(self.sampler.selection).__name__} masks tokens again, so it must say when a block ends: give it extra_steps"
                )
            # Their order is that of masked tokens again.
            written = written.replace(order=torch.where(move.remask, self.first.order, written.order))
        return written

    def _check_end(self) -> None:
        """Raise the named error of a planned run that ended with masked tokens, or with tokens that the model did not score."""
        assert self.batch.score is not None
        masked_BL = still_masked(self.batch)
        unscored_BL = self.open & ~masked_BL & (self.batch.score == -torch.inf)
        idle, unscored = torch.stack([masked_BL.any(), unscored_BL.any()]).tolist()
        if unscored:
            raise self._not_predicted(unscored_BL)
        if idle:
            raise NothingUnmasked(
                f"rows {masked_BL.any(1).nonzero().flatten().tolist()} have masked tokens left; {type(self.sampler.selection).__name__} "
                "is foreseeable, so it must take exactly its counts"
            )

    def _not_predicted(self, unscored_BL: Tensor) -> NothingPredicted:
        row, token = unscored_BL.nonzero()[0].tolist()
        return NothingPredicted(
            f"row {row}, token {token} (kind {int(self.batch.kind[row, token])}) was selected, but the model did not score it; "
            "select tokens that were predicted, of a kind that the model knows"
        )

    def _check(self, move: Move, proposal: Proposal, todo: Todo) -> bool:
        """Raise the named error of a move that breaks the contract. Whether the move masks any token again."""
        unscored_BL = (move.unmask | move.redraw) & (proposal.score == -torch.inf)
        idle_B = todo.must_unmask & ~(move.unmask & todo.block).any(1)
        unscored, idle, remasks = torch.stack([unscored_BL.any(), idle_B.any(), move.remask.any()]).tolist()
        if unscored:
            raise self._not_predicted(unscored_BL)
        if self.states and self.states[0] is not None and not self.lending:
            changed_BL = self.states[0].held & (move.unmask | move.remask | move.redraw)
            if bool(changed_BL.any()):
                raise CachedTokenChanged(
                    f"row, token {changed_BL.nonzero()[0].tolist()} was changed, but {type(self.sampler.cache).__name__} holds it; "
                    "use a selection that leaves finished blocks alone, or cache=NoCache()"
                )
        if idle:
            raise NothingUnmasked(
                f"nothing was unmasked in rows {idle_B.nonzero().flatten().tolist()}; a selection must take one, or end within its bound"
            )
        return remasks


def _ordered(before: Batch, after: Batch) -> Batch:
    """``after`` with the order of the tokens that a prior or early stopping unmasked, where unmasking sets it."""
    if after is before or not before.stamps:
        return after
    new_BL = before.masked & ~after.masked & (before.order == ON_UNMASK)
    return after.replace(order=torch.where(new_BL, after.clock[:, None], after.order))


def _same_kinds(views: list[Batch], predict: Tensor) -> None:
    """Views must score the same tokens of each kind: a dropped span is text, so what it showed cannot be scored in all views."""
    for view in views[1:]:
        other_BL = predict & (view.kind != views[0].kind)
        if bool(other_BL.any()):
            row, token = other_BL.nonzero()[0].tolist()
            raise ValueError(
                f"row {row}, token {token} is to be scored, but guidance drops it in a view; score writable tokens only"
            )


def _stacked(predicts: list[Tensor]) -> Tensor:
    """The masks of all views; what was told of them is told of the result."""
    if len(predicts) == 1:
        return predicts[0]
    told, stacked = [counts_told(predict) for predict in predicts], torch.cat(predicts)
    known = [counts for counts in told if counts is not None]
    return tell_counts(stacked, tuple(n for counts in known for n in counts)) if len(known) == len(told) else stacked


def _split(prediction: Prediction, query: Query, views: int, batch: Batch) -> list[Prediction]:
    """The prediction of each view: its rows, tokens numbered from its own first row."""
    told = counts_told(query.predict)
    if told is not None:
        alike = _split_alike(prediction, told, views)
        if alike is not None:
            return alike
    if views == 1:
        return [prediction]
    tokens = batch.ids.numel()
    parts: list[dict[int, Scored]] = [{} for _ in range(views)]
    for kind, scored in prediction.scored.items():
        if not scored.at.numel():
            for part in parts:
                part[kind] = scored
            continue
        edges = torch.searchsorted(scored.at, torch.arange(1, views, device=scored.at.device) * tokens).tolist()
        cuts = [(None,) * views if t is None else t.tensor_split(edges) for t in (scored.logits, scored.hidden)]
        for i, (at, logits, hidden) in enumerate(zip(scored.at.tensor_split(edges), *cuts, strict=True)):
            parts[i][kind] = Scored(at=at - i * tokens, logits=logits, hidden=hidden)
    return [Prediction(scored=part, state=_state(prediction, i, batch.rows)) for i, part in enumerate(parts)]


def _split_alike(prediction: Prediction, told: tuple[int, ...], views: int) -> list[Prediction] | None:
    """The same without a look at the token numbers, where all tokens are of one kind and every view scored as many."""
    rows = len(told) // views
    each = sum(told[:rows])
    if told != told[:rows] * views or any(len(s.at) not in (0, each * views) for s in prediction.scored.values()):
        return None
    parts: list[dict[int, Scored]] = [{} for _ in range(views)]
    for kind, scored in prediction.scored.items():
        if not len(scored.at):
            for part in parts:
                part[kind] = scored
            continue
        at = scored.at[:each]
        remember(OF_EACH_ROW, told[:rows], at)
        for i, part in enumerate(parts):
            own = slice(i * each, (i + 1) * each)
            logits, hidden = (None if t is None else t[own] for t in (scored.logits, scored.hidden))
            part[kind] = Scored(at=at, logits=logits, hidden=hidden, head=scored.head if views == 1 else None)
    return [Prediction(scored=part, state=_state(prediction, i, rows)) for i, part in enumerate(parts)]


def _state(prediction: Prediction, view: int, rows: int) -> State | None:
    return prediction.state and prediction.state.rows(view * rows, (view + 1) * rows)
