"""A call of a model on its way through the engine. Public idea: ``Model(parts, presets, through=Job(engine))``.

Every method of a model decides its sequences in ``run``. A ``Job`` is that ``run`` for one call: it hands the sequences to the engine,
where they share forwards with everybody else's, waits for them, and lets a listener follow. Several runs may make one call (a plan, the
picture, a critique of it); ``cancel`` ends whichever is at work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Items
from concurrent.futures import wait
from dataclasses import replace
from typing import Protocol

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.serving.engine import Engine
from unmask.serving.requests import Cancelled, Given, Handle, Request
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, Shown, Watch
from unmask.tokens.layouts import Layout

_SOON, _LATE = 0.005, 0.25  # seconds between two looks at the queue, at first and at most


class Listener(Protocol):
    """Who follows a job, in the thread that it runs in.

    ``queued``: the place in the queue, where it changed · ``shown``: a row of the run at work; ``behind``: newer ones have come since ·
    ``told``: what was thought between two runs.
    """

    def queued(self, position: int) -> None: ...
    def shown(self, shown: Shown, behind: bool) -> None: ...
    def told(self, thought: Layout | Attempt) -> None: ...


class Job:
    """``priority``: as of ``Request`` · ``listener``: None where nobody follows. ``cancel`` may be called in any thread, at any time."""

    def __init__(self, engine: Engine, *, priority: int = 0, listener: Listener | None = None) -> None:
        self.engine, self.priority, self.listener = engine, priority, listener
        self.cancelled = False
        self._lock = threading.Lock()
        self._handles: list[Handle] = []  # of the run at work

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            handles = list(self._handles)
        for handle in handles:
            handle.cancel()

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, watch: Watch | None = None
    ) -> Decoded:
        """As ``Model.run``. Raises Cancelled, Closed, ForwardFailed, and whatever a sampler raises."""
        began = time.perf_counter()
        followed = watch is not None or self.listener is not None
        try:
            handles = [self._submit(s, seed, sampler, followed) for s, seed in zip(sequences, seeds, strict=True)]
            if followed:
                for row, handle in enumerate(handles):
                    self._follow(row, handle, sequences[row], watch)
            rows = [handle.result() for handle in handles]
        finally:
            with self._lock:
                left, self._handles = self._handles, []
            for handle in left:  # one that failed takes the others along
                if not handle.done:
                    handle.cancel()
        return Decoded(rows=rows, seconds=time.perf_counter() - began)

    def tell(self, row: int, thought: Layout | Attempt) -> None:
        if self.listener:
            self.listener.told(thought)

    def _submit(self, sequence: Sequence, seed: int, sampler: Sampler, followed: bool) -> Handle:
        request = Request(task=Given(sequence=sequence), sampler=sampler, seed=seed, priority=self.priority)
        with self._lock:
            if self.cancelled:
                raise Cancelled("the request was cancelled")
            handle = self.engine.submit(request, watch=followed)
            self._handles.append(handle)
        return handle

    def _follow(self, row: int, handle: Handle, sequence: Sequence, watch: Watch | None) -> None:
        if self.listener:
            self._queue(self.listener, handle)
        for frame in handle.frames():
            now = replace(sequence, ids=frame.ids, masked=frame.masked)
            shown = Shown(row=row, number=frame.number, of=frame.of, sequence=now)
            if watch and frame.number:  # as a model alone, which shows nothing before the first step
                watch(shown)
            if self.listener:
                self.listener.shown(shown, handle.behind)

    def _queue(self, listener: Listener, handle: Handle) -> None:
        told, pause = 0, _SOON
        while position := self.engine.position(handle):
            if position != told and pause > _SOON:  # most leave the queue at once
                listener.queued(position)
                told = position
            wait([handle.future], pause)
            pause = min(2 * pause, _LATE)
