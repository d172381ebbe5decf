"""Fault test: clients that leave at any moment, an engine that dies, a server that shuts down. Does anything leak?

    python bench/serving_faults.py --kills 1000 --threads 2 --record
    python bench/serving_faults.py --kills 20 --deaths 2 --stops 1

Clients leave before, during and after their answer: they close the connection, reset it, stop in the middle of their request, or are killed
as a process. Afterwards every place must be free, no socket open, and answers must be those of the model by itself. Then the engine's
thread is made to die in one of the three places where it uses the model: all calls in progress must get an error, and the next request
must be answered. Last, SIGTERM: calls in progress finish, new ones get a 503, the exit code is 0. Exits with 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import io
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from clients import Job, Outcome, ask, connect, send, wire
from rich.progress import Progress
from served import Hosted, answered, finish, mixed, opened, options, ticking, tracebacks

from unmask.evaluation.history import Line
from unmask.pipeline.model import Model
from unmask.serving.engine import Limits
from unmask.serving.logs import log_to
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

_LONG = 48  # steps of a picture, so that calls are still in progress at SIGTERM
_REFUSES = 30.0  # seconds after SIGTERM within which a server must refuse new requests
WAYS = ("close", "reset", "half", "killed")
_ALONE = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
time.sleep(99)
"""
Found = tuple[list[Line], list[str]]


def leave(url: str, job: Job, way: str, rng: random.Random) -> None:
    """Send a request and disconnect after at most 1.5 s, which may be long enough for the whole answer."""
    patience = rng.random() ** 2 * 1.5
    if way == "killed":
        _killed(url, job, patience)
        return
    connection = connect(url, 60)
    try:
        if way == "half":
            data, kind = wire(job)
            connection.putrequest("POST", job.path)
            connection.putheader("content-type", kind)
            connection.putheader("content-length", str(len(data)))
            connection.endheaders(data[: rng.randrange(len(data))])
        else:
            send(connection, job, f"leaver-{rng.getrandbits(32)}")
            taken = connection.sock
            taken.settimeout(patience)
            _read(taken, rng.randrange(1, 40), time.monotonic() + patience)
            if way == "reset":
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # the server may have answered and closed first
    finally:
        connection.close()


def _read(taken: socket.socket, pieces: int, until: float) -> None:
    """Some pieces of an answer. A stream sends about one piece a step."""
    for _ in range(pieces):
        if time.monotonic() > until or not taken.recv(65536):
            return


def _killed(url: str, job: Job, seconds: float) -> None:
    """The same, from a process that is then killed."""
    data, kind = wire(job)
    head = f"POST {job.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _ALONE, url.rpartition(":")[2]], stdin=subprocess.PIPE
    ) as client:
        assert client.stdin
        client.stdin.write(head.encode() + data)
        client.stdin.close()
        time.sleep(seconds)
        client.kill()


def leaving(given: argparse.Namespace, jobs: list[Job]) -> Found:
    """``kills`` clients leave, ``clients`` at a time."""
    with Hosted(given.model, "--max-waiting", str(4 * given.clients), threads=given.threads) as server:
        for job in jobs:
            _right(server.url, job)
        server.idle()
        before, ways = server.files, Counter[str]()
        with Progress() as progress, ThreadPoolExecutor(given.clients) as pool:
            tick = ticking(progress, "clients that leave", given.kills)

            def one(number: int) -> None:
                rng = random.Random(number)
                way = "killed" if number % 20 == 0 else rng.choice(WAYS[:3])
                ways[way] += 1
                leave(server.url, rng.choice(jobs), way, rng)
                tick()

            list(pool.map(one, range(given.kills)))
        freed = server.idle()
        wrong = [job.kind for job in jobs if not _right(server.url, job).right]
        server.idle()
        after, metrics, log = server.files, server.metrics, server.logged()
        code = server.stop()
    more = {**ways, "runs_cancelled": metrics["unmask_engine_cancelled_total"], "sockets": after - before}
    lines = [
        Line(
            name="serving.faults.places_left",
            value=metrics["unmask_calls"] + metrics["unmask_engine_live"],
            unit="places",
        ),
        Line(name="serving.faults.clients_left", value=given.kills, unit="clients", more=more),
        Line(name="serving.faults.freed", value=freed, unit="s"),
        Line(name="serving.faults.wrong_after", value=len(wrong), unit="answers", more={"of": len(jobs)}),
        Line(name="serving.faults.tracebacks", value=tracebacks(log), unit="in the log"),
    ]
    bad = [f"{line.name} is {line.value:.0f}" for line in (lines[0], lines[3], lines[4]) if line.value]
    bad += [f"{after - before} sockets stayed open"] if after > before + 2 else []
    return lines, bad + ([f"the server ended with {code}"] if code else [])


def _right(url: str, job: Job) -> Outcome:
    return ask(connect(url), job, f"check-{random.getrandbits(40)}")


