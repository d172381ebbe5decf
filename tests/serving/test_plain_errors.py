"""Errors are in plain words: they name the field as the client knows it, and no library. Whatever is sent, the shape is OpenAI's."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from unmask.serving.access import Access
from unmask.serving.errors import error_response
from unmask.serving.server import Server

from .served import asked, data_url, plain, serving, tiny

torch.set_num_threads(1)
DRAW, CHAT, GROUND, INFILL = "/v1/images/generations", "/v1/chat/completions", "/v1/ground", "/v1/infill"
JSON = {"content-type": "application/json"}
LEAKS = re.compile(
    r"constrained|Input should|pydantic|torch|safetensors|starlette|fastapi|numpy|PIL\b|Traceback|ValueError|TypeError"
    r"|type=|_type\b|function-|\bstr\b|\bint\b|\bdict\b|nullable|list\[|tuple\[|model_|site-packages|codec can't",
    re.IGNORECASE,
)
URL = data_url(Image.new("RGB", (8, 8), "red"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny(), access=Access(most_bytes=2**20)) as served:
        yield served


def refused(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert not LEAKS.search(body["error"]["message"]), body["error"]["message"]
    return body["error"]


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


FIELDS: dict[str, tuple[str, dict[str, Any], str | None, str]] = {
    "nothing": (DRAW, {}, "prompt", "required"),
    "a number as a text": (DRAW, {"prompt": 7}, "prompt", "must be a string, got 7"),
    "an object as a text": (DRAW, {"prompt": {}}, "prompt", "must be a string, got an object"),
    "a text as a number": (DRAW, {"prompt": "a", "steps": "many"}, "steps", 'must be an integer, got "many"'),
    "half a step": (DRAW, {"prompt": "a", "steps": 1.5}, "steps", "must be an integer, got 1.5"),
    "below the range": (DRAW, {"prompt": "a", "steps": 0}, "steps", "must be at least 1, got 0"),
    "above the range": (DRAW, {"prompt": "a", "n": 11}, "n", "must be at most 10, got 11"),
    "a large number": (DRAW, {"prompt": "a", "seed": 2**63}, "seed", "must be at most 9007199254740991"),
    "a huge number": (DRAW, {"prompt": "a", "seed": 10**100}, "seed", "a huge number"),
    "a word as a switch": (DRAW, {"prompt": "a", "stream": "maybe"}, "stream", "must be true or false"),
    "a choice": (DRAW, {"prompt": "a", "output_format": "gif"}, "output_format", 'must be png, jpeg or webp, got "gif"'),
    "a list that is none": (DRAW, {"prompt": "a", "settings": "a=1"}, "settings", "must be a list"),
    "inside a list": (DRAW, {"prompt": "a", "settings": ["a=1", 2]}, "settings.1", "must be a string, got 2"),
    "a setting": (DRAW, {"prompt": "a", "settings": ["steps"]}, "settings.0", "NAME=NUMBER"),
    "a short list": (DRAW, {"prompt": "a", "crop": [1]}, "crop.1", "required"),
    "inside an object in a list": (DRAW, {"prompt": "a", "boxes": [{"phrase": "a", "box": [0, 0, 2, 1]}]}, "boxes.0.box.2", "at most 1"),
    "no list of boxes": (DRAW, {"prompt": "a", "boxes": 5}, "boxes", "must be a list, got 5"),
    "a misspelt field": (DRAW, {"prompt": "a", "stepps": 3}, "stepps", "did you mean steps?"),
    "blank prompt": (DRAW, {"prompt": " \n"}, "prompt", "empty"),
    "long prompt": (DRAW, {"prompt": "dog " * 900}, "prompt", "longer than"),
    "no messages": (CHAT, {}, "messages", "required"),
    "no list of messages": (CHAT, {"messages": {}}, "messages", "must be a list, got an object"),
    "an empty list": (CHAT, {"messages": []}, "messages", "at least 1 item"),
    "no message": (CHAT, {"messages": ["hi"]}, "messages.0", 'must be an object, got "hi"'),
    "an unknown role": (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "robot"),
    "a number as content": (CHAT, said(7), "messages.0.content", "7"),
    "a part that is none": (CHAT, said(["hi"]), "messages.0.content.0", "must be an object"),
    "a part without a type": (CHAT, said([{"text": "a"}]), "messages.0.content.0.type", "required"),
    "an unknown part": (CHAT, said([{"type": "sound"}]), "messages.0.content.0.type", "sound"),
    "no image in a part": (CHAT, said([{"type": "text", "text": "a"}, {"type": "image_url"}]), "messages.0.content.1", "image_url"),
    "no url in a part": (CHAT, said([{"type": "image_url", "image_url": {}}]), "messages.0.content.0.image_url.url", "required"),
    "a url of another kind": (CHAT, said([{"type": "image_url", "image_url": {"url": 5}}]), "messages.0.content.0.image_url.url", "string"),
    "no data: URL": (GROUND, {"image": "https://a.example/b.png", "phrases": ["a"]}, "image", "does not fetch URLs"),
    "no picture": (GROUND, {"image": "data:image/png;base64,aGVsbG8=", "phrases": ["a"]}, "image", ""),
    "no phrases": (GROUND, {"image": URL, "phrases": []}, "phrases", "at least 1 item"),
    "an empty phrase": (GROUND, {"image": URL, "phrases": ["a", ""]}, "phrases.1", "at least 1 character"),
    "neither image nor text": (INFILL, {}, None, "image and mask"),
    "no gap": (INFILL, {"text": "a dog"}, "text", "[mask]"),
}  # fmt: skip


@pytest.mark.parametrize("path, body, param, words", FIELDS.values(), ids=FIELDS)
def test_the_field_is_named(server: Server, path: str, body: dict[str, Any], param: str | None, words: str) -> None:
    error = refused(plain(server).post(path, json=body))
    assert error["param"] == param and words in error["message"]
    assert error["code"] == "invalid_value" and error["type"] == "invalid_request_error"


BODIES: dict[str, tuple[bytes, str, int, str]] = {
    "nothing": (b"", "application/json", 400, "invalid_value"),
    "half an object": (b'{"prompt": ', "application/json", 400, "invalid_json"),
    "a list": (b"[]", "application/json", 400, "invalid_value"),
    "a string": (b'"a"', "application/json", 400, "invalid_value"),
    "null": (b"null", "application/json", 400, "invalid_value"),
    "not UTF-8": (b'{"prompt": "\xff"}', "application/json", 400, "invalid_json"),
    "deep": (b"[" * 50_000 + b"]" * 50_000, "application/json", 400, "invalid_json"),
    "many digits": (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
    "NaN": (b'{"prompt": "a", "guidance": NaN}', "application/json", 400, "invalid_value"),
    "Infinity": (b'{"prompt": "a", "guidance": -Infinity}', "application/json", 400, "invalid_value"),
    "a form": (b"prompt=a", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    "text": (b'{"prompt": "a"}', "text/plain", 415, "unsupported_media_type"),
    "no content type": (b'{"prompt": "a"}', "", 415, "unsupported_media_type"),
    "too large": (b'{"prompt": "' + b"a" * 2**20 + b'"}', "application/json", 413, "too_large"),
}


@pytest.mark.parametrize("body, kind, status, code", BODIES.values(), ids=BODIES)
def test_bodies_that_are_no_object(server: Server, body: bytes, kind: str, status: int, code: str) -> None:
    for path in (DRAW, CHAT, GROUND, INFILL):
        error = refused(plain(server).post(path, content=body, headers={"content-type": kind} if kind else {}), status)
        assert error["code"] == code


def test_the_last_of_two_equal_keys_counts_and_half_characters_are_refused(server: Server) -> None:
    twice = b'{"text": "no gap", "text": "a [mask]", "seed": 1}'
    assert plain(server).post(INFILL, content=twice, headers=JSON).status_code == 200
    half = b'{"text": "a [mask] \\ud800", "seed": 1}'
    error = refused(plain(server).post(INFILL, content=half, headers=JSON))
    assert error["param"] == "text" and "valid Unicode" in error["message"]


def test_paths_and_methods(server: Server) -> None:
    for path in ("/v1/nothing", "/nothing", "/web/nothing.js", "/v1"):
        error = refused(plain(server).get(path), 404)
        assert error["code"] == "not_found" and "/openapi.json" in error["message"]
    for method, path, allowed in (
        ("GET", DRAW, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("PUT", "/metrics", "GET"),
        ("PATCH", "/v1/models/tiny", "GET"),
        ("TRACE", "/healthz", "GET"),
    ):
        answer = plain(server).request(method, path)
        assert refused(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"] == allowed and allowed in answer.json()["error"]["message"]


def test_head_is_get_without_a_body(server: Server) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/fields", "/openapi.json"):
        head, whole = plain(server).head(path), plain(server).get(path)
        assert (
            head.status_code == 200
            and head.content == b""
            and head.headers["content-type"] == whole.headers["content-type"]
        )
    assert plain(server).head("/v1/nothing").status_code == 404
    assert plain(server).head(DRAW).status_code == 405


# -- whatever is sent -------------------------------------------------------------------------------------------------

WHOLE: dict[str, dict[str, Any]] = {
    DRAW: {"prompt": "a", "steps": 1, "boxes": [{"phrase": "a", "box": [0, 0, 0.5, 0.5]}], "settings": ["guidance.scale=1"]},
    CHAT: {**{"messages": asked(Image.new("RGB", (8, 8), "red"), "a")}, "max_tokens": 2},
    GROUND: {"image": URL, "phrases": ["a"], "steps": 1},
    INFILL: {"text": "a [mask]"},
}  # fmt: skip
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**30,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "a",
        " ",
        "\0",
        "\ud800",
        "null",
        "1",
        "a=1",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        {"url": URL},
        ["a"] * 3,
        [{}],
        "data:",
        "data:image/png;base64,",
        "x" * 300,
        [0.1] * 4,
    ),
]


def changed(rng: random.Random, value: Any) -> Any:
    """A body with one to three values replaced, removed or added, at any depth."""
    whole = copy.deepcopy(value)
    for _ in range(rng.randrange(1, 4)):
        place: Any = whole
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            if isinstance(place, dict) and rng.random() < 0.2:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.2:
                place[rng.choice(["extra", "n", "seed", "stream", "model", "response_format", "\ud800"])] = (
                    copy.deepcopy(rng.choice(ODD))
                )
            else:
                place[key] = copy.deepcopy(rng.choice(ODD))
            break
    return whole


@pytest.mark.parametrize("path", WHOLE)
def test_changed_bodies_are_answered_or_refused_in_plain_words(server: Server, path: str) -> None:
    rng, seen = random.Random(f"changed:{path}"), {200: 0, 400: 0, 404: 0}
    with plain(server) as browser:
        for _ in range(150):
            sent = changed(rng, WHOLE[path])
            if isinstance(sent.get("max_tokens"), int | float):  # a model with random weights writes up to its context
                sent["max_tokens"] = min(sent["max_tokens"], 8)
            body = json.dumps(sent).encode()
            answer = browser.post(path, content=body, headers=JSON)
            seen[answer.status_code] += 1
            assert "Traceback" not in answer.text
            if answer.status_code >= 400:
                refused(answer, answer.status_code)
    assert seen[400] >= 40


def test_the_text_of_other_libraries_is_not_sent() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        found = error_response(error)
    assert found.status == 400 and "Expecting" not in found.message and found.server_fault
