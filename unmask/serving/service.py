"""Admission control and one worker thread per call.

Public idea: ``Service(model, name="mini").start([Call(ask=lambda m: m.generate(..))])``.

The worker thread of a call mostly waits for the engine. The number of calls is limited when they start, not later: a call that was
admitted is never refused halfway, and one that was refused learns when to retry.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.serving import requests
from unmask.serving.codec_threads import CodecThreads
from unmask.serving.engine import Engine, Limits
from unmask.serving.jobs import Job, Listener
from unmask.serving.memory import Seldom
from unmask.serving.picture_reader import PictureReader
from unmask.serving.requests import Closed, QueueFull
from unmask.tasks.live import Live

T = TypeVar("T")
Served = Model | TextModel
_ROWS = 64  # of one call at most, so that the engine never refuses an admitted call


class Draining(Closed):
    """The server is shutting down and takes no more calls."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """``ask``: the call of a model · ``listener``: follows its steps · ``priority``: as of an engine's request · ``lora``: the name of the
    adapter of the model; None: the model alone · ``live``: takes changes of the drawing.
    """

    ask: Callable[[Any], T]
    listener: Listener | None = None
    priority: int = 0
    lora: str | None = None
    live: Live | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Generic[T]):
    """A call in progress."""

    job: Job
    future: Future[T]


class Service:
    """``name``: what clients call the model · ``limits``: at most ``running + queued`` calls at the same time · ``adapted``: the model with
    each of the adapters that calls may name (``pipeline.adapting.with_adapters``) · ``pictures``: decodes those of clients ·
    ``image_output``: where chats have their images, images or markdown, unless a request says so itself. All methods are thread-safe.
    """

    def __init__(
        self,
        model: Served,
        *,
        name: str,
        limits: Limits = Limits(),
        adapted: Mapping[str, Served] | None = None,
        pictures: PictureReader | None = None,
        image_output: str = "images",
    ) -> None:
        self.model, self.name, self.limits, self.adapted = model, name, limits, dict(adapted or {})
        self.image_output = image_output
        self.pictures = pictures or PictureReader()
        self.places = limits.running + limits.queued
        self.refused = self.restarts = 0
        self.draining = False
        self._changed = threading.Condition()
        self._under_way = 0
        self._lives = weakref.WeakSet[Live]()
        self._engine = self._open()
        self._threads = ThreadPoolExecutor(self.places, thread_name_prefix="call")
        self._codecs, self._give_back = CodecThreads(), Seldom()

    def start(self, calls: Sequence[Call[T]]) -> list[Started[T]]:
        """Start all calls or none. Raises QueueFull, Draining, or ValueError for more calls than the server takes at all and for an adapter
        that it does not have.
        """
        if unknown := [call.lora for call in calls if call.lora is not None and call.lora not in self.adapted]:
            known = f"the adapters are {', '.join(self.adapted)}" if self.adapted else "this server has none"
            raise ValueError(f"unmask.lora: no adapter is called {unknown[0][:100]!r}; {known}")
        if len(calls) > self.places:
            raise ValueError(f"{len(calls)} at once are more than the {self.places} this server takes; ask for fewer")
        with self._changed:
            if self.draining:
                raise Draining("the server is about to stop and takes nothing more; ask another one")
            engine = self._working()
            if self._under_way + len(calls) > self._open_to(len(calls)):
                self.refused += len(calls)
                raise QueueFull(self._under_way, max(1.0, engine.retry_after()))
            self._under_way += len(calls)
        return [self._begin(engine, call) for call in calls]

    def _open_to(self, calls: int) -> int:
        """The places that a request of so many calls may fill: one of several leaves a fifth of them to others, if it fits."""
        return self.places if calls == 1 else max(calls, self.places - self.places // 5)

    @property
    def engine(self) -> Engine:
        """The current engine; a new one if the last one broke."""
        with self._changed:
            return self._working()

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def ready(self) -> bool:
        return not self.draining

    def drain(self, seconds: float) -> bool:
        """Take no more calls and wait for those in progress. False if that took longer than ``seconds``."""
        with self._changed:
            self.draining = True
            lives = list(self._lives)
        for live in lives:  # they wait for nobody's changes
            live.finish()
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    def close(self) -> None:
        """Stop at once. Calls in progress raise Closed."""
        self.draining = True
        for live in list(self._lives):
            live.finish()
        self._engine.close()
        self._threads.shutdown()
        self._codecs.close()
        self._give_back.close()

    def _begin(self, engine: Engine, call: Call[T]) -> Started[T]:
        model = self.model if call.lora is None else self.adapted[call.lora]
        job = Job(engine, priority=call.priority, net=_net(model), listener=call.listener, live=call.live)
        if call.live:
            self._lives.add(call.live)
        future = self._threads.submit(self._answer, job, model, call.ask)
        future.add_done_callback(self._ended)
        return Started(job=job, future=future)

    def _answer(self, job: Job, model: Served, ask: Callable[[Any], T]) -> T:
        if isinstance(model, Model):
            # One cache of picture features: what the engine has encoded is not encoded again.
            codec = self._codecs.of(model.parts.vq)
            parts = replace(model.parts, features=job.engine.features, threaded_codec=codec)
            return ask(Model(parts, model.presets, executor=job))
        return ask(TextModel(model.parts, executor=job, change=model.change, fast=model.fast))

    def _ended(self, future: Future[T]) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
        self._give_back()

    def _open(self) -> Engine:
        # The service limits the calls; an admitted call can always go on to its next run.
        limits = replace(self.limits, queued=self.places * _ROWS)
        return Engine(_net(self.model), device=self.model.device, limits=limits, clock=time.monotonic).start()

    def _working(self) -> Engine:
        if self._engine.broken and not self.draining:
            self._engine = self._open()
            self.restarts += 1
        return self._engine


def _net(model: Served) -> requests.Served:
    return cast("requests.Served", model.parts.net)  # a text model has no features, and no request with pictures
