"""Attacks on a server's connections, memory and picture decoders. Are others served meanwhile, and is everything given back afterwards?

    python bench/serving_attacks.py --threads 1 --record
    python bench/serving_attacks.py --only connections --connections 100
    python bench/serving_attacks.py --only pictures --pictures 48

``connections``: clients that send nothing, half of their headers, a body byte by byte, or never read their answer. ``bodies``: requests of
30 MiB at once, whole ones and ones that stop. ``pictures``: cut, altered and very large files of twelve formats, 40 at a time. Meanwhile
another client asks for a text again and again. Exits with 1 if it gets a wrong answer or none, if a connection is still open after 30 s,
if the memory afterwards is above 110 % of that before, if it was more than 1 GB higher, or if a picture gets a status of 500 or above.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from clients import Job, ask, connect
from PIL import Image
from rich.progress import track
from served import Hosted, answered, finish, mixed, opened, options, percentile, tracebacks

from unmask.evaluation.history import Line

Found = tuple[list[Line], list[str]]
MIB = 2**20
_FREED, _GROWTH, _PEAK = 30.0, 0.10, 10**9  # seconds, share, bytes
_HEAD = b"POST /v1/infill HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "PNG16")


@dataclass
class Others:
    """A client that asks for one text again and again while an attack runs."""

    url: str
    job: Job
    bad: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def keep_asking(self, end: threading.Event) -> None:
        while not end.is_set():
            outcome = ask(connect(self.url, 60), self.job, f"other-{len(self.seconds)}")
            self.seconds.append(outcome.seconds)
            if not outcome.right:
                self.bad.append(f"another client got {outcome.status} {outcome.trouble} after {outcome.seconds:.1f} s")
            end.wait(0.2)


@contextmanager
def beside(server: Hosted, job: Job) -> Iterator[Others]:
    others, end = Others(server.url, job), threading.Event()
    thread = threading.Thread(target=others.keep_asking, args=[end])
    thread.start()
    try:
        yield others
    finally:
        end.set()
        thread.join()


def address(server: Hosted) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname or "", parts.port or 0


def settled(server: Hosted, before: int) -> tuple[float, list[str]]:
    """Memory as a multiple of that before, and a complaint if it is too much. It is given back within seconds after the last call."""
    end, share = time.monotonic() + 30, 0.0
    while time.monotonic() < end and (share := server.memory / before) > 1 + _GROWTH:
        time.sleep(1)
    return share, [f"memory is {share:.0%} of that before"] if share > 1 + _GROWTH else []


def warmed(server: Hosted, jobs: list[Job]) -> int:
    """The server's memory after each job was asked twice."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: ask(connect(server.url), job, f"warm-{job.kind}"), jobs * 2))
    server.idle()
    time.sleep(1)
    return server.memory


# -- connections ------------------------------------------------------------------------------------------------------


def openings(number: int) -> tuple[bytes, bytes]:
    """What a slow client sends at first, and every second."""
    body = _HEAD + b"Content-Length: 100000\r\n\r\n{"
    return [(b"", b""), (_HEAD, b"X: y\r\n"), (_HEAD + b"X-Long: ", b"y"), (body, b" ")][number % 4]


def hold(place: tuple[str, int], count: int) -> tuple[float, int]:
    """Hold connections open as slow clients. The longest time in seconds until the server closed one, and how many it never closed."""
    opened_at: dict[socket.socket, tuple[float, bytes]] = {}
    for number in range(count):
        first, later = openings(number)
        one = socket.create_connection(place, timeout=30)
        one.sendall(first)
        one.setblocking(False)
        opened_at[one] = (time.monotonic(), later)
    longest, ends = 0.0, time.monotonic() + 2 * _FREED
    while opened_at and time.monotonic() < ends:
        time.sleep(1)
        for one, (began, later) in list(opened_at.items()):
            if closed(one, later):
                longest = max(longest, time.monotonic() - began)
                del opened_at[one]
    left = len(opened_at)
    for one in opened_at:
        one.close()
    return longest, left


