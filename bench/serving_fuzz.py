"""Fuzz test: malformed and hostile requests. Does the server show a traceback, fail with a 5xx, or answer wrongly afterwards?

    python bench/serving_fuzz.py --requests 5000 --threads 2 --record
    python bench/serving_fuzz.py --requests 100 --only pictures,numbers

Half of the requests are made by schemathesis from the server's /openapi.json, valid and invalid ones (none without the package), and each
answer must be one that the document describes. The others are broken pictures and decompression bombs, texts of control tokens, extreme
numbers, settings without a result, and malformed HTTP.
Answers of 503 and 429 are counted separately, because load causes them. Exits with 1 if the server fails in any of these ways.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import contract
from clients import ask, connect
from oddities import KINDS, Raw
from rich.progress import Progress
from served import Hosted, answered, finish, mixed, opened, options, ticking, tracebacks

from unmask.evaluation.history import Line

_CLIENTS = 8


def answer_to(url: str, raw: Raw) -> tuple[int, bytes]:
    """Status and body; 0 without an answer, which is allowed for bytes that are not HTTP."""
    if raw.stream:
        return _answer_to_bytes(url, raw.stream)
    connection = connect(url, 300)
    try:
        connection.request(raw.method, raw.path, raw.data, raw.headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _answer_to_bytes(url: str, data: bytes) -> tuple[int, bytes]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 60) as connection:
        connection.settimeout(0.3)
        answer = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    line = answer.partition(b"\r\n")[0].split()
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else 0, answer


def judged(raw: Raw, status: int, body: bytes) -> str:
    """What is wrong with an answer; "" if nothing is."""
    if b"Traceback" in body or b'File "' in body:
        return "a traceback"
    if b'"server_error"' in body and status == 200:
        return "a server's error in a stream"
    if status >= 500 and status != 503:
        return f"status {status}"
    if status == 422:
        return "an error that is not OpenAI's"
    if status == 400 and body == b"Invalid HTTP request received.":
        return ""  # uvicorn's answer to bytes that are not HTTP
    if status >= 400 and not raw.stream and raw.method != "HEAD":
        try:
            error = json.loads(body)["error"]
            return "" if {"message", "type", "param", "code"} <= error.keys() and error["message"] else "an empty error"
        except (ValueError, KeyError, TypeError):
            return "an error that is not OpenAI's"
    return "" if status or raw.stream else "no answer"


@dataclass
class Seen:
    """Statuses and complaints of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def of(self, url: str, kind: str, raw: Raw) -> None:
        try:
            status, body = answer_to(url, raw)
            wrong = judged(raw, status, body)
        except Exception as error:
            status, body, wrong = 0, b"", f"no answer: {error!r}"
        what = raw.stream or raw.data
        told = f"{wrong}: {raw.method} {raw.path} {what[:300]!r} -> {body[:300]!r}" if wrong else ""
        self.note(kind, status, told)

    def note(self, kind: str, status: int, complaint: str) -> None:
        self.statuses[str(status)] += 1
        if complaint:
            self.complaints.append(f"{kind}: {complaint}")
            print(self.complaints[-1], file=sys.stderr, flush=True)  # a run takes half an hour


def by_schema(server: Hosted, number: int, seen: Seen, tick: Callable[[], None], seed: int) -> int:
    """Send requests made from /openapi.json, half of them valid, and hold every answer against the document with all checks of
    schemathesis. Returns their number; 0 without schemathesis.
    """
    try:
        from hypothesis import HealthCheck, Phase, given
        from hypothesis import seed as seeded
        from hypothesis import settings as how
        from schemathesis import GenerationMode
    except ImportError:
        return 0
    operations = contract.operations(f"{server.url}/openapi.json")
    posts = sum(
        operation.method.lower() == "post" for operation in operations
    )  # the others have almost nothing to vary
    each = max(1, number // (posts * 2))
    sent = 0
    quiet = how(
        max_examples=each,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seeded(seed)
            @quiet
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                nonlocal sent
                sent += 1
                status, complaint = contract.complaint(server.url, case)
                seen.note("schema", status, complaint)
                tick()

            try:
                one()
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("hypothesis", "schemathesis"):
                    raise
                if mode is GenerationMode.POSITIVE:  # a schema that accepts everything has no invalid examples
                    seen.note("schema", 0, f"no request could be made for {operation.label}: {str(error)[:500]}")
    return sent


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="in total; half of them made from the schema")
    parser.add_argument("--only", default="schema," + ",".join(KINDS), help="kinds to send")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests")
    parser.add_argument("--steps", type=int, default=8, help="steps of a picture in a valid request")
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - {"schema", *KINDS}:
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; there are schema, {', '.join(KINDS)}")
    model = opened(given.model, given.threads)
    jobs = answered(model, mixed(1, given.steps))
    chosen = [kind for kind in KINDS if kind in given.only.split(",")]
    seen = Seen()
    with Hosted(given.model, threads=given.threads) as server, Progress() as progress:
        tick = ticking(progress, "requests", given.requests)
        schema = given.requests // (2 if chosen else 1) if "schema" in given.only.split(",") else 0
        sent = {"schema": by_schema(server, schema, seen, tick, given.seed)} if schema else {}
        left = given.requests - sum(sent.values())
        with ThreadPoolExecutor(_CLIENTS) as pool:
            for number, kind in enumerate(chosen):
                share = left // len(chosen) + (number < left % len(chosen))
                source = KINDS[kind](random.Random(f"{kind}:{given.seed}"), model)
                sent[kind] = share

                def one(raw: Raw, kind: str = kind) -> None:
                    seen.of(server.url, kind, raw)
                    tick()

                for future in [pool.submit(one, next(source)) for _ in range(share)]:
                    future.result()
        server.idle(300)
        wrong = [job.kind for job in jobs if not ask(connect(server.url), job, f"after-{job.kind}").right]
        log = server.logged()
        code = server.stop()
    finish(given, *figures(seen, sent, wrong, log, code))


def figures(seen: Seen, sent: dict[str, int], wrong: list[str], log: str, code: int) -> tuple[list[Line], list[str]]:
    total = sum(seen.statuses.values())
    load = seen.statuses["503"] + seen.statuses["429"]
    lines = [
        Line(name="serving.fuzz.requests", value=total, unit="requests", more={**sent, **_by_status(seen)}),
        Line(name="serving.fuzz.failures", value=len(seen.complaints), unit="answers", more={"of_load": load}),
        Line(name="serving.fuzz.tracebacks", value=tracebacks(log), unit="in the log"),
        Line(name="serving.fuzz.wrong_after", value=len(wrong), unit="answers"),
    ]
    bad = [f"{line.name} is {line.value:.0f}" for line in lines[1:] if line.value] + seen.complaints[:20]
    if line := next((line for line in log.splitlines() if "Traceback" in line), ""):
        bad.append(f"the log has: {line[-1500:]}")
    return lines, bad + ([f"the server ended with {code}"] if code else [])


def _by_status(seen: Seen) -> dict[str, int]:
    return {f"status_{status}": number for status, number in sorted(seen.statuses.items())}


if __name__ == "__main__":
    main()
