"""A run whose request changes while it runs: what no longer fits is masked again, the rest stays, and the steps that are left go on.

Public idea: ``LiveSampler.of(sampler, changes, sequence).start(batch)`` is a run like any other (``sampler.Run``) of one row. After every
step it asks ``changes.next(..)`` for a ``Patch``: the row with other given tokens. A run without a patch is the plain run, bit for
bit, and so is one with a patch that changes nothing.

What no longer fits: the tokens that the patch masks and, if it has ``before``, every unmasked token that the new request makes less than
``least`` times as probable as the old one did. Both probabilities are those of the row with all its writable tokens masked, so they
compare what the two requests say, and one forward of two rows has them.

Shapes: L tokens · N writable tokens that are unmasked.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmask.protocols import Run
from unmask.sampling.blocks import Whole
from unmask.sampling.sampler import Sampler, SamplingRun
from unmask.sampling.schedule import Rest
from unmask.sequence import Batch, Sequence, collate, sequence_at, writable_tokens
from unmask.step import Prediction, Query, Step


@dataclass(frozen=True, kw_only=True)
class Patch:
    """``sequence``: the row as it goes on, on the CPU; ``masked`` says what is masked again · ``before``: the row under the old request,
    if the tokens that stay shall be compared under both; its writable tokens are the same ones in the same order · ``least``: as above.
    """

    sequence: Sequence
    before: Sequence | None = None
    least: float = 0.5


class Changes(Protocol):
    """``begun``, ``applied``: steps and patches of earlier runs of the request · ``next(now, taken, done)``: the next patch of the row
    ``now`` after ``taken`` steps, None while there is none; ``done``: the run is over unless there is one. Called in the thread that
    computes, so it must not wait.
    """

    @property
    def begun(self) -> int: ...
    @property
    def applied(self) -> int: ...
    def next(self, now: Sequence, taken: int, done: bool) -> Patch | None: ...


@dataclass(frozen=True, kw_only=True)
class LiveSampler(Sampler):
    """``plain``: the sampler of the run between two changes · ``sequence``: what its only row begins as."""

    plain: Sampler
    changes: Changes
    sequence: Sequence

    @classmethod
    def of(cls, sampler: Sampler, changes: Changes, sequence: Sequence) -> LiveSampler:
        parts = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(Sampler)}
        return cls(**parts, plain=sampler, changes=changes, sequence=sequence)

    def start(self, batch: Batch) -> Run:
        if batch.rows != 1:
            raise ValueError(f"a live run has one row, got {batch.rows}; start one run for each")
        return LiveRun(self, batch)


class LiveRun:
    """The loop between two steps; ``sampler.Run``."""

    @torch.no_grad()
    def __init__(self, sampler: LiveSampler, batch: Batch) -> None:
        self.changes, self.begun, self.patches = sampler.changes, sampler.changes.begun, sampler.changes.applied
        total = len(writable_tokens(sampler.sequence))
        schedule = sampler.plain.schedule
        if isinstance(
            sampler.plain.blocks, Whole
        ):  # with several blocks, a block that is masked again begins its schedule again
            schedule = Rest(schedule=schedule, total=total)
        self.plain, self.rest = sampler.plain, dataclasses.replace(sampler.plain, schedule=schedule)
        self.sequence = sampler.sequence
        self.comparison: _Comparison | None = None
        self.inner = SamplingRun(self.plain, batch.replace(clock=batch.clock + self.begun))
        self._ask()

    @property
    def query(self) -> Query | None:
        return self.comparison.query if self.comparison else self.inner.query

    @property
    def batch(self) -> Batch:
        return self.inner.batch

    @property
    def step(self) -> Step:
        taken, own = int(self.inner.batch.clock), self.inner.step
        return Step(
            number=taken,
            of=taken + own.of - own.number,
            batch=self.inner.batch,
            sequence=self.sequence,
            patch=self.patches,
        )

    @torch.no_grad()
    def advance(self, prediction: Prediction) -> None:
        if self.comparison:
            comparison, self.comparison = self.comparison, None
            self._go_on(comparison.sequence, comparison.unfit(prediction))
        else:
            self.inner.advance(prediction)
        if not self.comparison:
            self._ask()

    def _ask(self) -> None:
        """Apply the patches that have come, up to one that needs a forward."""
        while self.comparison is None:
            now = sequence_at(self.sequence, self.inner.batch, 0)
            patch = self.changes.next(now, int(self.inner.batch.clock), self.inner.query is None)
            if patch is None:
                return
            stays = writable_tokens(patch.sequence)
            stays = stays[~patch.sequence.masked[stays]]
            if patch.before is None or not len(stays):
                self._go_on(patch.sequence, stays[:0])
            else:
                self.comparison = _Comparison.of(patch, patch.before, stays, self.inner.batch)

    def _go_on(self, sequence: Sequence, unfit_N: Tensor) -> None:
        """Continue with another row, in which the tokens ``unfit`` are masked too."""
        masked = sequence.masked.clone()
        masked[unfit_N] = True
        before = self.inner.batch
        self.sequence = dataclasses.replace(sequence, masked=masked)
        batch = collate([self.sequence], [int(before.seed)]).replace(clean=None).to(before.device)
        self.inner = SamplingRun(self.rest, batch.replace(clock=before.clock))
        self.patches += 1


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """The forward that scores the tokens ``stays [N]`` of ``sequence`` under the old request (row 0) and under the new one (row 1)."""

    sequence: Sequence
    stays: Tensor
    query: Query
    least: float

    @classmethod
    def of(cls, patch: Patch, before: Sequence, stays_N: Tensor, batch: Batch) -> _Comparison:
        old_N, new_N = writable_tokens(before), writable_tokens(patch.sequence)
        if len(old_N) != len(new_N):
            raise ValueError(
                f"the changed request has {len(new_N)} tokens to write instead of {len(old_N)}; keep the size"
            )
        ids = before.ids.clone()
        ids[old_N] = patch.sequence.ids[new_N]
        rows = [_all_masked(dataclasses.replace(before, ids=ids)), _all_masked(patch.sequence)]
        both = collate(rows, [int(batch.seed)] * 2).replace(clean=None)
        predict = torch.zeros_like(both.masked)
        predict[0, old_N[torch.isin(new_N, stays_N)]] = True
        predict[1, stays_N] = True
        both = both.replace(time=both.valid.float(), region=predict).to(batch.device)
        query = Query(batch=both, predict=predict.to(batch.device))
        return cls(sequence=patch.sequence, stays=stays_N, query=query, least=patch.least)

    def unfit(self, prediction: Prediction) -> Tensor:
        """The numbers of the tokens that no longer fit."""
        ids, log_p = self.query.batch.ids.flatten(), torch.zeros(self.query.predict.numel())
        for kind, scored in prediction.scored.items():
            if len(scored.at):
                logits_NV = prediction.logits(kind).float()
                own_N = logits_NV.gather(1, ids[scored.at][:, None])[:, 0] - logits_NV.logsumexp(1)
                log_p[scored.at.cpu()] = own_N.cpu()
        old_N, new_N = log_p[self.query.predict.flatten().cpu()].view(2, -1)
        return self.stays[new_N - old_N < math.log(self.least)] if self.least else self.stays[:0]


def _all_masked(sequence: Sequence) -> Sequence:
    masked = sequence.masked.clone()
    masked[writable_tokens(sequence)] = True
    return dataclasses.replace(sequence, masked=masked)
