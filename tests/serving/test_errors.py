"""Whatever is sent: an answer of OpenAI's shape, 4xx where it is the client's fault, and a server that goes on."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from PIL import Image

from unmask.serving.access import Access, plain_keys
from unmask.serving.server import Server

from .served import asked, client, data_url, gated, plain, png, serving, tiny, until

torch.set_num_threads(1)
DOT = Image.new("RGB", (8, 8), "red")
JSON = {"content-type": "application/json"}
GENERATE, CHAT, GROUND, INFILL = "/v1/images/generations", "/v1/chat/completions", "/v1/ground", "/v1/infill"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny(), access=Access(most_bytes=2**20)) as served:
        yield served


def refused(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and "Traceback" not in response.text
    assert response.headers["x-request-id"]
    return error


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = (40000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "half a character": b'{"prompt": "\\ud800"}',
    "no number": b'{"prompt": "a", "guidance": NaN}',
    "infinite": b'{"prompt": "a", "guidance": Infinity}',
    "overflowing": b'{"prompt": "a", "guidance": 1e999}',
    "huge": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "large": b'{"prompt": "a", "seed": 99999999999999999999}',
    "nested": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_invalid_bodies(server: Server, body: bytes) -> None:
    refused(plain(server).post(GENERATE, content=body, headers=JSON))


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty prompt": (GENERATE, {"prompt": ""}, "prompt"),
    "blank prompt": (GENERATE, {"prompt": "  "}, "prompt: it is empty"),
    "invisible phrase": (GROUND, {"image": data_url(DOT), "phrases": ["a", "\u200b"]}, "phrases.1: it is empty"),
    "text for a number": (GENERATE, {"prompt": "a", "steps": "8"}, "steps: must be an integer, got \"8\""),
    "text for a switch": (GENERATE, {"prompt": "a", "trace": "true"}, "trace: must be true or false"),
    "long prompt": (GENERATE, {"prompt": "dog " * 1999}, "longer than 400 tokens"),
    "wrong type": (GENERATE, {"prompt": 7}, "prompt"),
    "too many": (GENERATE, {"prompt": "a", "n": 11}, "n: "),
    "misspelt": (GENERATE, {"prompt": "a", "stepps": 3}, "did you mean steps?"),
    "no steps": (GENERATE, {"prompt": "a", "steps": 0}, "steps"),
    "not square": (GENERATE, {"prompt": "a", "size": "1536x1024"}, "square images; use auto, or a square"),
    "too large": (GENERATE, {"prompt": "a", "size": "4097x4097"}, "must be 1 to 4096"),
    "no side": (GENERATE, {"prompt": "a", "size": "0x0"}, "must be 1 to 4096"),
    "no size": (GENERATE, {"prompt": "a", "size": "big"}, "'big' is not a size"),
    "a number as size": (GENERATE, {"prompt": "a", "size": 512}, "size"),
    "transparent": (GENERATE, {"prompt": "a", "background": "transparent"}, "no transparent images"),
    "unknown quality": (GENERATE, {"prompt": "a", "quality": "best"}, "quality"),
    "unknown style": (GENERATE, {"prompt": "a", "style": "oil"}, "style"),
    "unknown format": (GENERATE, {"prompt": "a", "output_format": "gif"}, "output_format"),
    "unknown response": (GENERATE, {"prompt": "a", "response_format": "file"}, "response_format"),
    "compression too high": (GENERATE, {"prompt": "a", "output_compression": 101}, "output_compression"),
    "unknown setting": (GENERATE, {"prompt": "a", "settings": ["schedule.stepz=3"]}, "did you mean 'steps'"),
    "no setting": (GENERATE, {"prompt": "a", "settings": ["steps"]}, "settings"),
    "setting no number": (GENERATE, {"prompt": "a", "settings": ["guidance.scale=nan"]}, "out of range"),
    "setting too large": (GENERATE, {"prompt": "a", "settings": ["token_sampler.temperature=1e300"]}, "out of range"),
    "setting no number at all": (GENERATE, {"prompt": "a", "settings": ["guidance.scale=much"]}, "not a number"),
    "zero steps as a setting": (GENERATE, {"prompt": "a", "settings": ["schedule.steps=0"]}, "at least one step"),
    "fixed by the model": (GENERATE, {"prompt": "a", "settings": ["guidance.null_id=999999"]}, "fixed by the model"),
    "luminance too high": (GENERATE, {"prompt": "a", "luminance": 1.1}, "luminance"),
    "contrast too high": (GENERATE, {"prompt": "a", "contrast": 0.6}, "contrast"),
    "negative crop": (GENERATE, {"prompt": "a", "crop": [0, -1]}, "crop.1"),
    "box outside": (GENERATE, {"prompt": "a", "boxes": [{"phrase": "a", "box": [0, 0, 2, 1]}]}, "boxes.0.box.2"),
    "plan and boxes": (GENERATE, {"prompt": "a", "plan": True, "boxes": [{"phrase": "a", "box": [0, 0, 1, 1]}]}, "plan themselves"),
    "priority": (GENERATE, {"prompt": "a", "priority": 9}, "priority"),
    "no messages": (CHAT, {"messages": []}, "messages"),
    "assistant last": (CHAT, {"messages": [{"role": "assistant", "content": "hi"}]}, "must be from the user"),
    "unknown role": (CHAT, {"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
    "no picture": (CHAT, {"messages": [{"role": "user", "content": "hi"}], "draw": False}, "no image"),
    "remote URL": (GROUND, {"image": "https://example.com/a.png", "phrases": ["a"]}, "does not fetch URLs"),
    "local path": (GROUND, {"image": "/etc/passwd", "phrases": ["a"]}, "does not fetch URLs"),
    "no base64": (GROUND, {"image": "data:image/png;base64,%%%", "phrases": ["a"]}, "invalid base64"),
    "not in base64": (GROUND, {"image": "data:image/png,abc", "phrases": ["a"]}, "image: "),
    "no comma": (GROUND, {"image": "data:image/png;base64", "phrases": ["a"]}, "malformed"),
    "no phrases": (GROUND, {"image": data_url(DOT), "phrases": []}, "phrases"),
    "blank phrase": (GROUND, {"image": data_url(DOT), "phrases": [" "]}, "empty"),
    "no gap": (INFILL, {"text": "a dog"}, "[mask]"),
    "image alone": (INFILL, {"image": data_url(DOT)}, "mask"),
    "sizes differ": (INFILL, {"image": data_url(DOT), "mask": data_url(DOT.resize((9, 9)))}, "the same size"),
    "nothing painted": (INFILL, {"image": data_url(DOT), "mask": data_url(Image.new("L", (8, 8)))}, "region is empty"),
}  # fmt: skip


@pytest.mark.parametrize("path, sent, hint", WRONG.values(), ids=WRONG)
def test_invalid_requests_name_the_error(server: Server, path: str, sent: dict[str, Any], hint: str) -> None:
    assert hint in refused(plain(server).post(path, json=sent))["message"]
    if path != GROUND:  # as a stream too: nothing has begun, so it is a status all the same
        assert hint in refused(plain(server).post(path, json={**sent, "stream": True}))["message"]


PICTURES = {
    "no picture": b"hello",
    "nothing": b"",
    "cut off": png(Image.effect_noise((64, 64), 90))[:500],
    "a bomb": bomb(),
}


@pytest.mark.parametrize("file", PICTURES.values(), ids=PICTURES)
def test_invalid_images(server: Server, file: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    refused(plain(server).post(GROUND, json={"image": url, "phrases": ["a"]}))
    refused(plain(server).post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("a.png", file)}))


def test_invalid_forms(server: Server) -> None:
    edits, file = "/v1/images/edits", ("a.png", png(DOT))
    assert "multipart" in refused(plain(server).post(edits, json={"prompt": "a"}), 415)["message"]
    assert "no image" in refused(plain(server).post(edits, data={"prompt": "a"}, files={"mask": file}))["message"]
    two = [("image[]", file), ("image[]", file)]
    assert "only one file" in refused(plain(server).post(edits, data={"prompt": "a"}, files=two))["message"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(plain(server).post(edits, content=b"--y\r\nnothing", headers=broken))
    refused(plain(server).post(edits, data={"prompt": "a", "steps": "many"}, files={"image": file}))
    refused(plain(server).post(edits, data={"prompt": "a", "settings": "[1,"}, files={"image": file}))


def test_other_paths_and_methods(server: Server) -> None:
    assert refused(plain(server).get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(plain(server).get(GENERATE), 405)["code"] == "method_not_allowed"
    kept = plain(server).get("/healthz", headers={"x-request-id": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1"
    made = plain(server).get("/healthz", headers={"x-request-id": "not allowed!"})
    assert made.headers["x-request-id"].startswith("req-")


def test_the_size_limit_with_and_without_a_content_length(server: Server) -> None:
    large = json.dumps({"prompt": "a" * 2**20}).encode()
    assert refused(plain(server).post(GENERATE, content=large, headers=JSON), 413)["code"] == "too_large"

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 2**16):
            yield large[start : start + 2**16]

    assert refused(plain(server).post(GENERATE, content=pieces(), headers=JSON), 413)["code"] == "too_large"


def test_the_openai_client_raises_what_it_should(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean steps") as told:
        client(server).images.generate(model="tiny", prompt="a", extra_body={"stepps": 3})
    assert told.value.code == "invalid_value" and told.value.type == "invalid_request_error"


def test_keys() -> None:
    with serving(tiny(), access=Access(keys=plain_keys(["secret", "other"]))) as server:
        for key in ("wrong", "secre", "secrett", "é"):
            header = {"authorization": f"Bearer {key}".encode()}
            assert refused(plain(server).get("/v1/models", headers=header), 401)["code"] == "invalid_api_key"
        refused(plain(server).get("/v1/models"), 401)
        with pytest.raises(openai.AuthenticationError):
            client(server, "wrong").models.list()
        for key in ("secret", "other"):
            assert client(server, key).models.list().data
        for path in ("/healthz", "/readyz", "/metrics"):
            assert plain(server).get(path).status_code == 200


def test_other_sites_may_ask_only_if_they_are_named() -> None:
    asks = {"origin": "https://mine.example", "access-control-request-method": "POST"}
    allowed = "access-control-allow-origin"
    with serving(tiny()) as server:
        assert allowed not in plain(server).options(GENERATE, headers=asks).headers
        assert allowed not in plain(server).get("/v1/models", headers=asks).headers
    with serving(tiny(), access=Access(origins=("https://mine.example",), keys=plain_keys(["k"]))) as server:
        assert plain(server).options(GENERATE, headers=asks).headers[allowed] == "https://mine.example"
        told = plain(server).get("/v1/models", headers=asks)
        assert told.status_code == 401 and told.headers[allowed] == "https://mine.example"  # so that a page can read it
        other = plain(server).get("/v1/models", headers={**asks, "origin": "https://other.example"})
        assert allowed not in other.headers


def test_a_model_that_fails_is_told_without_details() -> None:
    model, gate = gated()
    with serving(model) as server:
        gate.fault = RuntimeError("out of memory, say")
        error = refused(plain(server).post(GENERATE, json={"prompt": "a"}), 500)
        assert error["code"] == "model_failed"
        broken = plain(server).post(GENERATE, json={"prompt": "a", "stream": True, "trace": True})
        last = broken.text.strip().split("\n\n")[-1]
        assert (
            last.startswith("event: error\n") and json.loads(last.split("data: ")[1])["error"]["code"] == "model_failed"
        )
        with pytest.raises(openai.APIError, match="out of memory"):
            list(client(server).chat.completions.create(
                model="tiny", messages=asked(DOT, "a"), stream=True, extra_body={"trace": True}
            ))  # fmt: skip
        gate.fault = None
        assert plain(server).post(GENERATE, json={"prompt": "a", "steps": 1}).status_code == 200
        until(lambda: server.service.under_way == 0)


def test_the_log_has_one_line_a_request_and_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.serving.logs import log_to

    stream = io.StringIO()
    undo = log_to(stream)
    try:
        with serving(tiny()) as server:
            plain(server).post(GENERATE, json={"prompt": "top secret", "steps": 1}, headers={"x-request-id": "a1"})
            plain(server).post(GENERATE, json={"prompt": ""})
    finally:
        undo()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line for line in lines if line["event"] == "request"]
    assert [(line["id"], line["status"]) for line in told[:1]] == [("a1", 200)] and told[1]["status"] == 400
    assert told[0]["path"] == GENERATE and told[0]["seconds"] > 0
    assert "secret" not in stream.getvalue() and not any("error" in line for line in lines)
