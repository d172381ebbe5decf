"""Two copies of a tiny model behind Ray Serve, as the command starts them. Skipped without Ray."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

import unmask
from unmask.pipeline.model import Model

from ..pages import environment
from ..tiny_model import make
from .served import opened

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="finds the copies in /proc"),
]
PROMPT = {"prompt": "a red apple", "steps": 4, "seed": 3}
DRAW = "/v1/images/generations"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return unmask.load(folder)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "unmask.cli.main", "serve", str(folder), "--replicas", "2", "--port", "0"]
    variables = {**environment(), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as err, subprocess.Popen(
        [*command, "--api-key", "secret", "--max-live", "2", "--max-waiting", "1"],
        env=variables, stdout=subprocess.PIPE, stderr=err, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(120)


@pytest.fixture(scope="module")
def client(server: subprocess.Popen[str]) -> httpx2.Client:
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    return httpx2.Client(base_url=url, timeout=120, headers={"authorization": "Bearer secret"})


def copies(process: subprocess.Popen[str]) -> set[int]:
    """The processes of the copies that the command has started."""
    parents: dict[int, int] = {}
    named: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ServeReplica" in (entry / "cmdline").read_bytes():
                named.add(int(entry.name))
        except OSError:
            continue

    def ours(pid: int) -> bool:
        return pid == process.pid or (pid in parents and ours(parents[pid]))

    return {pid for pid in named if ours(pid)}


def until(true: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds:.0f} s"
        time.sleep(0.1)


def test_answers_are_those_of_the_models_methods(client: httpx2.Client, model: Model) -> None:
    alone = model.generate("a red apple", seed=3, plan=False, settings=["schedule.steps=4"])[0].image
    for _ in range(4):  # any copy may answer
        drawn = client.post(DRAW, json=PROMPT).json()["data"][0]
        assert opened(drawn["b64_json"]).tobytes() == alone.tobytes()
    filled = client.post("/v1/infill", json={"text": "a [mask] apple", "seed": 2}).json()
    assert filled["text"] == model.infill_text("a [mask] apple", seed=2).text
    streamed = client.post(DRAW, json={**PROMPT, "stream": True, "trace": True}).text
    assert streamed.count("event: unmask.frame") == 5 and streamed.endswith("data: [DONE]\n\n")
    assert base64.b64decode(drawn["b64_json"]).startswith(b"\x89PNG")


def test_errors_are_those_of_a_single_server(client: httpx2.Client) -> None:
    wrong = client.post("/v1/infill", json={"text": "a"}, headers={"x-request-id": "mine"})
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "invalid_value"
    assert wrong.headers["x-request-id"] == "mine"
    assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 401
    assert client.get("/healthz").json() == {"status": "ok"} and "unmask_calls" in client.get("/metrics").text


def test_both_copies_take_requests_and_refused_ones_learn_when_to_retry(client: httpx2.Client) -> None:
    long = {**PROMPT, "steps": 64}
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: client.post(DRAW, json=long), range(16)))
    statuses = [answer.status_code for answer in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) > 3, "one copy alone has three places"
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status_code == 429)


def test_a_copy_that_dies_is_replaced(client: httpx2.Client, server: subprocess.Popen[str]) -> None:
    before = copies(server)
    assert len(before) == 2
    gone = min(before)
    os.kill(gone, signal.SIGKILL)
    until(lambda: client.post(DRAW, json=PROMPT).status_code == 200)
    until(lambda: len(copies(server) - {gone}) == 2)
    until(lambda: all(client.post(DRAW, json=PROMPT).status_code == 200 for _ in range(4)))


def test_it_shuts_down_gracefully(client: httpx2.Client, server: subprocess.Popen[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, DRAW, json={**PROMPT, "steps": 64})
        until(lambda: any("unmask_calls 1" in client.get("/metrics").text for _ in range(4)) or running.done())
        server.send_signal(signal.SIGTERM)
        assert running.result().status_code == 200
    assert server.wait(120) == 0
    assert not copies(server)
