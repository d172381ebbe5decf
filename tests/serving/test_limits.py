"""Limits of the server: connections, slow and large bodies, decoding memory, rates, keys with scopes, and what the log repeats."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
import torch
from PIL import Image

from unmask.serving import connections
from unmask.serving.access import ADMIN, ASK, DRAW, SCOPES, Access, Key, read_keys
from unmask.serving.connections import ConnectionLimits
from unmask.serving.logs import LOG, JsonLine, Repeats, log_to, log_to_stderr
from unmask.serving.picture_reader import DecodingBudget, PictureReader
from unmask.serving.server import Server, Tls
from unmask.tokens.pictures import EXACT_SIDE, ImageError

from .served import data_url, gated, plain, png, serving, tiny, until

torch.set_num_threads(1)
FILL = {"text": "a [mask]"}
HEAD = b"POST /v1/infill HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@contextmanager
def connected(server: Server, *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(server.listener.getsockname()[:2], timeout=30) as one:
        for piece in sent:
            one.sendall(piece)
        yield one


def answer(one: socket.socket) -> bytes:
    """One response with a JSON object as its body."""
    received = b""
    while not received.endswith(b"}"):
        received += one.recv(65536)
    return received


def ending(one: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    received = b""
    try:
        while piece := one.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    with serving(tiny(), connections=ConnectionLimits(most=6, head_seconds=0.6)) as served:
        yield served


SLOW: dict[str, list[bytes]] = {
    "silent": [],
    "half a head": [b"GET /healthz HTTP/1.1\r\nHost: "],
    "half a second head": [b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /hea"],
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_head_that_does_not_arrive_ends_its_connection(hasty: Server, sent: list[bytes]) -> None:
    with connected(hasty, *sent) as one:
        received = ending(one)  # a timeout of the socket would raise
    assert received.count(b"HTTP/1.1 200") == len(sent) // 2


def test_a_kept_connection_may_be_idle_for_longer(hasty: Server) -> None:
    with connected(hasty) as one:
        for _ in range(2):
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in answer(one)
            time.sleep(1.0)


def test_beyond_the_limit_the_connection_that_waits_longest_for_its_client_is_dropped() -> None:
    with serving(tiny(), connections=ConnectionLimits(most=4, head_seconds=60)) as served:
        server, held = served._server.server_state, []
        for sent in (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n1", b""):
            held.append(socket.create_connection(served.listener.getsockname()[:2], timeout=30))
            held[-1].sendall(sent)
            until(lambda: len(server.connections) == len(held), 10)
        for dropped in held[:3]:
            with connected(served, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as one:
                assert b" 200 " in answer(one) and ending(dropped) == b""
                held.append(socket.create_connection(served.listener.getsockname()[:2], timeout=30))
        for other in held:
            other.close()


def test_a_server_that_works_on_all_its_connections_refuses_more_with_503() -> None:
    model, gate = gated()
    gate.open.clear()
    with serving(model, connections=ConnectionLimits(most=2)) as served:
        body = json.dumps(FILL).encode()
        with ExitStack() as held:
            for _ in range(2):
                held.enter_context(connected(served, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
            until(lambda: served.service.under_way == 2, 10)
            with connected(served) as one:
                refused = ending(one)
            gate.open.set()
        assert refused.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in refused


def test_the_rest_of_a_refused_body_is_read_but_not_for_long() -> None:
    limits = {"access": Access(most_bytes=1000), "connections": ConnectionLimits(head_seconds=0.6)}
    with serving(tiny(), **limits) as served:
        with connected(served, HEAD + b"Content-Length: 100000\r\n\r\n") as one:
            one.sendall(b"x" * 50_000)
            assert b"HTTP/1.1 413" in ending(one)
        with connected(served, HEAD + b"Content-Length: 50000\r\n\r\n", b"x" * 50_000) as one:
            assert b"HTTP/1.1 413" in answer(one)
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in answer(one)


def test_malformed_http_gets_an_error_in_json(hasty: Server) -> None:
    with connected(hasty, b"what is this\r\n\r\n") as one:
        head, _, body = ending(one).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "malformed_request"


def test_the_limit_of_connections_leaves_descriptors_in_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    now = [100, 300]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: now.__setitem__(slice(None), pair))
    assert ConnectionLimits(most=50).within_descriptors().most == 50 and now[0] == 178
    assert ConnectionLimits(most=1000).within_descriptors().most == 300 - connections._RESERVE and now[0] == 300


def test_a_client_that_reads_nothing_is_dropped() -> None:
    with serving(tiny(), connections=ConnectionLimits(write_seconds=0.5)) as served:
        with connected(served) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(400):  # more answers than the buffers of both sides hold
                try:
                    one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                except OSError:
                    break
                time.sleep(0.01)
            server = served._server.server_state
            until(lambda: not server.connections, 30)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_decoders_wait_until_their_memory_is_free() -> None:
    budget, order = DecodingBudget(100), []

    def take(name: str, size: int) -> None:
        with budget.reserved(size):
            order.append(name)

    with budget.reserved(60):
        small, large = (threading.Thread(target=take, args=given) for given in (("small", 40), ("large", 41)))
        large.start()
        small.start()
        small.join(10)
        assert order == ["small"] and large.is_alive()
    large.join(10)
    assert order == ["small", "large"]


def test_a_budget_is_freed_when_a_picture_is_broken() -> None:
    reader = PictureReader(budget=DecodingBudget(9 * 64 * 64))
    cut = png(Image.effect_noise((64, 64), 90))[:-400]
    for _ in range(3):
        with pytest.raises(ImageError, match="cannot be decoded"):
            reader.read(cut)
    assert reader.read(png(Image.new("RGB", (64, 64)))).size == (64, 64)


def test_pictures_are_refused_before_they_are_decoded_where_they_need_too_much() -> None:
    with pytest.raises(ImageError, match="more than the 4,000 that this server decodes of PNG"):
        PictureReader(most_pixels=4000).read(png(Image.new("RGB", (64, 64))))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "WEBP")
    reader = PictureReader(budget=DecodingBudget(9 * 64 * 64))
    assert reader.read(png(Image.new("RGB", (64, 64)))).size == (64, 64)
    with pytest.raises(ImageError, match="WEBP"):
        reader.read(buffer.getvalue())


def test_a_large_picture_is_reduced_and_its_size_is_kept() -> None:
    width, height = 2 * EXACT_SIDE, EXACT_SIDE
    found = PictureReader().read(png(Image.new("RGB", (width, height), "red")))
    assert found.image.size == (EXACT_SIDE, EXACT_SIDE // 2) and found.size == (width, height)


def test_answers_about_a_large_picture_are_those_of_python_and_tell_its_size() -> None:
    model, large = tiny(), Image.effect_noise((EXACT_SIDE + 500, EXACT_SIDE - 200), 80).convert("RGB")
    with serving(model) as served:
        sent = {"image": data_url(large), "phrases": ["a dog", "a cat"], "seed": 3}
        answer = plain(served).post("/v1/ground", json=sent).json()
    assert (answer["width"], answer["height"]) == large.size
    boxes = [b.corners for b in model.ground(large, ["a dog", "a cat"], seed=3).boxes]
    share = [[v / s for v, s in zip(box, (*large.size, *large.size), strict=True)] for box in boxes]
    assert [one["box"] for one in answer["boxes"]] == [pytest.approx(box, abs=2e-6) for box in share]


# -- keys, scopes and rates -------------------------------------------------------------------------------------------


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys\nall\nask-only ask  # for the bot\n\nstudio ask,draw\n")
    file.chmod(0o600)
    assert read_keys(file) == [
        Key(secret="all", scopes=SCOPES),
        Key(secret="ask-only", scopes=frozenset({ASK})),
        Key(secret="studio", scopes=frozenset({ASK, DRAW})),
    ]


WRONG_KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "readable by all": (lambda p: (p.write_text("a"), p.chmod(0o644)), "chmod 600"),
    "unknown scope": (lambda p: (p.write_text("a\nb paint"), p.chmod(0o600)), "line 2: unknown scope 'paint'"),
    "empty": (lambda p: (p.write_text("# none\n"), p.chmod(0o600)), "no keys"),
    "a folder": (lambda p: p.mkdir(), "not a regular file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "missing": (lambda p: None, "cannot read"),
    "not text": (lambda p: (p.write_bytes(b"\xff\xfe"), p.chmod(0o600)), "UTF-8"),
}


@pytest.mark.parametrize("make, told", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_bad_key_file_is_a_named_error(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    make(tmp_path / "keys")
    with pytest.raises(ValueError, match=told):
        read_keys(tmp_path / "keys")


def test_a_key_does_what_its_scopes_say() -> None:
    keys = tuple(Key(secret=name, scopes=frozenset({name})) for name in (ASK, DRAW, ADMIN))
    draw = {"prompt": "a dog", "steps": 1}
    chat = {"messages": [{"role": "user", "content": "a dog"}], "modalities": ["text", "image"]}
    paths = {"/v1/infill": FILL, "/v1/images/generations": draw, "/v1/chat/completions": chat}
    with serving(tiny(), access=Access(keys=keys, private_metrics=True)) as served:

        def status(key: str, path: str, body: object = None) -> tuple[int, str]:
            headers = {"authorization": f"Bearer {key}"}
            answer = plain(served).request("POST" if body else "GET", path, json=body, headers=headers)
            return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["code"]

        found = {key: [status(key, path, body)[1] for path, body in paths.items()] for key in (ASK, DRAW, ADMIN)}
        lacks = "missing_scope"
        assert found == {ASK: ["", lacks, lacks], DRAW: [lacks, "", ""], ADMIN: [lacks, lacks, lacks]}
        assert status(DRAW, "/v1/images/generations", {**draw, "priority": 1}) == (403, lacks)
        assert status(ASK, "/metrics") == (403, lacks) and status(ADMIN, "/metrics") == (200, "")
        assert plain(served).get("/metrics").status_code == 401 and plain(served).get("/healthz").status_code == 200


def test_a_key_without_scopes_may_do_nothing() -> None:
    with serving(tiny(), access=Access(keys=(Key(secret="none", scopes=frozenset()),))) as served:
        answer = plain(served).post("/v1/infill", json=FILL, headers={"authorization": "Bearer none"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_https_with_a_certificate(tmp_path: Path) -> None:
    pem = Tls(certificate=tmp_path / "certificate.pem", key=tmp_path / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*made, "-keyout", str(pem.key), "-out", str(pem.certificate)], check=True, capture_output=True)
    with serving(tiny(), tls=pem) as served:
        assert served.url.startswith("https://")
        assert httpx2.get(f"{served.url}/healthz", verify=False).json() == {"status": "ok"}


def test_a_rate_is_counted_for_each_key() -> None:
    access = Access(keys=(Key(secret="a"), Key(secret="b")), rate="2/minute")
    with serving(tiny(), access=access) as served:
        answers = [plain(served).get("/v1/models", headers={"authorization": f"Bearer {k}"}) for k in "aaab"]
        assert [a.status_code for a in answers] == [200, 200, 429, 200]
        assert (
            answers[2].json()["error"]["code"] == "rate_limit_exceeded"
            and 1 <= int(answers[2].headers["retry-after"]) <= 60
        )
        assert plain(served).get("/healthz").status_code == 200


# -- the log ----------------------------------------------------------------------------------------------------------


def test_repeated_warnings_are_counted_instead_of_written() -> None:
    now, stream = [0.0], io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLine())
    handler.addFilter(Repeats(most=2, seconds=10, clock=lambda: now[0]))
    log = logging.Logger("flood")
    log.addHandler(handler)
    for _ in range(7):
        log.warning("accept failed")
    log.warning("another")
    now[0] = 11.0
    log.warning("accept failed")
    for _ in range(9):
        log.info("request")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["accept failed"] * 2 + ["another", "accept failed"] + ["request"] * 9
    assert [line.get("repeated") for line in lines[:4]] == [None, None, None, 5]


def test_exceptions_of_threads_and_asyncio_are_lines_of_json() -> None:
    stream = io.StringIO()
    undo = log_to(stream)
    try:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=ValueError("x"))
        LOG.info("request")
    finally:
        undo()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["error", "error", "info"]
    assert "ZeroDivisionError" in lines[0]["error"]


def test_what_libraries_write_to_stderr_are_lines_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        os.write(2, b"ZIPDecode: Decoding error\n\n")
        LOG.info("request")
    os.write(2, b"plain again\n")
    *lines, last = capfd.readouterr().err.splitlines()
    told = {line["event"]: line.get("text") for line in map(json.loads, lines)}
    assert told == {"a library wrote to stderr": "ZIPDecode: Decoding error", "request": None}
    assert last == "plain again" and not LOG.handlers
