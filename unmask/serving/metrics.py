"""What an engine counts. Public idea: a ``Meter`` is told what happens, and a ``Metrics`` is what it knew at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.tasks.features import Features

_NEWEST = 0.1  # weight of the newest step in the moving average of their seconds


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """``steps``: taken by all requests together, in ``forwards`` of ``rows`` in all (views counted); ``seconds``: that the engine was at
    work · ``occupancy``: rows of those there was room for · ``step_seconds``: from one step of a request to its next, of late ·
    ``feature_*``: pictures that were known, and not; bytes held.
    """

    waiting: int
    live: int
    finished: int
    failed: int
    cancelled: int
    refused: int
    steps: int
    forwards: int
    rows: int
    seconds: float
    occupancy: float
    step_seconds: float
    feature_hits: int
    feature_misses: int
    feature_bytes: int


class Meter:
    """``room``: the most rows of a forward."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.finished = self.failed = self.cancelled = self.refused = 0
        self.steps = self.forwards = self.rows = 0
        self.seconds = self.step_seconds = 0.0

    def forward(self, rows: int) -> None:
        self.forwards += 1
        self.rows += rows

    def step(self, seconds: float) -> None:
        """A request has taken a step, ``seconds`` after its last."""
        newest = _NEWEST if self.steps else 1.0
        self.step_seconds += newest * (seconds - self.step_seconds)
        self.steps += 1

    def snapshot(self, waiting: int, live: int, features: Features) -> Metrics:
        return Metrics(
            waiting=waiting,
            live=live,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            refused=self.refused,
            steps=self.steps,
            forwards=self.forwards,
            rows=self.rows,
            seconds=self.seconds,
            occupancy=self.rows / max(1, self.forwards * self.room),
            step_seconds=self.step_seconds,
            feature_hits=features.hits,
            feature_misses=features.misses,
            feature_bytes=features.bytes,
        )
