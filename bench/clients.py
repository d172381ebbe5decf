"""Clients of a server, in their own process. Standard library only, so that they start fast and take little CPU from the server.

    python bench/clients.py JOBS.json http://127.0.0.1:8000 --threads 16 --seconds 300 --name a

Each thread sends one random job after another, or one every ``--every`` seconds, and writes every outcome as a line of JSON.
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

TIMEOUT = 600.0  # seconds for one answer
_PATIENT = 7200.0  # the same beside other programs, which may take nearly all of the processor
_BOUNDARY = "unmask-bench-0b5d"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request. ``form``: sent as a form, with ``image`` as a file · ``answer``: ``digest`` of the expected answer."""

    kind: str
    path: str
    body: dict[str, Any]
    form: bool = False
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``status``: 0 if the connection broke · ``seconds``: until the last byte · ``answer``: a digest; "" without an answer."""

    name: str
    kind: str
    status: int
    seconds: float
    answer: str = ""
    right: bool = False
    trouble: str = ""


def wire(job: Job) -> tuple[bytes, str]:
    """The body as bytes, and its content type."""
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


def connect(url: str, seconds: float = TIMEOUT) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)


def send(connection: http.client.HTTPConnection, job: Job, name: str) -> None:
    data, kind = wire(job)
    connection.request("POST", job.path, data, {"content-type": kind, "x-request-id": name})


def ask(connection: http.client.HTTPConnection, job: Job, name: str) -> Outcome:
    """Send one request and read its whole answer. Errors of the server or the network become an Outcome."""
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
    """The events of a stream; None for its end marker."""
    for line in response:
        if line.startswith(b"data: "):
            said = line[6:].strip()
            yield None if said == b"[DONE]" else json.loads(said)


def _whole(stream: list[dict[str, Any] | None]) -> dict[str, Any]:
    """A stream as the equivalent plain answer. ValueError if it has an error, no end, or not exactly one picture."""
    said = [event for event in stream if event is not None]
    if wrong := [event for event in said if "error" in event]:
        raise ValueError(f"an error in the stream: {wrong[0]['error']['code']}")
    if not said or stream[-1] is not None or None in stream[:-1]:
        raise ValueError("the end marker of the stream is missing, or not at its end")
    if "choices" in said[0]:
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in said)
        return {"choices": [{"message": {"content": text, "unmask": said[-1]["unmask"]}}]}
    done = [event for event in said if event["type"].endswith(".completed")]
    if len(done) != 1:
        raise ValueError(f"the picture came {len(done)} times")
    return {"data": done}


def digest(answer: dict[str, Any]) -> str:
    """A hash of the parts of an answer that depend on the seed alone: pictures, text, boxes."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        matter: Any = [message["content"], [image["b64_json"] for image in message["unmask"]["images"]]]
    else:
        matter = [[drawn["b64_json"] for drawn in answer.get("data", [])], answer.get("boxes"), answer.get("text")]
    return hashlib.sha256(json.dumps(matter).encode()).hexdigest()[:16]


def _complaint(body: bytes) -> str:
    """The code of an error; the beginning of the body if it has none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"not an error of the API: {body[:100]!r}"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """``until``: of the monotonic clock, when no client sends a new request · ``every``: seconds from one request of a client to its next,
    0 for none; a client that is late catches up · ``most``: requests of a client, which it sends however late; 0: until the end.
    """

    until: float
    every: float = 0.0
    most: int = 0


def _keep_sending(url: str, jobs: list[Job], name: str, pace: Pace, out: threading.Lock) -> None:
    rng, connection = random.Random(name), connect(url, TIMEOUT if pace.most == 0 else _PATIENT)
    number, begins = 0, time.monotonic() + rng.random() * pace.every
    while number < pace.most or (not pace.most and time.monotonic() < pace.until):
        if pace.every and (early := begins + number * pace.every - time.monotonic()) > 0:
            time.sleep(early)
        outcome = ask(connection, rng.choice(jobs), f"{name}-{number}")
        number += 1
        with out:
            print(json.dumps(asdict(outcome)), flush=True)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("jobs", type=Path, help="a JSON list of jobs")
    parser.add_argument("url", help="address of the server")
    parser.add_argument("--threads", type=int, default=16, help="clients of this process")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration; after it, no new request is sent")
    parser.add_argument("--every", type=float, default=0.0, help="seconds from one request of a client to its next")
    parser.add_argument("--most", type=int, default=0, help="requests of a client; 0: as many as --seconds allow")
    parser.add_argument("--name", default="a", help="prefix of the request ids")
    given = parser.parse_args()
    jobs = [Job(**job) for job in json.loads(given.jobs.read_text())]
    pace, out = Pace(until=time.monotonic() + given.seconds, every=given.every, most=given.most), threading.Lock()
    threads = [
        threading.Thread(target=_keep_sending, args=[given.url, jobs, f"{given.name}-{i}", pace, out])
        for i in range(given.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
