"""Talks: streams of pictures and sound that a text and moves drive while they run.

Public idea: ``Talks(model, name="talker").start(face=3, seed=0) -> Talk``; ``talk.change(say="hello", move="<")``, and ``talk.run(emit)``
sends a chunk in each of its intervals until the talk is stopped.

A talk never waits for its driver: without letters it is silent, without moves it stays. A change acts on the next chunk that is begun, so
it is seen and heard after one interval and the time of a chunk at most.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from unmask.json_types import Json
from unmask.serving.delivery import encoded
from unmask.serving.owned_runs import OwnedRuns, run_name
from unmask.serving.requests import QueueFull
from unmask.serving.service import Draining
from unmask.tasks.live import RunOver, TooManyChanges

MOST_WAITING = 2000  # letters and moves of one talk that were sent and not used yet
_SILENCE, _STILL = " ", "."


class Chunk(Protocol):
    """A picture, and the wave of a sound in -1..1."""

    @property
    def picture(self) -> Image.Image: ...
    @property
    def sound(self) -> np.ndarray: ...


@runtime_checkable
class Talker(Protocol):
    """A model of talks. ``faces``: how many it has · ``seconds``: length of a chunk · ``rate``: samples a second · ``moves``: their
    characters.
    """

    faces: int
    seconds: float
    rate: int
    moves: str

    def stream(self, text: Iterable[str], moves: Iterable[str], *, face: int, seed: int) -> Iterator[Chunk]:
        """A chunk for each letter and move, which are asked for when the chunk is begun."""
        ...


class Talk:
    """One stream. ``change`` and ``stop`` may be called in any thread."""

    def __init__(self, model: Talker, *, face: int, seed: int, most_seconds: float) -> None:
        self.model, self.face, self.seed, self.most_seconds = model, face, seed, most_seconds
        self.name = run_name("talk")
        self.count = 0  # changes so far
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._letters, self._moves = deque[tuple[str, int]](), deque[tuple[str, int]]()
        self._used = 0  # the last change that has begun to act

    def change(self, *, say: str = "", move: str = "") -> int:
        """The number of the change. ValueError for another move, RunOver, TooManyChanges."""
        if unknown := [sign for sign in move if sign not in self.model.moves]:
            raise ValueError(f"move: {unknown[0]!r} is not a move; use {' '.join(self.model.moves)}")
        with self._lock:
            if self.over.is_set():
                raise RunOver("the talk is over; start another one")
            if max(len(self._letters) + len(say), len(self._moves) + len(move)) > MOST_WAITING:
                raise TooManyChanges(f"more than {MOST_WAITING} letters or moves are waiting; send fewer at a time")
            self.count += 1
            self._letters.extend((letter, self.count) for letter in say)
            self._moves.extend((sign, self.count) for sign in move)
            return self.count

    @property
    def waiting(self) -> int:
        """Letters that are not spoken yet."""
        return len(self._letters)

    def stop(self) -> None:
        self.over.set()

    def run(self, emit: Callable[[Json], None]) -> None:
        """Send chunks at their times until the talk is stopped or has lasted ``most_seconds``. A late chunk moves those after it."""
        interval, due = self.model.seconds, time.monotonic()
        with torch.inference_mode():
            letters, moves = self._drive(self._letters, _SILENCE), self._drive(self._moves, _STILL)
            chunks = self.model.stream(letters, moves, face=self.face, seed=self.seed)
            for number in range(int(self.most_seconds / interval)):
                if self.over.wait(max(0.0, due - time.monotonic())):
                    break
                due = max(due, time.monotonic()) + interval
                start = time.perf_counter()
                chunk = next(chunks)
                took = 1000 * (time.perf_counter() - start)
                emit(
                    {
                        "type": "unmask.chunk",
                        "number": number,
                        "b64_json": encoded(chunk.picture, "png"),
                        "sound": base64.b64encode((chunk.sound * 32767).astype("<i2").tobytes()).decode(),
                        "change": self._used,
                        "waiting": self.waiting,
                        "milliseconds": round(took, 1),
                    }
                )
        self.over.set()

    def _drive(self, queue: deque[tuple[str, int]], nothing: str) -> Iterator[str]:
        while True:
            try:
                sign, number = queue.popleft()
                self._used = max(self._used, number)
            except IndexError:
                sign = nothing
            yield sign


class Talks:
    """The talks of a server. ``most``: at the same time; every one computes a chunk in each interval. Thread-safe."""

    def __init__(self, model: Talker, *, name: str, most: int = 8) -> None:
        self.model, self.name, self.most = model, name, most
        self.draining = False
        self._lock = threading.Lock()
        self._talks = OwnedRuns[Talk](what="talk", start="POST /v1/talks", over=lambda talk: talk.over.is_set())
        self._futures: set[Future[None]] = set()
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="talk")

    @property
    def under_way(self) -> int:
        return len(self._talks.under_way())

    def start(
        self, emit: Callable[[Json | BaseException | None], None], *, owner: bytes, face: int, seed: int, seconds: float
    ) -> Talk:
        """A talk that runs; ``emit`` gets its chunks, then None or the exception that ended it. Draining, QueueFull, and ValueError for a
        face that there is none of.
        """
        if not 0 <= face < self.model.faces:
            raise ValueError(f"face: there is no face {face}; choose from 0 to {self.model.faces - 1}")
        talk = Talk(self.model, face=face, seed=seed, most_seconds=seconds)
        with self._lock:
            if self.draining:
                raise Draining("the server is about to stop and takes nothing more; ask another one")
            if (now := self.under_way) >= self.most:
                raise QueueFull(now, self.model.seconds * 4)
            self._talks.add(talk.name, owner, talk)
            future = self._threads.submit(self._run, talk, emit)
            self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return talk

    def find(self, name: str, owner: bytes) -> Talk:
        """NoSuchRun, and NotYourRun for another owner."""
        return self._talks.find(name, owner)

    def drain(self, seconds: float) -> bool:
        """End all talks and take no more: they have no end of their own. False if that took longer than ``seconds``."""
        self._stop()
        self._threads.shutdown(wait=False)
        return not wait(set(self._futures), seconds).not_done

    def close(self) -> None:
        self._stop()
        self._threads.shutdown()

    def _stop(self) -> None:
        with self._lock:
            self.draining = True
            for talk in self._talks.under_way():
                talk.stop()

    def _run(self, talk: Talk, emit: Callable[[Json | BaseException | None], None]) -> None:
        try:
            talk.run(emit)
            emit(None)
        except Exception as error:
            emit(error)
        finally:
            talk.stop()