def closed(one: socket.socket, later: bytes) -> bool:
    """Send a little more and read what came: whether the server has closed the connection."""
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        try:
            one.sendall(later)
            return False
        except OSError:
            pass
    except OSError:
        pass
    one.close()
    return True


def connections(given: argparse.Namespace, server: Hosted, others: Others) -> Found:
    longest, left = hold(address(server), given.connections)
    bad = [f"{left} connections were never closed"] if left else []
    bad += [f"a connection was open for {longest:.1f} s"] if longest > _FREED else []
    more = {"longest_s": longest, "left": left}
    return [Line(name="serving.attacks.connections", value=given.connections, unit="connections", more=more)], bad


# -- bodies -----------------------------------------------------------------------------------------------------------


def large(number: int, size: int) -> tuple[bytes, int]:
    """A request with a large body, and how much of it to send: all, or nearly all, and then wait or leave."""
    if number % 2:
        start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        head, body = _HEAD.replace(b"infill", b"images/edits"), start + b"x" * size + b"\r\n--x--\r\n"
        head = head.replace(b"application/json", b"multipart/form-data; boundary=x")
    else:
        picture = b"data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3)) * (size // 16)
        head, body = _HEAD.replace(b"infill", b"ground"), b'{"phrases": ["a"], "image": "' + picture + b'"}'
    whole = head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    return whole, len(whole) - (1000 if number % 4 > 1 else 0)


def send_large(place: tuple[str, int], number: int, size: int) -> tuple[str, float]:
    """The status of the answer or how it ended, and the seconds after the last byte."""
    whole, count = large(number, size)
    with socket.create_connection(place, timeout=3 * _FREED) as one:
        try:
            one.sendall(memoryview(whole)[:count])
            began = time.monotonic()
            if number % 8 > 5:
                return "left", 0.0
            answer = one.recv(4096)
        except (ConnectionError, TimeoutError) as error:  # refused while it was sent
            return type(error).__name__, 0.0
        return answer[9:12].decode() or "closed", time.monotonic() - began


def bodies(given: argparse.Namespace, server: Hosted, others: Others) -> Found:
    with ThreadPoolExecutor(given.bodies) as pool:
        sent = [pool.submit(send_large, address(server), n, given.body_mib * MIB) for n in range(given.bodies)]
        found = [one.result() for one in sent]
    server.idle()
    statuses, longest = Counter(status for status, _ in found), max(seconds for _, seconds in found)
    bad = [f"a large body was answered with {status}" for status in statuses if status[:1] == "5" and status != "503"]
    bad += [f"a body was held for {longest:.1f} s"] if longest > _FREED else []
    more = {"longest_s": longest, **{f"got_{status}": n for status, n in sorted(statuses.items())}}
    return [Line(name="serving.attacks.bodies", value=given.bodies, unit="bodies", more=more)], bad


# -- pictures ---------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str) -> bytes:
    """A file of a format; ``PNG16``: a PNG of 16 bits."""
    buffer, more = io.BytesIO(), dict[str, object]()
    if kind == "PNG16":
        image, kind = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"
    if kind in ("JPEG", "PPM"):
        image = image.convert("RGB" if kind == "JPEG" else "1")
    if kind == "WEBP":
        more = {"lossless": True, "method": 0}
    if kind in ("TIFF", "TGA"):
        more = {"compression": "tiff_deflate" if kind == "TIFF" else "tga_rle"}
    if kind == "AVIF":
        more = {"speed": 10}
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def bombs(side: int) -> Iterator[tuple[str, bytes]]:
    """The largest pictures that are decoded, and larger ones: few bytes, many pixels."""
    for kind in FORMATS:
        most = {"ICO": 256, "WEBP": 5900, "JPEG2000": 5400, "AVIF": 3000, "TIFF": 6900, "TGA": 6900, "PPM": 6900}.get(
            kind, 8000
        )
        mode = "1" if kind in ("BMP", "PPM", "TIFF") else "P" if kind == "GIF" else "RGB"
        for factor in (1.0, 0.98, 1.02):
            wide = min(round(most * factor), 256 if kind == "ICO" else 65_535, side)
            yield kind, saved(Image.new(mode, (wide, wide)), kind)


