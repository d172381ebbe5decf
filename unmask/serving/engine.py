"""Continuous batching for masked diffusion: requests join and leave between denoising steps.

Public idea: ``with Engine(parts) as engine: engine.submit(Request(task=.., sampler=..)).result()``.

An autoregressive server adds one token to every row at each tick. Here a row has its own sampler, and a step of it decides any number
of tokens, anywhere, from one to three guidance views. So the engine knows nothing of tokens: every live request is a ``Run``, the
sampler's loop stopped where it needs the model. A tick takes the run that is due and others whose queries have its shape, joins the
queries into one forward, and hands every run its share. What a run draws is keyed by its own seed and step, and the forward gives every
row the bits it would have had alone (docs/notes/0005-engine.md says where this was measured), so an answer never depends on its company.

Fairness is by virtual time: a run pays for every forward by what it had of it, halved with each priority level, and who has paid least
is due. A newcomer starts level with whoever has paid least, so short requests pass long ones and long ones never starve.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from unmask.models.elastic import Elastic
from unmask.sampling.sampler import NothingUnmasked, Run
from unmask.sequence import Sequence, collate, decided
from unmask.serving.batching import Part, join, part_of, shares
from unmask.serving.metrics import Meter, Metrics
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, Frame, Handle, QueueFull, Request
from unmask.step import Prediction
from unmask.tasks.features import Features

PLACES = 16  # how many earlier requests one level of priority passes in the queue: some, so that nobody waits for ever


class Served(Protocol):
    """The parts of a model that is served: ``tasks.parts.Parts`` or ``tasks.text.TextParts``."""

    @property
    def net(self) -> Elastic: ...
    @property
    def look_tokens(self) -> int: ...
    def require(self, needs: frozenset[str]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``live``: requests between two steps at the same time · ``waiting``: that wait to be · ``rows``: of one forward, views counted ·
    ``multiple``: to which understanding positions are padded, so that forwards have few lengths · ``stretch``: how much longer the longest
    row of a forward may be than the shortest · ``feature_bytes``: remembered pictures.
    """

    live: int = 32
    waiting: int = 128
    rows: int = 16
    multiple: int = 4
    stretch: float = 1.34
    feature_bytes: int = 2**28

    def __post_init__(self) -> None:
        if min(self.live, self.waiting, self.rows, self.multiple, self.stretch) < 1 or self.feature_bytes < 0:
            raise ValueError(f"every limit must be at least 1 (feature_bytes 0), got {self}")


@dataclass(kw_only=True, eq=False)
class _Live:
    """A request between two steps. ``paid``: its virtual time · ``since``: when its last step was taken."""

    handle: Handle
    sequence: Sequence
    run: Run
    paid: float
    since: float
    part: Part = field(init=False)  # what it wants of the model next


