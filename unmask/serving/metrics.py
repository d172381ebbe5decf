"""What an engine counts. Public idea: a ``Meter`` accumulates counters, and ``Meter.snapshot() -> Metrics`` copies them."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.serving.places import Places
from unmask.serving.requests import Cancelled
from unmask.tasks.features import Features

_NEWEST = 0.1  # weight of the newest step in the moving average of step_seconds


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """``queued``, ``running``, ``parked``: requests at this moment; other integers count from the start · ``steps``: of all requests, in
    ``forwards`` with ``rows`` in total (guidance views counted) · ``seconds``: spent in ticks · ``occupancy``: rows per forward, as a share
    of the limit · ``step_seconds``: moving average, from one step of a request to its next · ``feature_*``: hits and misses of the cache of
    picture features, and its size in bytes.
    """

    queued: int
    running: int
    parked: int
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
    """``most_rows``: the limit on the rows of a forward."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self.finished = self.failed = self.cancelled = self.refused = 0
        self.steps = self.forwards = self.rows = 0
        self.seconds = self.step_seconds = 0.0

    def forward(self, rows: int) -> None:
        self.forwards += 1
        self.rows += rows

    def step(self, seconds: float) -> None:
        """A request has taken a step, ``seconds`` after its previous one."""
        newest = _NEWEST if self.steps else 1.0
        self.step_seconds += newest * (seconds - self.step_seconds)
        self.steps += 1

    def ended(self, outcome: object) -> None:
        """A request has ended with a result or an exception."""
        if isinstance(outcome, Cancelled):
            self.cancelled += 1
        elif isinstance(outcome, BaseException):
            self.failed += 1
        else:
            self.finished += 1

    def snapshot(self, places: Places, features: Features) -> Metrics:
        return Metrics(
            queued=places.queued,
            running=places.running,
            parked=places.parked,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            refused=self.refused,
            steps=self.steps,
            forwards=self.forwards,
            rows=self.rows,
            seconds=self.seconds,
            occupancy=self.rows / max(1, self.forwards * self.most_rows),
            step_seconds=self.step_seconds,
            feature_hits=features.hits,
            feature_misses=features.misses,
            feature_bytes=features.bytes,
        )
