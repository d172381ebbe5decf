"""A server in this process on a free port, for a tiny model with random weights behind a gate, and clients to test it with."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import openai
from PIL import Image

import unmask
from unmask.pipeline.model import Model
from unmask.serving.engine import Limits
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

from ..tiny_model import make


class Gate:
    """A network whose forwards wait until the gate is open, or fail with ``fault``."""

    def __init__(self, net: Any) -> None:
        self.net, self.open, self.fault, self.forwards = net, threading.Event(), None, 0
        self.open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        assert self.open.wait(60)
        self.forwards += 1
        if self.fault:
            raise self.fault
        return self.net(*given, **named)


@cache
def tiny() -> Model:
    """Its layouts are short: with 44 tokens, most forwards of a test would be those of a layout."""
    with TemporaryDirectory() as folder:
        made = unmask.load(make(Path(folder)))
    return Model(made.parts, replace(made.presets, plan_length=8))


def gated(model: Model | None = None) -> tuple[Model, Gate]:
    model = model or tiny()
    gate = Gate(model.parts.net)
    return Model(replace(model.parts, net=gate, weights=None), model.presets), gate


@contextmanager
def serving(model: Any, *, name: str = "tiny", running: int = 8, queued: int = 8, **server: Any) -> Iterator[Server]:
    service = Service(model, name=name, limits=Limits(running=running, queued=queued))
    with Server(service, listen("127.0.0.1", 0), **server) as served:
        yield served


def client(server: Server, key: str = "none") -> openai.OpenAI:
    quick = (
        openai.DefaultHttpxClient(verify=False) if server.tls is None else None
    )  # else it reads all certificates there are
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120, http_client=quick)


def plain(server: Server) -> httpx2.Client:
    return httpx2.Client(base_url=server.url, timeout=120, verify=server.tls is not None)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds:.0f} s"
        time.sleep(0.01)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")


def asked(image: Image.Image, words: str) -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": words},
                {"type": "image_url", "image_url": {"url": data_url(image)}},
            ],
        }
    ]
