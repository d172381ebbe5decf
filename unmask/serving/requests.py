"""What goes into the engine and what comes out: a request, a handle on it, its frames, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ClassVar

from torch import Tensor

from unmask.protocols import Task
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence


class QueueFull(RuntimeError):
    """There is no room to wait in. ``retry_after``: seconds after which there should be."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} requests are waiting, which is all there is room for; try again in {retry_after:.1f} s"
        )
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The engine takes no more requests, or stopped before this one was done."""


class Cancelled(RuntimeError):
    """The request was taken back."""


class ForwardFailed(RuntimeError):
    """The model raised on this request, also when it was alone; the cause is attached."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """``task``: one of ``unmask.tasks`` · ``seed``: from which, with the sampler, the answer follows · ``priority``: 0 usual, each 1 more
    is worth twice the share of the device and some places in the queue (-8 to 8).
    """

    task: Task
    sampler: Sampler
    seed: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        if not -8 <= self.priority <= 8:
            raise ValueError(f"a priority is -8 to 8, got {self.priority}")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A task that is built already; its answer is the sequence, decided. What it needs must have been loaded."""

    sequence: Sequence
    needs: ClassVar[frozenset[str]] = frozenset()

    def build(self, tokens: Any) -> Sequence:
        return self.sequence

    def read(self, sequence: Sequence, tokens: Any) -> Sequence:
        return sequence


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A request after step ``number`` (0: before the first) of ``of``. ``ids``, ``masked [L]`` on the CPU: committed, and still a draft
    where True.
    """

    number: int
    of: int
    ids: Tensor
    masked: Tensor


class Handle:
    """A request that was taken. Safe in any thread. ``number``: how many were taken before."""

    def __init__(self, request: Request, number: int, *, watch: bool, cancel: Callable[[Handle], None]) -> None:
        self.request, self.number, self.watched = request, number, watch
        self.cancelled = False
        self.future: Future[Any] = Future()  # for callbacks, and for asyncio.wrap_future
        self.future.set_running_or_notify_cancel()  # so that cancelling it from outside cannot surprise the engine
        self._cancel, self._frames = cancel, SimpleQueue[Frame | None]()

    @property
    def done(self) -> bool:
        return self.future.done()

    @property
    def behind(self) -> bool:
        """Whether more has come since the frame that was taken last."""
        return not self._frames.empty()

    def result(self, timeout: float | None = None) -> Any:
        """What ``task.read`` makes of the answer. Raises what went wrong, Cancelled, or TimeoutError."""
        return self.future.result(timeout)

    def frames(self) -> Iterator[Frame]:
        """Every step as it comes (once, if ``submit`` was told to ``watch``); raises what ``result`` raises when they end."""
        while (frame := self._frames.get()) is not None:
            yield frame
        self.result()

    def cancel(self) -> None:
        """Take it back. Its place is free before the next step; too late for one that is done."""
        self._cancel(self)

    def show(self, frame: Frame) -> None:
        """(The engine's.)"""
        self._frames.put(frame)

    def settle(self, outcome: Any) -> None:
        """(The engine's.) The answer, or an exception."""
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        self._frames.put(None)