def attacked(count: int, side: int) -> Iterator[tuple[str, bytes]]:
    """``count`` files: three large ones of each format, and small ones, of which every second is cut and the others have altered bits."""
    yield from bombs(side)
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    files, rng = (
        {kind: saved(small.convert("P") if kind == "GIF" else small, kind) for kind in FORMATS},
        random.Random(0),
    )
    for number in range(count - 3 * len(FORMATS)):
        kind = FORMATS[number % len(FORMATS)]
        data = bytearray(files[kind])
        if number // len(FORMATS) % 2:
            yield kind, bytes(data[: rng.randrange(len(data))])
            continue
        for _ in range(rng.randrange(1, 20)):
            data[int(len(data) * rng.random() ** 3)] ^= 1 << rng.randrange(8)
        yield kind, bytes(data)


def pictures(given: argparse.Namespace, server: Hosted, others: Others) -> Found:
    files = list(attacked(given.pictures, given.side))
    before = server.memory
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # forget the peak

    def one(number: int) -> tuple[str, int]:
        kind, data = files[number]
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        job = Job(kind=kind, path="/v1/ground", body={"image": url, "phrases": ["a cat"], "seed": 0})
        return kind, ask(connect(server.url), job, f"picture-{number}").status

    with ThreadPoolExecutor(given.at_once) as pool:
        found = list(track(pool.map(one, range(len(files))), "pictures", total=len(files)))
    server.idle()
    peak = server.peak - before
    statuses = Counter(status for _, status in found)
    bad = [f"{kind} was answered with {status}" for kind, status in found if status >= 500 or not status]
    bad += [f"the server needed {peak / 1e9:.2f} GB more"] if peak > _PEAK else []
    more = {"peak_mb": peak / 1e6, "at_once": given.at_once, "formats": len(FORMATS)}
    more |= {f"status_{status}": n for status, n in sorted(statuses.items())}
    return [Line(name="serving.attacks.pictures", value=len(files), unit="files", more=more)], bad


GROUPS: dict[str, Callable[[argparse.Namespace, Hosted, Others], Found]] = {
    "connections": connections,
    "bodies": bodies,
    "pictures": pictures,
}


def attack(name: str, given: argparse.Namespace, jobs: list[Job]) -> Found:
    """One group against a server of its own, with another client beside it."""
    small = next(job for job in jobs if job.kind == "gaps")
    with Hosted(given.model, threads=given.threads) as server:
        before = warmed(server, jobs)
        with beside(server, small) as others:
            lines, bad = GROUPS[name](given, server, others)
        share, grown = settled(server, before)
        log = server.logged()
        code = server.stop()
    others_p95 = {"others": len(others.seconds), "others_p95_s": percentile(others.seconds, 0.95), "memory": share}
    lines = [Line(name=one.name, value=one.value, unit=one.unit, more=(one.more or {}) | others_p95) for one in lines]
    bad += others.bad[:5] + grown + [f"{name}: a traceback in the log"] * min(1, tracebacks(log))
    plain = [line for line in log.splitlines() if not line.startswith("{")]
    bad += [f"{len(plain)} lines of the log are no JSON, such as {plain[0][:200]!r}"] if plain else []
    return lines, bad + ([f"{name}: exit code {code}"] if code else [])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", default=",".join(GROUPS), help="what to attack")
    parser.add_argument("--connections", type=int, default=1000, help="slow clients at the same time")
    parser.add_argument("--bodies", type=int, default=20, help="large bodies at the same time")
    parser.add_argument("--body-mib", type=int, default=30, help="their size")
    parser.add_argument("--pictures", type=int, default=300, help="files, at least 36")
    parser.add_argument("--side", type=int, default=65_535, help="most pixels of a side of a large file")
    parser.add_argument("--at-once", type=int, default=40, help="files at the same time")
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - GROUPS.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    jobs = answered(opened(given.model, given.threads), mixed(1, 2))
    lines, bad = list[Line](), list[str]()
    for name in given.only.split(","):
        found, wrong = attack(name, given, jobs)
        lines, bad = lines + found, bad + wrong
    finish(given, lines, bad)


if __name__ == "__main__":
    main()
