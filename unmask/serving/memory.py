"""The C library's allocator in a server of many threads (glibc; elsewhere nothing happens).

Public idea: ``share_arenas()`` once, before threads start, and ``give_back()`` when the server has nothing to do. Otherwise each of up to
eight arenas per core keeps the most that a thread of it ever used, and a server's memory follows the number of its calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable

_M_ARENA_MAX = -8  # of malloc.h
_ARENAS = 2
_EVERY = 10.0  # seconds between two times that memory is given back: it takes some milliseconds


def share_arenas() -> None:
    """At most two arenas, unless ``MALLOC_ARENA_MAX`` says otherwise."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return free pages to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Idle:
    """``work`` when there is nothing to do, at most every ``seconds``. Safe in any thread."""

    def __init__(
        self,
        work: Callable[[], object] = give_back,
        *,
        seconds: float = _EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work, self.seconds, self.clock = work, seconds, clock
        self._last, self._lock = -float("inf"), threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if self.clock() - self._last < self.seconds:
                return
            self._last = self.clock()
        self.work()
