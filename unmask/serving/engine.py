"""Continuous batching for masked diffusion: requests join and leave between denoising steps.

Public idea: ``with Engine(net) as engine: engine.submit(Request(sequence=.., sampler=..)).result()``.

An autoregressive server adds one token to every row at each tick. Here every request has its own sampler, and one step unmasks any number
of tokens, anywhere, from one to three guidance views. So the engine knows nothing of tokens. A running request is a ``SamplingRun``: the
sampler's loop, stopped where it needs the model. A tick joins the queries of several runs into one forward and gives each its share of
the prediction. Which requests run: ``serving/places.py``. Which of them step together: ``serving/scheduler.py``; those of different
adapters share no forward. Which queries can be joined, and how: ``serving/batching.py``.

Results are batch-invariant: random numbers are keyed by seed and step of the request, and the forward gives every row the bits that it has
in a batch of its own (docs/notes/0005-engine.md says where this was measured).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from unmask.protocols import Run
from unmask.sampling.sampler import NothingUnmasked
from unmask.sequence import Sequence, collate
from unmask.serving.batching import ShapedQuery, join, part_of, shares
from unmask.serving.cost import cost_of
from unmask.serving.metrics import Meter, Metrics
from unmask.serving.places import Places, Turn
from unmask.serving.requests import Cancelled, Closed, ForwardFailed, Handle, QueueFull, Request, Served
from unmask.serving.scheduler import NextStep, Scheduler
from unmask.step import Prediction
from unmask.tasks.features import Features
from unmask.tasks.running import StepEvent

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``running``: requests between two steps at the same time · ``parked``: long requests that may have given their place to a short one,
    beside those that run · ``queued``: requests that wait to run · ``rows``: of one forward, guidance views counted; None: 12 on a CPU, 16
    on other devices · ``multiple``: to which their understanding positions are rounded up when rows are chosen · ``stretch``: how much
    longer the longest row of a forward may be than the shortest, where rows are padded · ``idle``: most understanding positions of requests
    without text in a forward with text, whose last layers compute them for nobody · ``feature_bytes``: of the cache of picture features.
    """

    running: int = 32
    parked: int = 8
    queued: int = 128
    rows: int | None = None
    multiple: int = 4
    stretch: float = 1.34
    idle: int = 256
    feature_bytes: int = 2**28

    def __post_init__(self) -> None:
        least = min(self.running, self.queued, self.multiple, self.stretch, 1 if self.rows is None else self.rows)
        if least < 1 or min(self.parked, self.idle, self.feature_bytes) < 0:
            raise ValueError(f"every limit must be at least 1 (parked, idle and feature_bytes 0), got {self}")

    def rows_on(self, device: torch.device) -> int:
        """Rows of one forward. A short request waits for the forward that is under way; on a CPU, which takes time for each row, 12 rows
        instead of 16 take three quarters of the time and cost 3 % of the rate (``mini``, drawings).
        """
        return self.rows or (12 if device.type == "cpu" else 16)


@dataclass(kw_only=True, eq=False)
class _Running:
    """A request that has left the queue. ``net``: its network · ``since``: when its last step was taken · ``left``: steps that its sampler
    still plans · ``begun``: whether its sampler has started.
    """

    handle: Handle
    net: Served
    since: float
    left: int = 1
    begun: bool = False
    run: Run = field(init=False)
    part: ShapedQuery = field(init=False)  # what it needs of the next forward

    @property
    def number(self) -> int:
        return self.handle.number

    def begin(self, cache: Features, device: torch.device) -> None:
        """Encode the pictures, or find them in the cache, and start the sampler."""
        request = self.handle.request
        batch = (
            collate(cache.known([request.sequence], self.net, device), [request.seed]).replace(clean=None).to(device)
        )
        with _sampler_errors():
            self.run = request.sampler.start(batch)
        self.begun = True

    def advance(self, prediction: Prediction) -> None:
        """Let the sampler take the step that it needed the prediction for."""
        with _sampler_errors():
            self.run.advance(prediction)

    def report(self) -> Sequence | None:
        """Publish the step that was just taken, if the caller follows. The sequence, if nothing is left to unmask."""
        step, row, began = self.run.step, self.handle.row, self.handle.request.sequence
        self.left = step.of - step.number
        finished = self.run.query is None
        if row is None and not finished:
            return None  # nobody reads it, so it stays on the device
        if row is None:
            return step.row(began, 0)
        event = StepEvent.after(step, began, row=row)
        self.handle.publish(event)
        return event.sequence if finished else None

    def next_step(self, multiple: int) -> NextStep:
        """What its sampler needs next, as the scheduler sees it."""
        if self.run.query is None:
            raise ValueError(f"request {self.number} is finished and has no next step")
        self.part = part = part_of(self.run.query, multiple)
        return NextStep(
            group=id(self.net),
            rows=part.rows,
            positions=part.positions,
            shape=part.shape,
            length=part.und,
            padded=part.padded,
            text=part.shape.text,
            idle=part.idle,
            left=self.left * part.positions,
        )


