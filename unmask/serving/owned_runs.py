"""Runs that take changes, by name, each for the client that started it.

Public idea: ``OwnedRuns(what="drawing", over=...)``; ``add(name, owner, run)`` and ``find(name, owner)``. Names have 128 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from fastapi import Request

from unmask.serving.errors import NoSuchRun, NotYourRun

R = TypeVar("R")
_MOST_KEPT = 1000  # finished runs whose names are remembered, so that a late change learns why it is refused


class OwnedRuns(Generic[R]):
    """``what``: a word for one of them · ``start``: how a client starts one · ``over(run)``: whether it has ended. Thread-safe."""

    def __init__(self, *, what: str, start: str, over: Callable[[R], bool]) -> None:
        self.what, self.start, self.over = what, start, over
        self._runs: OrderedDict[str, tuple[bytes, R]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, owner: bytes, run: R) -> None:
        with self._lock:
            self._runs[name] = (owner, run)
            over = [known for known, (_, other) in self._runs.items() if self.over(other)]
            for known in over[: max(0, len(over) - _MOST_KEPT)]:
                del self._runs[known]

    def find(self, name: str, owner: bytes) -> R:
        """NoSuchRun, and NotYourRun for another owner."""
        with self._lock:
            found = self._runs.get(name)
        if found is None:
            raise NoSuchRun(f"there is no {self.what} {name[:60]!r} to change; start one with {self.start}")
        if not hmac.compare_digest(found[0], owner):
            raise NotYourRun(f"this {self.what} was started with another API key; use that one")
        return found[1]

    def under_way(self) -> list[R]:
        """Those that have not ended."""
        with self._lock:
            return [run for _, run in self._runs.values() if not self.over(run)]


def run_name(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}-{secrets.token_hex(16)}"


def owner_of(request: Request) -> bytes:
    """Who sends a request: a hash of the API key."""
    return hashlib.sha256(request.headers.get("authorization", "").encode()).digest()