class Engine:
    """One device and all that share it. ``start`` gives it a thread; without one, ``tick`` is called by hand, and by one thread alone."""

    def __init__(
        self, parts: Served, *, limits: Limits = Limits(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.parts, self.limits, self.clock = parts, limits, clock
        self.features = Features(limits.feature_bytes)
        self._changed = threading.Condition()  # guards all below
        self._waiting: list[Handle] = []
        self._live: list[_Live] = []
        self._entering: list[Handle] = []  # neither waits nor is live yet
        self._closed = self._stopped = self._broken = False  # takes no more · makes no more steps · will never again
        self._thread: threading.Thread | None = None
        self._taken = 0
        self._loaded: frozenset[str] = frozenset()
        self._meter = Meter(limits.rows)

    # What anybody may call, in any thread.

    def submit(self, request: Request, *, watch: bool = False) -> Handle:
        """Take a request; ``watch``: its frames are wanted. Raises QueueFull, or Closed."""
        with self._changed:
            if self._closed:
                raise Closed("the engine takes no more requests; ask another one")
            if len(self._waiting) >= self.limits.waiting:
                self._meter.refused += 1
                raise QueueFull(len(self._waiting), self._retry_after())
            handle = Handle(request, self._taken, watch=watch, cancel=self._cancel)
            self._taken += 1
            self._waiting.append(handle)
            self._waiting.sort(key=_place)
            self._changed.notify_all()
        return handle

    def position(self, handle: Handle) -> int:
        """How many are in the queue up to and with this request; 0 once it is not in there."""
        with self._changed:
            return self._waiting.index(handle) + 1 if handle in self._waiting else 0

    def retry_after(self) -> float:
        """Seconds after which one of those that are live should be done."""
        with self._changed:
            return self._retry_after()

    @property
    def broken(self) -> bool:
        """Whether its thread died of a defect; all that was in it has been told (Closed)."""
        return self._broken

    def metrics(self) -> Metrics:
        with self._changed:
            return self._meter.snapshot(len(self._waiting), len(self._live) + len(self._entering), self.features)

    def start(self) -> Engine:
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and finish those there are. False if that took longer than ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._thread:
                return self._changed.wait_for(self._idle, timeout)
        while self.tick():
            pass
        return True

    def close(self) -> None:
        """Stop before the next step; whatever is not done raises Closed. May be called twice."""
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        self._abandon(Closed("the engine was stopped before this request was done; submit it to another one"))

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _cancel(self, handle: Handle) -> None:
        with self._changed:
            handle.cancelled = True
            waits = handle in self._waiting
            if waits:
                self._waiting.remove(handle)
            self._changed.notify_all()
        if waits:
            self._settle(handle, _taken_back())

    def _retry_after(self) -> float:
        """Seconds until a place to wait in is free: when the first of those that are live has taken the steps it has left."""
        left = [job.run.step.of - job.run.number for job in self._live]
        return max(1, min(left)) * self._meter.step_seconds if left and self._meter.steps else 1.0

    def _idle(self) -> bool:
        return not (self._waiting or self._entering or self._live)

    # The engine's own thread, from here on.

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not self._idle())
                    if self._stopped or (self._closed and self._idle()):
                        return
                self.tick()
        except BaseException as error:  # a defect of the engine: nobody may wait for ever
            with self._changed:
                self._closed = self._stopped = self._broken = True
            stopped = Closed(f"the engine stopped: {error!r}; start another one")
            stopped.__cause__ = error
            self._abandon(stopped)
            raise

    @torch.no_grad()
    def tick(self) -> bool:
        """Let requests out and in, then one forward for those that are due. False where there is nothing to do."""
        began = self.clock()
        self._let_go()
        self._let_in()
        if not self._live:
            return False
        self._forward(self._due())
        self._meter.seconds += self.clock() - began
        return True

    def _let_go(self) -> None:
        for job in [job for job in self._live if job.handle.cancelled]:
            self._leave(job, _taken_back())

    def _let_in(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or len(self._live) >= self.limits.live:
                    return
                handle = self._waiting.pop(0)
                self._entering.append(handle)
            try:
                job = self._open(handle)
            except Exception as error:
                with self._changed:
                    self._entering.remove(handle)
                self._settle(handle, error)
                continue
            with self._changed:
                self._entering.remove(handle)
                self._live.append(job)
            self._look(job)

    def _open(self, handle: Handle) -> _Live:
        """A request becomes a run; whatever is wrong with it shows here."""
        request, net = handle.request, self.parts.net
        # Looking through all weights costs as much as a step of a small model, so it is done once.
        if not request.task.needs <= self._loaded:
            self.parts.require(request.task.needs)
            self._loaded |= request.task.needs
        sequence = request.task.build(self.parts)
        device = net.embed.weight.device
        batch = collate(self.features.known([sequence], net, device), [request.seed]).replace(clean=None).to(device)
        with _sampling():
            run = request.sampler.start(batch)
        level = min((job.paid for job in self._live), default=0.0)
        return _Live(handle=handle, sequence=sequence, run=run, paid=level, since=self.clock())

    def _due(self) -> list[_Live]:
        """Who has paid least, and the next ones that can share its forward."""
        first, *others = sorted(self._live, key=lambda job: (job.paid, job.handle.number))
        chosen, room = [first], self.limits.rows - first.part.rows
        shortest = longest = first.part.und
        for job in others:
            low, high = min(shortest, job.part.und), max(longest, job.part.und)
            if job.part.shape == first.part.shape and job.part.rows <= room and high <= self.limits.stretch * low:
                chosen.append(job)
                room -= job.part.rows
                shortest, longest = low, high
        return chosen

    def _forward(self, jobs: list[_Live]) -> None:
        """One step of each. Where the model fails on several, each is tried alone: an answer does not need its company."""
        parts = [job.part for job in jobs]
        try:
            query = join(parts)
            prediction = self.parts.net(query.batch, predict=query.predict, reuse=query.reuse)
            answers = shares(prediction, parts, query)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._forward([job])
            else:
                failed = ForwardFailed(f"the model failed on this request: {error}")
                failed.__cause__ = error
                self._leave(jobs[0], failed)
            return
        self._meter.forward(query.batch.rows)
        for job, answer in zip(jobs, answers, strict=True):
            self._advance(job, answer)

    def _advance(self, job: _Live, answer: Prediction) -> None:
        job.paid += job.part.positions / 2.0**job.handle.request.priority
        try:
            with _sampling():
                job.run.advance(answer)
        except Exception as error:
            self._leave(job, error)
            return
        now = self.clock()
        self._meter.step(now - job.since)
        job.since = now
        self._look(job)

    def _look(self, job: _Live) -> None:
        """After a step, or before the first: show it, and read the answer if nothing is left to decide."""
        try:
            step, query = job.run.step, job.run.query
            if job.handle.watched:
                row = decided(job.sequence, step.batch, 0)
                job.handle.show(Frame(number=step.number, of=step.of, ids=row.ids, masked=row.masked))
            if query is None:
                self._leave(job, job.handle.request.task.read(decided(job.sequence, step.batch, 0), self.parts))
            else:
                job.part = part_of(query, self.limits.multiple)
        except Exception as error:
            self._leave(job, error)

    def _leave(self, job: _Live, outcome: Any) -> None:
        with self._changed:
            self._live.remove(job)
        self._settle(job.handle, outcome)

    def _settle(self, handle: Handle, outcome: Any) -> None:
        """Count it, then let it be known."""
        with self._changed:
            if isinstance(outcome, Cancelled):
                self._meter.cancelled += 1
            elif isinstance(outcome, BaseException):
                self._meter.failed += 1
            else:
                self._meter.finished += 1
            self._changed.notify_all()
        handle.settle(outcome)

    def _abandon(self, error: Closed) -> None:
        with self._changed:
            left = [*self._waiting, *self._entering, *(job.handle for job in self._live)]
            self._waiting, self._entering, self._live = [], [], []
        for handle in left:
            self._settle(handle, error)


@contextmanager
def _sampling() -> Iterator[None]:
    """Settings that a stranger made may lead to no number; then they are to blame, and not the model."""
    try:
        yield
    except ArithmeticError as error:
        raise NothingUnmasked(str(error)) from error


def _place(handle: Handle) -> tuple[int, int]:
    """Where a request stands in the queue, lowest first."""
    priority = handle.request.priority
    return handle.number - PLACES * priority, -priority


def _taken_back() -> Cancelled:
    return Cancelled("the request was cancelled")
