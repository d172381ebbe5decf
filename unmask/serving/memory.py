"""The C library's allocator in a server of many threads (glibc; elsewhere nothing happens).

Public idea: ``share_arenas()`` once, before threads start, and ``give_back()`` after calls, now and then. Otherwise each of up to
eight arenas per core keeps the most that a thread of it ever used, and a server's memory follows the number of its calls. A server that is
never idle must give back too: in a soak test its memory rose by 40 % in busy minutes, and fell to the same 989 MB whenever no call was in
progress.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable

# Parameters of malloc.h, and their values. Pillow allocates blocks of up to 16 MiB: from half of
# that size on, memory is returned as soon as it is freed.
_ARENAS = (-8, 2)  # M_ARENA_MAX
_MAPPED = (-3, 2**23)  # M_MMAP_THRESHOLD
_KEPT = (-1, 2**26)  # M_TRIM_THRESHOLD: of free bytes at the end of an arena
_EVERY = 20.0  # seconds between two times that memory is given back: for a gigabyte it takes 0.1 s of a CPU


def share_arenas() -> None:
    """At most two arenas, and large blocks outside them. Where the user has set a variable of the allocator, nothing is changed."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (_ARENAS, _MAPPED, _KEPT):
            mallopt(parameter, value)


def give_back() -> None:
    """Return free pages to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Seldom:
    """``work``, at most every ``seconds``; what comes too early is done later. Safe in any thread."""

    def __init__(
        self,
        work: Callable[[], object] = give_back,
        *,
        seconds: float = _EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work, self.seconds, self.clock = work, seconds, clock
        self._last, self._lock = -float("inf"), threading.Lock()
        self._later: threading.Timer | None = None

    def __call__(self) -> None:
        with self._lock:
            early = self._last + self.seconds - self.clock()
            if early > 0:
                self._after(early)
                return
            self._last = self.clock()
        self.work()

    def close(self) -> None:
        """Leave what would be done later."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()

    def _after(self, seconds: float) -> None:
        if self._later is None or self._later.finished.is_set():
            self._later = threading.Timer(seconds, self)
            self._later.daemon = True
            self._later.start()
