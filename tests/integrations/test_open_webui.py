"""The requests that Open WebUI 0.12 sends to a server of OpenAI's API, and what it reads of the answers, replayed without it.

It has ten times as many packages as this project, so it is not installed. Its requests: the list of models with a key; a chat, always as a
stream with ``stream_options``, with the page's system message and parameters; earlier turns with empty text, where a turn was a picture
only; image generations of 512 x 512 pixels; image edits as a form whose field is ``image`` or ``image[]``. It shows ``delta.images``.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from unmask.pipeline.model import Model
from unmask.serving.server import Server, listen
from unmask.serving.service import Service


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with Server(Service(model, name="mini"), listen("127.0.0.1", 0)) as server:
        headers = {"Authorization": "Bearer none"}
        with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=300) as client:
            yield client


def streamed(client: httpx.Client, *messages: dict[str, Any], **more: Any) -> tuple[str, list[str], dict[str, Any]]:
    """The text, the image URLs and the usage of an answer, read as the page reads them."""
    body = {"model": "mini", "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **more}
    text, urls, usage = "", list[str](), dict[str, Any]()
    with client.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert "text/event-stream" in answer.headers["content-type"]
        for line in answer.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                urls += [image["image_url"]["url"] for image in choice["delta"].get("images") or []]
    return text, urls, usage


def opened(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def asked(image: str, question: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": image}}]
    return {"role": "user", "content": parts}


def test_the_list_of_models(client: httpx.Client) -> None:
    models = client.get("/models").json()
    assert models["object"] == "list" and [model["id"] for model in models["data"]] == ["mini"]


def test_a_drawing_appears_and_can_be_asked_about(client: httpx.Client) -> None:
    system = {"role": "system", "content": "You draw."}
    drawing = {"role": "user", "content": "draw a red apple"}
    _, (url,), usage = streamed(client, system, drawing, temperature=0.8, top_p=0.9, max_tokens=64, seed=3)
    assert opened(url).size == (128, 128) and usage["total_tokens"] > 0
    words, none, _ = streamed(client, asked(url, "what is it?"), seed=3)
    assert words and not none
    empty = {"role": "assistant", "content": ""}  # the page sends no pictures of the assistant
    _, again, _ = streamed(client, drawing, empty, {"role": "user", "content": "draw a blue cat"}, seed=3)
    assert len(again) == 1


def test_a_picture_of_the_image_settings(client: httpx.Client) -> None:
    wanted = {"model": "mini", "prompt": "a red apple", "n": 1, "size": "512x512", "response_format": "b64_json"}
    made = client.post("/images/generations", json=wanted)
    assert made.status_code == 200, made.text
    picture = base64.b64decode(made.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(picture)).size == (512, 512)
    form = {"model": "mini", "prompt": "make the background sand", "response_format": "b64_json"}
    for field, more in (("image", {"n": "1", "size": "512x512"}), ("image[]", {})):
        edited = client.post(
            "/images/edits", data={**form, **more}, files=[(field, ("image.png", picture, "image/png"))]
        )
        assert edited.status_code == 200, edited.text
        assert Image.open(io.BytesIO(base64.b64decode(edited.json()["data"][0]["b64_json"]))).width == (
            512 if more else 128
        )
