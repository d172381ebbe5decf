"""What goes into the engine and what comes out: a request, a handle on it, and the errors it may end with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.running import StepEvent


class QueueFull(RuntimeError):
    """The queue is full. ``retry_after``: seconds after which it should have a free place."""

    def __init__(self, queued: int, retry_after: float) -> None:
        super().__init__(
            f"{queued} requests are waiting, which is all there is room for; try again in {retry_after:.1f} s"
        )
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The engine takes no more requests, or stopped before this one was done."""


class Cancelled(RuntimeError):
    """The request was cancelled."""


class ForwardFailed(RuntimeError):
    """The model raised on this request, also in a forward of its own; the cause is attached."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to unmask. The result depends on ``sequence``, ``sampler`` and ``seed`` alone.

    The parts of the model that the sequence needs must be loaded before it is submitted · ``priority``: -8 to 8, 0 by default; each level
    doubles the share of the device and passes some places of the queue.
    """

    sequence: Sequence
    sampler: Sampler
    seed: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        if not -8 <= self.priority <= 8:
            raise ValueError(f"a priority is -8 to 8, got {self.priority}")


class Handle:
    """The caller's hold on a request. Safe in any thread.

    ``number``: how many requests were submitted before · ``row``: what its step events carry; None: it has no step events · ``future``: the
    outcome, for callbacks and ``asyncio.wrap_future``.
    """

    def __init__(self, request: Request, number: int, *, row: int | None, cancel: Callable[[Handle], None]) -> None:
        self.request, self.number, self.row = request, number, row
        self.cancelled = False
        self.future: Future[Sequence] = Future()
        self.future.set_running_or_notify_cancel()  # from now on only the engine can end it
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
        """Every step as it is taken, once, if ``submit`` got a ``row``. After the last one, raises what ``result`` raises."""
        while (event := self._events.get()) is not None:
            yield event
        self.result()

    def cancel(self) -> None:
        """End the request with Cancelled. Its place is free before the next step. No effect once it is done."""
        self._cancel(self)

    def publish(self, event: StepEvent) -> None:
        """For the engine: one more step was taken."""
        self._events.put(event)

    def settle(self, outcome: Sequence | BaseException) -> None:
        """For the engine: the finished sequence, or the error."""
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        self._events.put(None)
