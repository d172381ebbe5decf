"""Soak test: mixed requests, evenly spread over hours. Do the server's memory, descriptors or threads grow, and is an answer wrong?

    python bench/serving_soak.py --requests 10000 --minutes 240 --threads 1 --samples soak.jsonl --record
    python bench/serving_soak.py --requests 40 --minutes 1 --every 2

The requests come in a steady stream, about a quarter of what a core can answer, so that the test can run beside other work. Where it gets
too little of the processor for that, it takes longer. Every answer is compared with that of the model in this process. ``--samples`` is
written while the test runs: seconds, resident bytes, open descriptors, threads, requests, and wrong or lost answers so far. Exits with 1
if memory, descriptors or threads grew, or an answer was wrong or lost.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clients import Outcome
from served import Hosted, answered, finish, mixed, opened, options
from serving_load import figures, growth, loaded

from unmask.evaluation.history import Line

_MEMORY = 0.10  # largest growth that counts as none
_FEW = 2  # descriptors or threads more than after the warm-up that count as none
_WARM = 0.3  # share of the time in which all of them may still grow


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server at one moment. ``wrong``: answers that differ or did not come, so far."""

    seconds: float
    bytes: int
    files: int
    threads: int
    requests: int
    wrong: int


@dataclass
class Watch:
    """Samples of a server, taken by a thread and written to ``path`` as they come."""

    server: Hosted
    path: Path | None
    samples: list[Sample] = field(default_factory=list)
    requests: int = 0
    wrong: int = 0

    def note(self, outcome: Outcome) -> None:
        self.requests += 1
        if not outcome.right and outcome.status != 429:
            self.wrong += 1
            print(json.dumps(asdict(outcome)), file=sys.stderr, flush=True)  # the end may be hours away

    def watch(self, every: float, end: threading.Event) -> None:
        """Take a sample every that many seconds, until ``end``."""
        began, server = time.monotonic(), self.server
        while not end.wait(every):
            sample = Sample(
                seconds=time.monotonic() - began,
                bytes=server.memory,
                files=server.files,
                threads=server.threads,
                requests=self.requests,
                wrong=self.wrong,
            )
            self.samples.append(sample)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(asdict(sample)) + "\n")


def counts(samples: Sequence[Sample], name: str) -> tuple[int, int]:
    """The most descriptors or threads in the fifth after the warm-up, and in the last fifth."""
    end = samples[-1].seconds
    early = [getattr(s, name) for s in samples if _WARM <= s.seconds / end <= _WARM + 0.2]
    late = [getattr(s, name) for s in samples if s.seconds / end >= 0.8]
    return max(early or [getattr(samples[0], name)]), max(late)


def growths(samples: Sequence[Sample]) -> tuple[list[Line], list[str]]:
    """Lines for memory, descriptors and threads, and a message for each that grew."""
    share, first, last = growth([(s.seconds, s.bytes) for s in samples])
    more = {"warm_mb": first / 1e6, "end_mb": last / 1e6, "most_mb": max(s.bytes for s in samples) / 1e6}
    lines = [Line(name="serving.soak.memory_growth", value=share, unit="share", more=more)]
    bad = [f"memory changed by {share:.1%} after the warm-up"] if abs(share) > _MEMORY else []
    for name in ("files", "threads"):
        early, late = counts(samples, name)
        more = {"warm": early, "end": late, "median": statistics.median(getattr(s, name) for s in samples)}
        lines.append(Line(name=f"serving.soak.{name}_growth", value=late - early, unit=name, more=more))
        bad += [f"{name} grew from {early} to {late}"] if late > early + _FEW else []
    return lines, bad


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="in total")
    parser.add_argument("--minutes", type=float, default=240.0, help="over which they are spread")
    parser.add_argument("--clients", type=int, default=16, help="clients at the same time")
    parser.add_argument("--processes", type=int, default=1, help="processes that the clients run in")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--samples", type=Path, help="file to write the samples to, while it runs")
    parser.add_argument("--each", type=int, default=8, help="jobs of each kind, with different seeds")
    parser.add_argument("--steps", type=int, default=8, help="steps of a picture")
    given = parser.parse_args()
    if given.clients < 1 or given.requests < given.clients:
        parser.error(f"{given.requests} requests cannot come from {given.clients} clients; give more --requests")
    if given.minutes * 60 < 2 * given.every:
        parser.error(f"{given.minutes} minutes have no two samples; give a lower --every")
    jobs = answered(opened(given.model, given.threads), mixed(given.each, given.steps))
    with Hosted(given.model, threads=given.threads) as server:
        watch, end = Watch(server, given.samples), threading.Event()
        watcher = threading.Thread(target=watch.watch, args=[given.every, end])
        watcher.start()
        each = -(-given.requests // given.clients)
        pace = ["--most", str(each), "--every", str(given.minutes * 60 / each)]
        try:
            outcomes, memory = loaded(server, jobs, given, pace, watch.note)
        finally:
            end.set()
            watcher.join()
        server.idle()
        log = server.logged()
    finish(given, *told(watch, outcomes, memory, log))


def told(
    watch: Watch, outcomes: list[Outcome], memory: list[tuple[float, int]], log: str
) -> tuple[list[Line], list[str]]:
    """The figures of the load test under this test's name, with those of the samples instead of its memory."""
    kept = ("lost", "twice", "wrong", "tracebacks", "answers")
    lines, bad = figures(outcomes, memory, log)
    soak = [
        Line(name=f"serving.soak.{name}", value=line.value, unit=line.unit, more=line.more)
        for line in lines
        if (name := line.name.removeprefix("serving.load.")) in kept
    ]
    grown, worse = growths(watch.samples)
    return soak + grown, [one for one in bad if not one.startswith("memory ")] + worse


if __name__ == "__main__":
    main()
