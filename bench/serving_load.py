"""Load test: many clients for some minutes. Is a request lost, answered twice or wrongly, and does the server's memory grow?

    python bench/serving_load.py --minutes 5 --threads 2 --record
    python bench/serving_load.py --minutes 0.1 --processes 2 --clients 4

Clients are separate processes with several threads each. Every thread sends one job of a random kind after another. There are more clients
than the server has places, so some get a 429 and retry after Retry-After; that does not count as lost. Every answer is compared with that
of the model in this process, for the same request and seed. Exits with 1 if a request is lost, answered twice or wrong, or if memory grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from clients import Job, Outcome
from rich.progress import Progress
from served import Hosted, answered, finish, mixed, opened, options, percentile, ticking, tracebacks

from unmask.evaluation.history import Line

_WARM = 0.3  # share of the time in which memory may still grow
_GROWTH = 0.05  # largest growth that counts as none
_LONG = 60.0  # seconds; a shorter run is all warm-up


def loaded(
    server: Hosted,
    jobs: list[Job],
    given: argparse.Namespace,
    more: Sequence[str] = (),
    note: Callable[[Outcome], object] = lambda outcome: None,
) -> tuple[list[Outcome], list[tuple[float, int]]]:
    """All outcomes, and the server's memory: (seconds, resident bytes), once a second.

    ``more``: options of clients.py · ``note`` gets each outcome when it comes.
    """
    outcomes: list[Outcome] = []
    memory: list[tuple[float, int]] = []
    began = time.monotonic()
    with TemporaryDirectory() as folder, Progress() as progress:
        file = Path(folder) / "jobs.json"
        file.write_text(json.dumps([asdict(job) for job in jobs]))
        seconds = str(given.minutes * 60)
        command = [sys.executable, str(Path(__file__).with_name("clients.py")), str(file), server.url]
        command += ["--threads", str(given.clients // given.processes), "--seconds", seconds, *more]
        clients = [
            subprocess.Popen([*command, "--name", f"load{i}"], stdout=subprocess.PIPE, text=True)
            for i in range(given.processes)
        ]
        tick = ticking(progress, "answers", None)

        def read(client: subprocess.Popen[str]) -> None:
            assert client.stdout
            for line in client.stdout:
                outcomes.append(Outcome(**json.loads(line)))
                note(outcomes[-1])
                tick()

        readers = [threading.Thread(target=read, args=[client]) for client in clients]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            memory.append((time.monotonic() - began, server.memory))
            readers[0].join(1.0) if readers[0].is_alive() else time.sleep(1.0)
        if any(client.wait() for client in clients):
            raise RuntimeError("a client process failed; see its error above")
    return outcomes, memory


def growth(memory: list[tuple[float, int]]) -> tuple[float, int, int]:
    """The relative growth from just after the warm-up to the end, and the median bytes of each of these two windows."""
    end = memory[-1][0]
    early = [size for at, size in memory if _WARM <= at / end <= _WARM + 0.2] or [memory[0][1]]
    late = [size for at, size in memory if at / end >= 0.8]
    first, last = int(statistics.median(early)), int(statistics.median(late))
    return last / first - 1, first, last


def twice(log: str, sent: int, outcomes: list[Outcome]) -> int:
    """How many answers were sent more than once, by the server's log and by the clients' outcomes."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    logged = Counter(line["id"] for line in lines if line["event"] == "request" and line["id"].startswith("load"))
    came = Counter(outcome.name for outcome in outcomes)
    return sum(n - 1 for n in logged.values()) + sum(n - 1 for n in came.values()) + max(0, len(logged) - sent)


def figures(outcomes: list[Outcome], memory: list[tuple[float, int]], log: str) -> tuple[list[Line], list[str]]:
    """The figures, and a message for each that is not as required."""
    answers = [o for o in outcomes if o.status == 200]
    again = sum(o.status == 429 for o in outcomes)
    lost = [o for o in outcomes if o.status not in (200, 429)]
    wrong = [o for o in answers if not o.right]
    grew, first, last = growth(memory)
    about = {"answers": len(answers), "told_429": again, "seconds": memory[-1][0]}
    lines = [
        Line(name="serving.load.lost", value=len(lost), unit="requests", more=about),
        Line(name="serving.load.twice", value=twice(log, len(outcomes), outcomes), unit="requests", more=about),
        Line(name="serving.load.wrong", value=len(wrong), unit="answers", more=about),
        Line(name="serving.load.tracebacks", value=tracebacks(log), unit="in the log"),
        Line(name="serving.load.answers", value=len(answers) / memory[-1][0], unit="1/s", more=about),
        Line(
            name="serving.load.memory_growth",
            value=grew,
            unit="share",
            more={"warm_mb": first / 1e6, "end_mb": last / 1e6, "most_mb": max(size for _, size in memory) / 1e6},
        ),
    ]
    bad = [f"{line.name} is {line.value:.0f}" for line in lines[:4] if line.value]
    bad += [f"{o.kind} {o.name}: {o.status} {o.trouble}" for o in [*lost, *wrong][:5]]
    if grew > _GROWTH and memory[-1][0] >= _LONG:
        bad.append(f"memory grew by {grew:.1%} after the warm-up")
    for kind in sorted({o.kind for o in answers}):
        took = [o.seconds for o in answers if o.kind == kind]
        more = {"p50": percentile(took, 0.5), "p95": percentile(took, 0.95), "n": len(took)}
        lines.append(Line(name=f"serving.load.seconds.{kind}", value=more["p50"], unit="s", more=more))
    return lines, bad if answers else [*bad, "nothing was answered"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="duration; after it, clients send no new request")
    parser.add_argument("--clients", type=int, default=64, help="clients at the same time")
    parser.add_argument("--processes", type=int, default=4, help="processes that the clients run in")
    parser.add_argument(
        "--places",
        type=int,
        default=56,
        help="calls that the server takes at once; with fewer than clients, some get a 429",
    )
    parser.add_argument("--each", type=int, default=4, help="jobs of each kind, with different seeds")
    parser.add_argument("--steps", type=int, default=8, help="steps of a picture")
    given = parser.parse_args()
    if not 1 <= given.processes <= given.clients:
        parser.error(
            f"{given.clients} clients are fewer than {given.processes} processes; give more --clients or fewer --processes"
        )
    if given.places < 2:
        parser.error("one running and one queued call need two places; give --places 2 or more")
    jobs = answered(opened(given.model, given.threads), mixed(given.each, given.steps))
    running = min(32, given.places - 1)
    limits = ["--max-live", str(running), "--max-waiting", str(given.places - running)]
    with Hosted(given.model, *limits, threads=given.threads) as server:
        outcomes, memory = loaded(server, jobs, given)
        server.idle()
        log = server.logged()
    finish(given, *figures(outcomes, memory, log))


if __name__ == "__main__":
    main()