class Engine:
    """One device and the requests that share it. ``start`` gives it a thread. Without one, a single thread calls ``tick`` by hand."""

    def __init__(
        self,
        net: Served,
        *,
        device: torch.device = CPU,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.net, self.device, self.limits, self.clock = net, device, limits, clock
        self.features = Features(limits.feature_bytes)
        rows = limits.rows_on(device)
        self.scheduler = Scheduler(rows=rows, stretch=limits.stretch, idle=limits.idle)
        self._changed = threading.Condition()  # guards everything below
        self._places = Places(most=limits.running, parked=limits.parked)
        self._queued: dict[int, Handle] = {}  # by number
        self._running: dict[int, _Running] = {}  # by number, parked ones too; only the engine's thread changes it
        self._closed = self._stopped = self._broken = False  # takes no requests · takes no steps · its thread has died
        self._thread: threading.Thread | None = None
        self._submitted = 0
        self._meter = Meter(rows)

    # Any thread may call these.

    def submit(self, request: Request, *, row: int | None = None) -> Handle:
        """Queue a request. ``row``: it has step events, which carry this row number. Raises QueueFull or Closed."""
        cost = cost_of(request.sequence, request.sampler)
        with self._changed:
            if self._closed:
                raise Closed("the engine takes no more requests; ask another one")
            if len(self._queued) >= self.limits.queued:
                self._meter.refused += 1
                raise QueueFull(len(self._queued), self._retry_after())
            handle = Handle(request, self._submitted, row=row, cancel=self._cancel)
            self._submitted += 1
            self._queued[handle.number] = handle
            self._places.join(handle.number, cost, request.priority)
            self._changed.notify_all()
        return handle

    def position(self, handle: Handle) -> int:
        """The place of a request in the queue, from 1; 0 once it has left the queue."""
        with self._changed:
            return self._places.position(handle.number)

    def retry_after(self) -> float:
        """Seconds after which the first of the running requests should be done."""
        with self._changed:
            return self._retry_after()

    @property
    def broken(self) -> bool:
        """Whether the engine's thread died of a defect. All its requests have then ended with Closed."""
        return self._broken

    def metrics(self) -> Metrics:
        with self._changed:
            return self._meter.snapshot(self._places, self.features)

    def start(self) -> Engine:
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and finish the others. False if that took longer than ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._thread:
                return self._changed.wait_for(self._idle, timeout)
        while self.tick():
            pass
        return True

    def close(self) -> None:
        """Stop before the next step. Requests that are not done end with Closed. A second call has no effect."""
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
        """A queued request ends at once; a running one at the beginning of the next tick."""
        with self._changed:
            handle.cancelled = True
            queued = self._queued.pop(handle.number, None)
            if queued:
                self._places.leave(handle.number)
            self._changed.notify_all()
        if queued:
            self._settle(handle, Cancelled("the request was cancelled"))

    def _retry_after(self) -> float:
        left = [job.left for job in self._running.values()]
        return max(1, min(left)) * self._meter.step_seconds if left and self._meter.steps else 1.0

    def _idle(self) -> bool:
        return not (self._queued or self._running)

    # Only the engine's own thread calls these.

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not self._idle())
                    if self._stopped or (self._closed and self._idle()):
                        return
                self.tick()
        except BaseException as error:  # a defect of the engine: end all requests, so that no caller waits for ever
            with self._changed:
                self._closed = self._stopped = self._broken = True
            stopped = Closed(f"the engine stopped: {error!r}; start another one")
            stopped.__cause__ = error
            self._abandon(stopped)
            raise

    @torch.no_grad()
    def tick(self) -> bool:
        """Let requests leave and enter, then take one step of those that the scheduler chooses. False if no request is running."""
        began = self.clock()
        # 1. Cancelled requests leave first, so that queued ones get their places in this very tick.
        for job in [job for job in self._running.values() if job.handle.cancelled]:
            self._leave(job, Cancelled("the request was cancelled"))
        # 2. Queued requests take places, and their samplers start. That needs no forward, apart from new pictures. Parked ones come back.
        while turn := self._admit():
            self._enter(turn)
        if not self._running:
            return False
        # 3. The scheduler chooses: the request with the least virtual time, and those that fit into the same forward.
        chosen = [self._running[number] for number in self.scheduler.choose()]
        # 4 to 6. One forward, and one step of each.
        self._step(chosen)
        self._meter.seconds += self.clock() - began
        return True

    def _admit(self) -> Turn | None:
        """The request whose turn it is to run; None while there is none, or no place."""
        with self._changed:
            turn = self._places.admit()
            if turn and turn.number in self._queued:
                handle = self._queued.pop(turn.number)
                net = handle.request.net or self.net
                self._running[turn.number] = _Running(handle=handle, net=net, since=self.clock())
        return turn

    def _enter(self, turn: Turn) -> None:
        """Start the sampler of a queued request, or let a parked one go on where it stopped."""
        job = self._running[turn.number]
        if turn.park is not None:
            self.scheduler.leave(turn.park)
        self.scheduler.enter(turn.number, job.handle.request.priority)
        if job.begun:
            job.since = self.clock()
            self.scheduler.plan(job.number, job.next_step(self.limits.multiple))
            return
        with self._failing_alone(job):
            job.begin(self.features, self.device)
            self._plan(job)

    def _step(self, jobs: list[_Running]) -> None:
        """One step of each; they have the same network. If the model fails on several requests, each gets a forward of its own, so that
        only the faulty one fails.
        """
        parts = [job.part for job in jobs]
        try:
            # 4. Join all queries, with all their guidance views, into one batch, and run the model once.
            query = join(parts)
            prediction = jobs[0].net(query.batch, predict=query.predict, reuse=query.reuse)
            # 5. Split the prediction, with tokens numbered as in each request's own query.
            predictions = shares(prediction, parts, query)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._step([job])
            else:
                failed = ForwardFailed(f"the model failed on this request: {error}")
                failed.__cause__ = error
                self._leave(jobs[0], failed)
            return
        self._meter.forward(query.batch.rows)
        self.scheduler.charge([job.number for job in jobs])
        with self._changed:
            self._places.serve({job.number: job.part.positions for job in jobs})
        # 6. Every sampler takes its step, and its request plans the next one or finishes. An error of its settings ends that request alone.
        for job, own in zip(jobs, predictions, strict=True):
            with self._failing_alone(job):
                job.advance(own)
                self._meter.step(self.clock() - job.since)
                self._plan(job)

    def _plan(self, job: _Running) -> None:
        """After the start and after every step: finish, or plan the next step."""
        job.since = self.clock()
        finished = job.report()
        if finished is not None:
            self._leave(job, finished)
        else:
            self.scheduler.plan(job.number, job.next_step(self.limits.multiple))

    @contextmanager
    def _failing_alone(self, job: _Running) -> Iterator[None]:
        """An exception inside ends this request and no other."""
        try:
            yield
        except Exception as error:
            self._leave(job, error)

    def _leave(self, job: _Running, outcome: Sequence | BaseException) -> None:
        with self._changed:
            del self._running[job.number]
            self._places.leave(job.number)
        self.scheduler.leave(job.number)
        self._settle(job.handle, outcome)

    def _settle(self, handle: Handle, outcome: Sequence | BaseException) -> None:
        """Count the outcome, then hand it to the caller."""
        with self._changed:
            self._meter.ended(outcome)
            self._changed.notify_all()
        handle.settle(outcome)

    def _abandon(self, error: Closed) -> None:
        """End every request that is left."""
        with self._changed:
            left = [*self._queued.values(), *(job.handle for job in self._running.values())]
            for handle in left:
                self._places.leave(handle.number)
            self._queued.clear()
            self._running.clear()
        for handle in left:
            self._settle(handle, error)


@contextmanager
def _sampler_errors() -> Iterator[None]:
    """Settings from a request may lead to no finite number. The error then names the sampler, not the model."""
    try:
        yield
    except ArithmeticError as error:
        raise NothingUnmasked(str(error)) from error