class Mortal:
    """A network that ends the thread that uses it, once, where it is armed to: enter, forward or read."""

    def __init__(self, net: Any) -> None:
        self.net, self.armed = net, ""

    def _die(self, place: str) -> None:
        if self.armed == place:
            self.armed = ""
            raise SystemExit(
                "made to die"
            )  # not an Exception, so the engine does not treat it as an error of one request

    @property
    def embed(self) -> Any:
        self._die("enter")
        return self.net.embed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._die("forward")
        prediction = self.net(*given, **named)
        self._die("read")
        return prediction


def dying(given: argparse.Namespace, model: Model, jobs: list[Job]) -> Found:
    """``deaths`` of the engine, each with one call of every job in progress."""
    net: Any = Mortal(model.parts.net)
    silence = log_to(io.StringIO())  # the log would be full of intended errors
    service = Service(
        Model(replace(model.parts, net=net, weights=None), model.presets), name="mortal", limits=Limits(running=64)
    )
    statuses, bad, recovered = Counter[str](), [], []
    with Server(service, listen("127.0.0.1", 0)) as server, Progress() as progress:
        tick = ticking(progress, "deaths of the engine", given.deaths)
        for number in range(given.deaths):
            with ThreadPoolExecutor(len(jobs)) as pool:
                asked = [pool.submit(_right, server.url, job) for job in jobs]
                time.sleep(random.Random(number).random() * 0.5)
                net.armed = ("enter", "forward", "read")[number % 3]
                outcomes = [one.result() for one in asked]
            net.armed = ""
            statuses.update(f"{o.status} {'right' if o.right else o.trouble[:80]}" for o in outcomes)
            bad += [f"in flight: {o}" for o in outcomes if not _fair(o)]
            began = time.monotonic()
            if not _right(server.url, jobs[number % len(jobs)]).right:
                bad.append("the answer after a death is not right")
            recovered.append(time.monotonic() - began)
            tick()
        restarts = service.restarts
        left = service.under_way
    silence()
    if left:
        bad.append(f"{left} calls stayed")
    more = {"restarts": restarts, **statuses}
    return [
        Line(name="serving.faults.engine_deaths", value=given.deaths, unit="deaths", more=more),
        Line(name="serving.faults.answer_after_death", value=statistics.median(recovered), unit="s"),
    ], bad


def _fair(outcome: Outcome) -> bool:
    """The right answer, or the error that says that the engine stopped."""
    stopped = outcome.status == 503 and outcome.trouble == "engine_stopped"
    return outcome.right or stopped or (outcome.status == 0 and "engine_stopped" in outcome.trouble)


def stopping(given: argparse.Namespace, jobs: list[Job]) -> Found:
    """``stops`` servers get SIGTERM with one call of every job in progress. ``jobs`` must take long enough for that."""
    bad, seconds, refused = [], [], 0
    for _ in range(given.stops):
        with Hosted(given.model, "--drain-seconds", "300", threads=given.threads) as server:
            with ThreadPoolExecutor(len(jobs)) as pool:
                asked = [pool.submit(_right, server.url, job) for job in jobs]
                while server.metrics["unmask_calls"] < len(jobs) and not any(one.done() for one in asked):
                    time.sleep(0.01)
                began = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                late = _right(server.url, jobs[0])
                while late.status == 200 and time.monotonic() < began + _REFUSES:
                    late = _right(server.url, jobs[0])
                refused += late.status == 503 and late.trouble == "draining"
                bad += [f"in progress: {o}" for o in (one.result() for one in asked) if not o.right]
            code = server.process.wait(300)
            seconds.append(time.monotonic() - began)
            if code:
                bad.append(f"it ended with {code}: {server.logged()[-500:]}")
    if refused < given.stops:
        bad.append(f"new requests were refused with 503 by {refused} of {given.stops} stopping servers")
    more = {"in_flight": len(jobs), "stops": given.stops, "refused": refused}
    return [Line(name="serving.faults.drained", value=max(seconds), unit="s", more=more)], bad


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="clients that leave")
    parser.add_argument("--clients", type=int, default=12, help="clients at the same time")
    parser.add_argument("--deaths", type=int, default=30, help="deaths of the engine")
    parser.add_argument("--stops", type=int, default=3, help="servers that get SIGTERM")
    parser.add_argument("--steps", type=int, default=8, help="steps of a picture")
    given = parser.parse_args()
    model = opened(given.model, given.threads)
    jobs = answered(model, mixed(1, given.steps))
    parts: list[Callable[[], Found]] = []
    if given.kills:
        parts.append(lambda: leaving(given, jobs))
    if given.deaths:
        parts.append(lambda: dying(given, model, jobs))
    if given.stops:
        parts.append(lambda: stopping(given, answered(model, mixed(1, _LONG))))
    found = [part() for part in parts]
    finish(given, [line for lines, _ in found for line in lines], [complaint for _, bad in found for complaint in bad])


if __name__ == "__main__":
    main()
