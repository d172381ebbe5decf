"""The field ``speed``: the result of the Python API, named parts, the server's own default, and wrong values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.serving.schema import SPEED
from unmask.serving.server import Server
from unmask.tasks.speeds import speed_of

from .served import data_url, opened, plain, serving, tiny

torch.set_num_threads(1)
FAST = "refresh=2,steps=0.5,threshold=0.9"
SENT: dict[str, Any] = {"prompt": "a dog", "seed": 2, "plan": False}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as running:
        yield running


@pytest.fixture(scope="module")
def fast_server() -> Iterator[Server]:
    with serving(tiny().with_speed(FAST)) as running:
        yield running


def draw(server: Server, **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
    (entry,) = plain(server).post("/v1/images/generations", json={**SENT, **more}).json()["data"]
    return np.asarray(opened(entry["b64_json"])), entry["unmask"]


def test_a_picture_at_a_speed(server: Server, fast_server: Server) -> None:
    exact, fast = (model.generate("a dog", seed=2, plan=False)[0] for model in (tiny(), tiny().with_speed(FAST)))
    assert exact.image != fast.image
    for where, more, wanted in (
        (server, {}, exact),
        (server, {"speed": "exact"}, exact),
        (server, {"speed": FAST}, fast),
        (fast_server, {}, fast),
        (fast_server, {"speed": "exact"}, exact),
    ):
        picture, details = draw(where, **more)
        assert np.array_equal(picture, np.asarray(wanted.image)), more
        assert details.get("approximate", []) == list(wanted.approximate)
    assert fast.approximate == ("refresh=2", "steps=0.5")


def test_a_sampler_at_a_speed(server: Server) -> None:
    _, details = draw(server, speed="steps=0.5", sampler="remdm", settings=["eta=0.7"])
    assert details["approximate"] == ["steps=0.5"] and details["settings"]["selection"]["sigma"]["eta"] == 0.7


def test_fast_requests_share_the_engine(server: Server) -> None:
    """Requests at different speeds and steps run together; each has its own result."""
    sent = [{"seed": n, "speed": speed} for n, speed in enumerate(["exact", FAST, "refresh=3", "steps=0.25"])]
    alone = [draw(server, **more)[0] for more in sent]
    several = plain(server).post("/v1/images/generations", json={**SENT, "n": 3, "speed": FAST}).json()["data"]
    for n, entry in enumerate(several):
        model = tiny().with_speed(FAST)
        wanted = model.generate("a dog", seed=2 + n, plan=False)[0].image
        assert np.array_equal(np.asarray(opened(entry["b64_json"])), np.asarray(wanted))
    assert len({picture.tobytes() for picture in alone}) == 4


def test_texts_and_edits_at_a_speed(server: Server) -> None:
    seen = Image.new("RGB", (128, 128), "red")
    parts = [{"type": "image_url", "image_url": {"url": data_url(seen)}}, {"type": "text", "text": "what is this?"}]
    asked = {"seed": 1, "messages": [{"role": "user", "content": parts}], "speed": "threshold=0.9"}
    answered = plain(server).post("/v1/chat/completions", json=asked).json()
    wanted = tiny().with_speed("threshold=0.9").ask(seen, "what is this?", seed=1)
    assert answered["choices"][0]["message"]["content"] == wanted.text
    assert answered["unmask"]["approximate"] == ["threshold=0.9"]
    streamed = plain(server).post("/v1/chat/completions", json={**asked, "stream": True}).text
    assert '"approximate": ["threshold=0.9"]' in streamed
    said = plain(server).post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], **_AT})
    assert said.json()["unmask"]["approximate"][-1] == "threshold=0.9"
    filled = plain(server).post("/v1/infill", json={"text": "a [mask] dog", **_AT}).json()
    assert filled["approximate"] == ["threshold=0.9"]
    found = plain(server).post("/v1/ground", json={"image": data_url(seen), "phrases": ["the dog"], **_AT})
    assert found.status_code == 200 and "approximate" not in found.json()


_AT = {"seed": 1, "speed": "threshold=0.9"}


@pytest.mark.parametrize(
    ("speed", "message"),
    [("fsat", "did you mean 'fast'"), ("fast,steps=2", "0.5 is half the steps"), ("x" * 101, "speed"), (2, "speed")],
)
def test_a_wrong_speed_names_the_field(server: Server, speed: object, message: str) -> None:
    reply = plain(server).post("/v1/images/generations", json={**SENT, "speed": speed})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "speed" and message in error["message"]


@pytest.mark.parametrize("speed", ["exact", "fast", FAST, "interval=0:0.5,cache=3", "fast,steps=1", "refresh"])
def test_the_schema_allows_speeds(speed: str) -> None:
    assert re.fullmatch(SPEED, speed) and speed_of(speed)
    assert not re.fullmatch(SPEED, f"{speed},fsat")
