"""A model that many ask at once. Public idea: ``Service(model, name="mini").start([Call(ask=lambda m: m.generate(..))])``.

A call runs in a thread of its own, which mostly waits for the engine. How many there may be is settled before any of them begins: who
was let in is never refused halfway, and who is not is told when to come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.serving.engine import Engine, Limits
from unmask.serving.jobs import Job, Listener
from unmask.serving.requests import Closed, QueueFull

Served = Model | TextModel
_ROWS = 64  # of one call at most, so that the engine never refuses what was let in


class Draining(Closed):
    """The server is about to stop and takes nothing more."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """``ask``: what is wanted of a model · ``listener``: who follows · ``priority``: as of an engine's request."""

    ask: Callable[[Any], Any]
    listener: Listener | None = None
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Started:
    """A call under way."""

    job: Job
    future: Future[Any]


class Service:
    """``name``: what clients call the model · ``limits``: ``live`` and ``waiting`` calls are taken at once. All its methods are safe in any
    thread.
    """

    def __init__(self, model: Served, *, name: str, limits: Limits = Limits()) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.places = limits.live + limits.waiting
        self.refused = self.restarts = 0
        self.draining = False
        self._changed = threading.Condition()
        self._under_way = 0
        self._engine = self._open()
        self._threads = ThreadPoolExecutor(self.places, thread_name_prefix="call")

    def start(self, calls: Sequence[Call]) -> list[Started]:
        """Begin all of them or none. QueueFull, Draining; ValueError for more than there is room for at all."""
        if len(calls) > self.places:
            raise ValueError(f"{len(calls)} at once are more than the {self.places} this server takes; ask for fewer")
        with self._changed:
            if self.draining:
                raise Draining("the server is about to stop and takes nothing more; ask another one")
            engine = self._working()
            if self._under_way + len(calls) > self.places:
                self.refused += len(calls)
                raise QueueFull(self._under_way, max(1.0, engine.retry_after()))
            self._under_way += len(calls)
        return [self._begin(engine, call) for call in calls]

    @property
    def engine(self) -> Engine:
        """The engine at work; a new one where the last one broke."""
        with self._changed:
            return self._working()

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def ready(self) -> bool:
        return not self.draining

    def drain(self, seconds: float) -> bool:
        """Take nothing more, and wait until all is answered; False where that took longer."""
        with self._changed:
            self.draining = True
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    def close(self) -> None:
        """Stop at once; whatever is under way raises Closed."""
        self.draining = True
        self._engine.close()
        self._threads.shutdown()

    def _begin(self, engine: Engine, call: Call) -> Started:
        job = Job(engine, priority=call.priority, listener=call.listener)
        future = self._threads.submit(self._answer, job, call.ask)
        future.add_done_callback(self._ended)
        return Started(job=job, future=future)

    def _answer(self, job: Job, ask: Callable[[Any], Any]) -> Any:
        model = self.model
        if isinstance(model, Model):
            # One memory of pictures: what the engine has looked at needs no second look.
            return ask(Model(replace(model.parts, features=job.engine.features), model.presets, through=job))
        return ask(TextModel(model.parts, through=job))

    def _ended(self, future: Future[Any]) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _open(self) -> Engine:
        # The service counts who comes in; what is in may always go on to its next run.
        limits = replace(self.limits, waiting=self.places * _ROWS)
        return Engine(self.model.parts, limits=limits, clock=time.monotonic).start()

    def _working(self) -> Engine:
        if self._engine.broken and not self.draining:
            self._engine = self._open()
            self.restarts += 1
        return self._engine
