"""Chat requests for tests: sent plainly and as a stream, and what the pieces of a stream add up to."""

from __future__ import annotations

import json
from typing import Any

import httpx2
from PIL import Image

from unmask.serving.server import Server

from .served import plain

PATH = "/v1/chat/completions"
DOT = Image.new("RGB", (8, 8), "red")
DRAW: list[dict[str, Any]] = [{"role": "user", "content": "draw a red apple"}]


def sent(server: Server, messages: Any, **more: Any) -> httpx2.Response:
    return plain(server).post(PATH, json={"messages": messages, "seed": 1, **more})


def answered(server: Server, messages: Any, **more: Any) -> dict[str, Any]:
    response = sent(server, messages, **more)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(server: Server, messages: Any, **more: Any) -> list[dict[str, Any]]:
    response = sent(server, messages, stream=True, **more)
    blocks = [block.removeprefix("data: ") for block in response.text.strip().split("\n\n")]
    assert response.status_code == 200 and blocks[-1] == "[DONE]", response.text
    return [json.loads(block) for block in blocks[:-1]]


def joined(stream: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message that the deltas of a choice add up to, with its finish_reason."""
    message: dict[str, Any] = {"content": "", "images": []}
    for chunk in stream:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                message["content"] += choice["delta"].get("content") or ""
                message["images"] += choice["delta"].get("images", [])
                message["finish_reason"] = choice["finish_reason"]
    return message
