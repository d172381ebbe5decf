"""Malformed and hostile requests. Public idea: ``KINDS[name](rng, model)`` yields ``Raw`` requests of a kind without end."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from clients import Job, wire
from PIL import Image
from served import scene

from unmask.pipeline.model import Model
from unmask.serving.answers import fields

DRAW, EDIT, INFILL, GROUND, CHAT = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/infill",
    "/v1/ground",
    "/v1/chat/completions",
)
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A request as bytes. ``stream``: nothing but bytes for a socket, without any HTTP of ours."""

    method: str = "POST"
    path: str = "/"
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    stream: bytes = b""


def posted(path: str, body: Any) -> Raw:
    """``body`` as JSON, NaN and lone surrogates included."""
    return Raw(path=path, data=json.dumps(body).encode("utf-8", "surrogatepass"))


def pictures(rng: random.Random, model: Model) -> Iterator[Raw]:
    """Damaged files, bombs, odd modes and sizes, in every place that takes a picture."""
    while True:
        data = rng.choice([_damaged, _bomb, _odd, _noise])(rng)
        url = rng.choice(["data:image/png;base64,", "data:;base64,", "data:image/png,", "data:text/html;base64,"])
        if rng.random() < 0.8:
            url = "data:image/png;base64,"
        url += base64.b64encode(data).decode()
        if rng.random() < 0.1:
            url = rng.choice([url[:-1], url + "!", "http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:", ""])
        part = {"type": "image_url", "image_url": {"url": url}}
        yield rng.choice(
            [
                posted(GROUND, {"image": url, "phrases": ["a"]}),
                posted(CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}),
                posted(INFILL, {"image": url, "mask": url, "prompt": "a", "steps": 1}),
                _form(rng, data),
            ]
        )


def _damaged(rng: random.Random) -> bytes:
    """A file that was cut, or of which some bits fell."""
    buffer = io.BytesIO()
    scene(rng.randrange(4)).save(buffer, rng.choice(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM"]))
    data = bytearray(buffer.getvalue())
    for _ in range(rng.randrange(1, 20)):
        data[int(len(data) * rng.random() ** 3)] ^= 1 << rng.randrange(8)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)


def _bomb(rng: random.Random) -> bytes:
    """A small PNG that says it is enormous, and holds next to nothing, or zeros that take little room."""
    width, height = rng.choice([(2**31 - 1, 2**31 - 1), (60000, 60000), (100_000, 700), (1, 2**30), (0, 5), (1, 1)])
    inside = zlib.compress(bytes(rng.choice([0, 100, 2**22])))
    text = zlib.compress(bytes(rng.choice([10, 2**24])))
    head = struct.pack(">IIBBBBB", width, height, rng.choice([1, 8, 16, 99]), rng.choice([0, 2, 3, 6, 9]), 0, 0, 0)
    chunks = [(b"IHDR", head), (b"zTXt", b"a\0\0" + text), (b"IDAT", inside), (b"IEND", b"")]
    pieces = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def _odd(rng: random.Random) -> bytes:
    """A valid file in a rare format."""
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
    size = rng.choice([(1, 1), (1, 2000), (3000, 1), (7, 5), (129, 127)])
    buffer = io.BytesIO()
    try:
        Image.new(mode, size).save(buffer, rng.choice(["PNG", "JPEG", "TIFF", "WEBP", "GIF"]))
    except (OSError, ValueError, KeyError):
        return _noise(rng)
    return buffer.getvalue()


def _noise(rng: random.Random) -> bytes:
    head = rng.choice(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"<svg>", b"%PDF"]
    )
    return head + rng.randbytes(rng.randrange(300))


