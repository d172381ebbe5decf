"""A call of a model as the engine runs it. Public idea: ``Model(parts, presets, executor=Job(engine))``.

Every method of a model decodes its sequences by ``run``. A ``Job`` is the ``run`` of one call. It submits the sequences to the engine,
where they share forwards with all other calls, waits for them, and passes their steps to a listener. One call may run several times (a
plan, the picture, a critique of it); ``cancel`` ends the run in progress and every later one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Items
from concurrent.futures import wait
from typing import Protocol

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.serving.engine import Engine
from unmask.serving.requests import Cancelled, Handle, Request, Served
from unmask.serving.usage import Usage
from unmask.tasks.live import Live
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, OnStep, StepEvent
from unmask.tokens.layouts import Layout

_SHORTEST_POLL, _LONGEST_POLL = 0.005, 0.25  # seconds between two reads of the queue position


class Listener(Protocol):
    """Follows a job. All methods are called in the thread of the job.

    ``on_queued``: the position in the queue has changed · ``on_step``: a row of the current run has taken a step; ``behind``: newer events
    are waiting · ``on_event``: a layout or a round that the task learned between two runs.
    """

    def on_queued(self, position: int) -> None: ...
    def on_step(self, event: StepEvent, behind: bool) -> None: ...
    def on_event(self, event: Layout | Attempt) -> None: ...


class Job:
    """The executor of one call. ``priority``, ``net``: as of ``Request`` · ``live``: of its drawing ·
    ``cancel`` may be called in any thread, at any time.

    ``usage``: tokens of all its runs so far.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        priority: int = 0,
        net: Served | None = None,
        listener: Listener | None = None,
        live: Live | None = None,
    ) -> None:
        self.engine, self.priority, self.net, self.listener, self.live = engine, priority, net, listener, live
        self.cancelled = False
        self.usage = Usage()
        self._lock = threading.Lock()
        self._handles: list[Handle] = []  # of the current run

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            handles = list(self._handles)
        if self.live:
            self.live.finish()
        for handle in handles:
            handle.cancel()

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """As ``Model.run``. Raises Cancelled, Closed, ForwardFailed, and whatever a sampler raises."""
        began = time.perf_counter()
        followed = on_step is not None or self.listener is not None
        try:
            handles = []
            for row, (sequence, seed) in enumerate(zip(sequences, seeds, strict=True)):
                request = Request(sequence=sequence, sampler=sampler, seed=seed, priority=self.priority, net=self.net)
                handles.append(self._submit(request, row if followed else None))
            if followed:
                for handle in handles:
                    self._follow(handle, on_step)
            rows = [handle.result() for handle in handles]
        finally:
            with self._lock:
                left, self._handles = self._handles, []
            for handle in left:  # if one row failed, the others are cancelled
                if not handle.done:
                    handle.cancel()
        return Decoded(rows=rows, seconds=time.perf_counter() - began)

    def emit(self, row: int, event: Layout | Attempt) -> None:
        if self.listener:
            self.listener.on_event(event)

    def _submit(self, request: Request, row: int | None) -> Handle:
        with self._lock:
            if self.cancelled:
                raise Cancelled("the request was cancelled")
            handle = self.engine.submit(request, row=row)
            self._handles.append(handle)
            self.usage += Usage.of(request.sequence)
        return handle

    def _follow(self, handle: Handle, on_step: OnStep | None) -> None:
        if self.listener:
            self._follow_queue(self.listener, handle)
        for event in handle.events():
            if on_step and event.number:  # as a model without an executor, which has no event before the first step
                on_step(event)
            if self.listener:
                self.listener.on_step(event, handle.behind)

    def _follow_queue(self, listener: Listener, handle: Handle) -> None:
        last, pause = 0, _SHORTEST_POLL
        while position := self.engine.position(handle):
            if position != last and pause > _SHORTEST_POLL:  # most requests leave the queue before the second read
                listener.on_queued(position)
                last = position
            wait([handle.future], pause)
            pause = min(2 * pause, _LONGEST_POLL)
