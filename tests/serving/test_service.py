"""Many clients at once: admission, cancellation, draining, an engine that breaks, and batch-invariant results."""

from __future__ import annotations

import gc
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import unmask
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.serving.engine import Limits
from unmask.serving.requests import QueueFull
from unmask.serving.server import Server, listen
from unmask.serving.service import Call, Service

from .served import asked, client, data_url, gated, opened, plain, serving, tiny, until

torch.set_num_threads(1)
GENERATE = "/v1/images/generations"
SLOW = {"prompt": "a dog", "steps": 16}
GONE = [f'unmask_http_requests_total{{method="POST",path="{GENERATE}",status="499"}} 1']


class Broken(BaseException):
    """No error of a request: it ends the thread of the engine."""


def test_a_refused_call_learns_when_to_retry() -> None:
    model, gate = gated()
    with serving(model, running=1, queued=1) as server, ThreadPoolExecutor() as others:
        gate.open.clear()
        held = [others.submit(plain(server).post, GENERATE, json={**SLOW, "seed": i}) for i in range(2)]
        until(lambda: server.service.under_way == 2)
        full = plain(server).post(GENERATE, json=SLOW)
        assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full"
        assert int(full.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            client(server).images.generate(model="tiny", prompt="a")
        assert "unmask_calls_refused_total 2" in plain(server).get("/metrics").text
        gate.open.set()
        assert [h.result().status_code for h in held] == [200, 200]
        more = plain(server).post(GENERATE, json={"prompt": "a", "n": 3})
        assert more.status_code == 400 and "3 at once are more than the 2" in more.json()["error"]["message"]


def test_requests_of_several_calls_leave_a_fifth_of_the_places() -> None:
    slow, gate = gated(tiny())
    service = Service(slow, name="tiny", limits=Limits(running=2, queued=8))
    gate.open.clear()

    def calls(number: int) -> list[Call[Any]]:
        return [Call(ask=lambda model: model.infill_text("a [mask]")) for _ in range(number)]

    try:
        started = service.start(calls(6))
        for several in (3, 10):
            with pytest.raises(QueueFull):
                service.start(calls(several))
        started += service.start(calls(2))  # 8 of 10
        with pytest.raises(QueueFull):
            service.start(calls(2))
        started += service.start(calls(1)) + service.start(calls(1))
        with pytest.raises(QueueFull):
            service.start(calls(1))
        gate.open.set()
        assert all(one.future.result(60).text for one in started)
        assert all(one.future.result(60).text for one in service.start(calls(10))), (
            "more than four fifths, and nobody is there"
        )
    finally:
        gate.open.set()
        service.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, gate = gated()
    with serving(model) as server:
        gate.open.clear()
        body = json.dumps({**SLOW, "n": 2, "stream": stream, "trace": stream}).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(server.listener.getsockname()) as leaving:
            leaving.sendall(head.encode() + body)
            until(lambda: (now := server.service.engine.metrics()).running + now.queued == 2)
            if stream:
                assert b"200 OK" in leaving.recv(100)
        until(lambda: all(line in plain(server).get("/metrics").text for line in GONE) or stream)
        gate.open.set()
        until(lambda: server.service.under_way == 0)
        assert server.service.engine.metrics().cancelled == 2 and gate.forwards < 16
        assert plain(server).post(GENERATE, json={"prompt": "a", "steps": 1}).status_code == 200
        gc.collect()  # futures whose exception was never retrieved log an error when they are collected
    assert "never retrieved" not in caplog.text


def test_draining_finishes_calls_in_progress_and_refuses_new_ones() -> None:
    model, gate = gated()
    service = Service(model, name="tiny")
    server = Server(service, listen("127.0.0.1", 0)).start()
    assert plain(server).get("/readyz").status_code == 200
    gate.open.clear()
    with ThreadPoolExecutor() as others, plain(server) as late:
        held = others.submit(plain(server).post, GENERATE, json=SLOW)
        until(lambda: service.under_way == 1)
        drained = others.submit(server.drain, 60)
        until(lambda: service.draining)
        assert late.get("/readyz").status_code == 503 and late.get("/healthz").status_code == 200
        refused = late.post(GENERATE, json=SLOW)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        gate.open.set()
        assert held.result().status_code == 200 and drained.result() is True
    assert not server.alive


def test_a_call_that_outlasts_the_drain_ends_with_an_error() -> None:
    model, gate = gated()
    service = Service(model, name="tiny")
    server = Server(service, listen("127.0.0.1", 0)).start()
    gate.open.clear()
    with ThreadPoolExecutor() as others:
        held = others.submit(plain(server).post, GENERATE, json=SLOW)
        until(lambda: service.engine.metrics().running == 1)
        stopped = others.submit(until, lambda: service.engine._stopped)
        stopped.add_done_callback(lambda _: gate.open.set())  # the current step ends, and no other is taken
        assert server.drain(0.1) is False
        assert held.result().status_code == 503 and held.result().json()["error"]["code"] == "engine_stopped"
        assert gate.forwards < 16


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_is_replaced() -> None:
    model, gate = gated()
    with serving(model) as server, ThreadPoolExecutor() as others:
        gate.open.clear()
        held = [others.submit(plain(server).post, GENERATE, json={**SLOW, "seed": i}) for i in range(3)]
        until(lambda: server.service.engine.metrics().running >= 1 and server.service.under_way == 3)
        gate.fault = Broken("a defect")
        gate.open.set()
        for answer in held:
            assert answer.result().status_code == 503 and answer.result().json()["error"]["code"] == "engine_stopped"
        gate.fault = None
        assert plain(server).post(GENERATE, json={"prompt": "a", "steps": 1}).status_code == 200
        assert "unmask_engine_restarts_total 1" in plain(server).get("/metrics").text


def test_the_queue_position_is_streamed() -> None:
    model, gate = gated()
    with serving(model, running=1, queued=4) as server, ThreadPoolExecutor() as others:
        gate.open.clear()
        others.submit(plain(server).post, GENERATE, json=SLOW)
        until(lambda: server.service.engine.metrics().running == 1)
        others.submit(plain(server).post, GENERATE, json=SLOW)
        until(lambda: server.service.engine.metrics().queued == 1)
        with plain(server).stream("POST", GENERATE, json={**SLOW, "stream": True, "trace": True}) as streamed:
            first = next(line for line in streamed.iter_lines() if line.startswith("data: "))
            gate.open.set()
        assert json.loads(first.removeprefix("data: ")) == {"type": "unmask.queued", "picture": 0, "position": 2}


def test_metrics_are_what_prometheus_reads() -> None:
    with serving(tiny()) as server:
        plain(server).post(GENERATE, json={"prompt": "a", "steps": 2, "plan": False})
        for number in range(3):
            plain(server).get(f"/nowhere/{number}")
        text = plain(server).get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert all(float(v) >= 0 for v in values.values())
    assert values[f'unmask_http_requests_total{{method="POST",path="{GENERATE}",status="200"}}'] == "1.0"
    assert values['unmask_http_requests_total{method="GET",path="other",status="404"}'] == "3.0"
    assert values[f'unmask_http_request_seconds_bucket{{le="+Inf",path="{GENERATE}"}}'] == "1.0"
    assert values["unmask_engine_finished_total"] == "1.0" and values["unmask_engine_steps_total"] == "2.0"
    read = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert read["unmask_engine_steps_total"] == 2 and read["unmask_draining"] == 0 and "_created" not in text
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert all(any(key.startswith(name) for name in named) for key in values)


@pytest.mark.slow
def test_mixed_clients_get_the_results_of_the_models_methods() -> None:
    """The shipped model: six clients at once, every kind of request, against the model's own methods one by one."""
    model = unmask.load("mini")
    slow, gate = gated(model)
    picture = Image.fromarray(render(sample("grid", "test", 0, 0), 128))
    few = ["schedule.steps=3"]
    with serving(slow, name="mini") as server:

        def draw(seed: int) -> Any:
            found = client(server).images.generate(
                model="mini", prompt="a red apple", extra_body={"steps": 3, "seed": seed, "plan": seed == 3}
            )
            return np.asarray(opened(found.data[0].b64_json))

        def ask(words: str) -> Any:
            found = client(server).chat.completions.create(model="mini", messages=asked(picture, words))
            return found.choices[0].message.content

        def ground() -> Any:
            return plain(server).post("/v1/ground", json={"image": data_url(picture), "phrases": ["the cat"]}).json()

        gate.open.clear()
        with ThreadPoolExecutor(6) as clients:
            drawn = [clients.submit(draw, seed) for seed in (1, 2, 3)]
            said = [clients.submit(ask, words) for words in ("what is this?", "how many are there?")]
            box = clients.submit(ground)
            until(lambda: server.service.under_way == 6)
            gate.open.set()
        for seed, found in zip((1, 2, 3), drawn, strict=True):
            alone = model.generate("a red apple", seed=seed, plan=seed == 3, settings=few)[0].image
            assert np.array_equal(found.result(), np.asarray(alone)), seed
        wanted = [model.ask(picture, words).text for words in ("what is this?", "how many are there?")]
        assert [s.result() for s in said] == wanted and all(wanted)
        own = model.ground(picture, ["the cat"]).boxes[0]
        assert box.result()["boxes"][0]["box"] == pytest.approx([v / 128 for v in own.corners], abs=1e-5)
        metrics = server.service.engine.metrics()
        assert metrics.forwards < metrics.steps  # they shared forwards


@pytest.mark.slow
def test_a_connection_stays_open_as_long_as_retry_after() -> None:
    with serving(tiny()) as server:
        connection = http.client.HTTPConnection(*server.listener.getsockname()[:2], timeout=60)
        for pause in (6, 0):  # uvicorn alone would close it after 5
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() and connection.sock
            time.sleep(pause)
        connection.close()
