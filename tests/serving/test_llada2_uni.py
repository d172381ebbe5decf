"""LLaDA2.0-Uni behind the server: the OpenAI client draws and asks, and its edits and refusals are those of the model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import unmask
from tests.tiny_llada2 import write_uni_model
from unmask.serving.server import Server

from .served import client, plain, serving

RED = Image.new("RGB", (300, 200), "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uni_model(tmp_path_factory.mktemp("uni"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(unmask.load(folder, device="cpu"), name="uni") as served:
        yield served


def _png() -> bytes:
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_client_draws_the_same_picture(server: Server, folder: Path) -> None:
    made = client(server).images.generate(
        model="uni", prompt="a red fox", size="320x256", extra_body={"seed": 5, "steps": 2}
    )
    assert made.data and made.data[0].b64_json
    alone = unmask.load(folder, device="cpu").generate("a red fox", seed=5, steps=2, size=(256, 256))[0].image
    shown = Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json)))
    assert shown.size == (320, 256) and alone.size == (256, 256)


def test_the_client_asks_with_and_without_a_picture(server: Server, folder: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(_png()).decode()}"
    model = unmask.load(folder, device="cpu")
    for picture in (None, url):
        parts = [{"type": "text", "text": "What is it?"}]
        parts += [{"type": "image_url", "image_url": {"url": picture}}] if picture else []
        said = client(server).chat.completions.create(
            model="uni",
            messages=[{"role": "user", "content": parts}],
            max_tokens=6,  # type: ignore[list-item]
        )
        alone = model.ask(RED if picture else None, "What is it?", max_tokens=6)
        assert said.choices[0].message.content == alone.text != ""


def test_an_edit_and_a_refused_region(server: Server) -> None:
    form = {"prompt": "make it blue", "steps": "2"}
    answer = plain(server).post("/v1/images/edits", data=form, files={"image": ("a.png", _png())})
    assert answer.status_code == 200 and answer.json()["size"] == "256x256"
    files = {"image": ("a.png", _png()), "mask": ("m.png", _png())}
    refused = plain(server).post("/v1/images/edits", data=form, files=files)
    assert refused.status_code == 400 and "cannot infill" in refused.json()["error"]["message"], refused.json()