def _form(rng: random.Random, data: bytes) -> Raw:
    """An edit whose form is right, or nearly."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    body: dict[str, Any] = {"prompt": rng.choice(["a", "", "\0", "é" * 50]), "steps": rng.choice([1, -1, "x"])}
    body[rng.choice(["image", "image", "image", "mask", "imag"])] = url
    sent, kind = wire(Job(kind="", path=EDIT, body=body, form=True))
    if rng.random() < 0.2:
        sent = sent[: rng.randrange(len(sent))]
    if rng.random() < 0.1:
        kind = rng.choice(["multipart/form-data", "multipart/form-data; boundary=", "text/plain", kind + "x"])
    return Raw(path=EDIT, data=sent, headers={"content-type": kind})


def texts(rng: random.Random, model: Model) -> Iterator[Raw]:
    """The model's own control tokens as user text, and characters that break parsers."""
    text = model.parts.text
    special = [text.show([i]) for i in range(text.size) if text.decode([i]) == "" or text.show([i]).startswith("<")][
        :400
    ]
    odd = ["\0", "\ud800", "\u202e", "\ufeff", "😀", "\u0301" * 50, "[mask]", "a" * 9000, "word " * 450, " ", "\n", "é"]
    while True:
        said = "".join(rng.choice([*special, *odd, "a cat "]) for _ in range(rng.randrange(1, 12)))
        yield rng.choice(
            [
                posted(DRAW, {"prompt": said, "steps": 1, "plan": rng.random() < 0.2}),
                posted(INFILL, {"text": said}),
                posted(CHAT, {"messages": [{"role": rng.choice(["user", "assistant", said]), "content": said}]}),
                posted(CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": said}]}] * 2}),
                posted(DRAW, {"prompt": "a", "steps": 1, "boxes": [{"phrase": said, "box": [0.1, 0.1, 0.9, 0.9]}]}),
                posted(DRAW, {"prompt": "a", "model": said, said: 1}),
            ]
        )


def numbers(rng: random.Random, model: Model) -> Iterator[Raw]:
    """Extreme numbers in numeric fields, and values that are no numbers."""
    odd = [
        float("nan"),
        float("inf"),
        -float("inf"),
        1e308,
        -1,
        0,
        -0.0,
        2**53,
        2**63,
        10**400,
        "1",
        "x",
        None,
        True,
        [],
        {},
    ]
    odd += [[[[]]], 1.5, "١", "1e3", "0x10", 10**18]
    names = ["seed", "steps", "guidance", "n", "reflect", "priority", "partial_images", "size", "boxes", "max_tokens"]
    while True:
        body: dict[str, Any] = {"prompt": "a", "steps": 1}
        for _ in range(rng.randrange(1, 4)):
            body[rng.choice(names[:9])] = rng.choice(odd)
        box = {"prompt": "a", "steps": 1, "boxes": [{"phrase": "a", "box": [rng.choice(odd) for _ in range(4)]}]}
        chat = {"messages": [{"role": "user", "content": "draw a cat"}], rng.choice(names): rng.choice(odd)}
        yield rng.choice(
            [
                posted(DRAW, body),
                posted(DRAW, {**body, "stream": True, "trace": True}),
                posted(DRAW, box),
                posted(CHAT, chat),
                posted(INFILL, {"text": "a [mask]", "seed": rng.choice(odd)}),
            ]
        )


def settings(rng: random.Random, model: Model) -> Iterator[Raw]:
    """Every setting that there is, and some that there are not, with values that lead nowhere."""
    known = [row["name"] for part in fields(model).values() for row in part.get("x-unmask-settings", [])]
    strange = [
        "__class__.__init__",
        "schedule",
        "a.b.c",
        "",
        ".",
        "guidance.",
        ".scale",
        "draw.keep.ids",
        "schedule.steps.real",
        "=",
        "é",
    ]
    values = [
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1",
        "0",
        "1e-300",
        "9999",
        "-9999",
        "true",
        "",
        "[]",
        "1,2",
        "x",
        "0.5",
        "1",
    ]
    while True:
        told = [f"{rng.choice(known + strange)}={rng.choice(values)}" for _ in range(rng.randrange(1, 4))]
        url = f"data:image/png;base64,{base64.b64encode(_odd(rng)).decode()}"
        yield rng.choice(
            [
                posted(DRAW, {"prompt": "a", "settings": ["schedule.steps=2", *told]}),
                posted(INFILL, {"text": "a [mask]", "settings": told}),
                posted(GROUND, {"image": url, "phrases": ["a"], "settings": told}),
                posted(CHAT, {"messages": [{"role": "user", "content": "draw a cat"}], "settings": told}),
            ]
        )


def wires(rng: random.Random, model: Model) -> Iterator[Raw]:
    """Requests that are wrong before anybody reads their fields."""
    paths = [
        DRAW,
        EDIT,
        INFILL,
        GROUND,
        CHAT,
        "/v1/models",
        "/v1/models/x",
        "/metrics",
        "/",
        "/web/../api.py",
        "/web/%2e%2e/api.py",
    ]
    junk = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"0",
        b'"a"',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"\0",
    ]
    junk += [b'{"prompt": "a", "prompt": 1}', b'{"prompt": "\\ud800", "steps": 1}', b" " * 10_000, b'{"messages": {}}']
    while True:
        path = rng.choice(paths)
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
        kind = rng.choice(
            ["application/json", "", "text/plain", "application/json; charset=utf-16", "multipart/form-data"]
        )
        headers = {"content-type": kind, "x-request-id": rng.choice(["a", "x" * 500, "a b", "\t"])}
        yield rng.choice(
            [
                Raw(method=method, path=path, data=rng.choice(junk), headers=headers),
                Raw(path=rng.choice(paths[:5]), data=rng.choice(junk)),
                Raw(method="GET", path="/" + quote(rng.randbytes(rng.randrange(1, 40)))),
                Raw(stream=_lines(rng, path)),
            ]
        )


def _lines(rng: random.Random, path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
    return rng.choice(
        [
            rng.randbytes(200),
            head + b"content-length: 99\r\n\r\n{}",
            head + b"content-length: -1\r\n\r\n",
            head + b"content-length: 99999999999999\r\n\r\n",
            head + b"transfer-encoding: chunked\r\n\r\n5\r\n{}\r\n",
            head + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            head + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        ]
    )


KINDS: dict[str, Callable[[random.Random, Model], Iterator[Raw]]] = {
    **{"pictures": pictures, "texts": texts, "numbers": numbers, "settings": settings, "wires": wires}
}
