"""Clients of a server, as a process of their own: the standard library alone, so that they start at once and cost the server little.

    python bench/clients.py JOBS.json http://127.0.0.1:8000 --threads 16 --seconds 300 --name a

Each thread asks one job after another, drawn by chance, and writes what came of it as a line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 600.0  # seconds for one answer
_BOUNDARY = "unmask-bench-0b5d"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request. ``form``: it goes as a form, and its ``image`` as a file. ``answer``: what it gives alone, as ``digest`` has it."""

    kind: str
    path: str
    body: dict[str, Any]
    form: bool = False
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``status``: 0 where the connection broke · ``seconds``: until the last byte · ``answer``: a digest; "" where there was none."""

    name: str
    kind: str
    status: int
    seconds: float
    answer: str = ""
    right: bool = False
    trouble: str = ""


def wire(job: Job) -> tuple[bytes, str]:
    """The body as bytes, and their type."""
    if not job.form:
        return json.dumps(job.body).encode(), "application/json"
    pieces = []
    for name, value in job.body.items():
        file = name in ("image", "mask")
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"' + (
            '; filename="a.png"' if file else ""
        )
        data = base64.b64decode(value.partition(",")[2]) if file else str(value).encode()
        pieces.append(head.encode() + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(pieces) + f"--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"


def connect(url: str, seconds: float = PATIENCE) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)


def send(connection: http.client.HTTPConnection, job: Job, name: str) -> None:
    data, kind = wire(job)
    connection.request("POST", job.path, data, {"content-type": kind, "x-request-id": name})


def ask(connection: http.client.HTTPConnection, job: Job, name: str) -> Outcome:
    """One request and its whole answer. Never raises for what a server or a network may do."""
    began = time.perf_counter()
    answer, status, trouble = "", 0, ""
    try:
        send(connection, job, name)
        response = connection.getresponse()
        status = response.status
        if response.getheader("x-request-id") != name:
            trouble = "another request's id"
        elif response.getheader("content-type", "").startswith("text/event-stream"):
            answer = digest(_whole(list(events(response))))
        elif status == 200:
            answer = digest(json.loads(response.read()))
        else:
            trouble = _complaint(response.read())
            if status == 429:
                time.sleep(min(float(response.getheader("retry-after") or 1), 5.0))
    except Exception as error:
        connection.close()
        status, trouble = 0, repr(error)[:200]
    right = status == 200 and answer == job.answer
    seconds = time.perf_counter() - began
    return Outcome(
        name=name, kind=job.kind, status=status, seconds=seconds, answer=answer, right=right, trouble=trouble
    )


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any] | None]:
    """The events of a stream; None for its proper end."""
    for line in response:
        if line.startswith(b"data: "):
            said = line[6:].strip()
            yield None if said == b"[DONE]" else json.loads(said)


def _whole(told: list[dict[str, Any] | None]) -> dict[str, Any]:
    """A stream as the plain answer it stands for. ValueError where it has no end, an error, or its picture not exactly once."""
    said = [event for event in told if event is not None]
    if wrong := [event for event in said if "error" in event]:
        raise ValueError(f"an error in the stream: {wrong[0]['error']['code']}")
    if not said or told[-1] is not None or None in told[:-1]:
        raise ValueError("the stream did not end once, and at its end")
    if "choices" in said[0]:
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in said)
        return {"choices": [{"message": {"content": text, "unmask": said[-1]["unmask"]}}]}
    done = [event for event in said if event["type"].endswith(".completed")]
    if len(done) != 1:
        raise ValueError(f"the picture came {len(done)} times")
    return {"data": done}


def digest(answer: dict[str, Any]) -> str:
    """What matters of an answer, which the same seed must repeat: pictures, words, boxes."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        matter: Any = [message["content"], [image["b64_json"] for image in message["unmask"]["images"]]]
    else:
        matter = [[drawn["b64_json"] for drawn in answer.get("data", [])], answer.get("boxes"), answer.get("text")]
    return hashlib.sha256(json.dumps(matter).encode()).hexdigest()[:16]


def _complaint(body: bytes) -> str:
    """The code of an error; what came instead where it is none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"no error of ours: {body[:100]!r}"


def _keep_asking(url: str, jobs: list[Job], name: str, until: float, out: threading.Lock) -> None:
    chance, connection = random.Random(name), connect(url)
    number = 0
    while time.monotonic() < until:
        outcome = ask(connection, chance.choice(jobs), f"{name}-{number}")
        number += 1
        with out:
            print(json.dumps(asdict(outcome)), flush=True)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("jobs", type=Path, help="a JSON list of jobs")
    parser.add_argument("url", help="the server")
    parser.add_argument("--threads", type=int, default=16, help="clients of this process")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which none asks again")
    parser.add_argument("--name", default="a", help="how its requests' ids begin")
    given = parser.parse_args()
    jobs = [Job(**job) for job in json.loads(given.jobs.read_text())]
    until, out = time.monotonic() + given.seconds, threading.Lock()
    threads = [
        threading.Thread(target=_keep_asking, args=[given.url, jobs, f"{given.name}-{i}", until, out])
        for i in range(given.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
