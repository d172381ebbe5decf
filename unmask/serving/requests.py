"""The engine's interface: a request, its handle, and the errors that end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from unmask.protocols import Denoiser
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.features import VisionEncoder
from unmask.tasks.running import StepEvent


class Served(Denoiser, VisionEncoder, Protocol):
    """A network that is served: any denoiser. ``features`` is called for requests with pictures only."""


class QueueFull(RuntimeError):
    """The queue is full. ``retry_after``: seconds after which it should have a free place."""

    def __init__(self, queued: int, retry_after: float) -> None:
        super().__init__(f"the queue is full with {queued} requests; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The engine accepts no more requests, or stopped before this one finished."""


class Cancelled(RuntimeError):
    """The request was cancelled."""


class ForwardFailed(RuntimeError):
    """The model raised on this request, also in a forward of its own; the cause is attached."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to unmask. The result depends on ``sequence``, ``sampler`` and ``seed`` alone.

    Load the parts of the model that the sequence needs before submitting it · ``priority``: -8 to 8, 0 by default; each level
    doubles the share of the device and halves what the cost counts in the queue · ``net``: the network, with the weights of the engine's
    own and adapters beside them; None: the engine's own.
    """

    sequence: Sequence
    sampler: Sampler
    seed: int = 0
    priority: int = 0
    net: Served | None = None

    def __post_init__(self) -> None:
        if not -8 <= self.priority <= 8:
            raise ValueError(f"the priority must be -8 to 8, got {self.priority}")


class Handle:
    """The caller's handle on a request. Thread-safe.

    ``number``: requests submitted before · ``row``: the row in its step events; None: no step events ·
    ``future``: the outcome, for callbacks and ``asyncio.wrap_future``.
    """

    def __init__(self, request: Request, number: int, *, row: int | None, cancel: Callable[[Handle], None]) -> None:
        self.request, self.number, self.row = request, number, row
        self.cancelled = False
        self.future: Future[Sequence] = Future()
        self.future.set_running_or_notify_cancel()  # from here on only the engine can end it
        self._cancel, self._events = cancel, SimpleQueue[StepEvent | None]()

    @property
    def done(self) -> bool:
        return self.future.done()

    @property
    def behind(self) -> bool:
        """Whether newer step events are waiting to be read."""
        return not self._events.empty()

    def result(self, timeout: float | None = None) -> Sequence:
        """The sequence without a masked token that is writable. Raises the error of the request, Cancelled, or TimeoutError."""
        return self.future.result(timeout)

    def events(self) -> Iterator[StepEvent]:
        """Step events, each once, if ``submit`` got a ``row``. After the last one, raises the error that ``result`` raises."""
        while (event := self._events.get()) is not None:
            yield event
        self.result()

    def cancel(self) -> None:
        """End the request with Cancelled. Its place is free before the next step. No effect on a finished request."""
        self._cancel(self)

    def publish(self, event: StepEvent) -> None:
        """For the engine: add a step event."""
        self._events.put(event)

    def settle(self, outcome: Sequence | BaseException) -> None:
        """For the engine: set the finished sequence or the error."""
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        self._events.put(None)
