"""The OpenAPI document matches the server: every answer, error and header is described, and every described request is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel

import unmask
from unmask.serving import contract
from unmask.serving.access import Access, plain_keys
from unmask.serving.server import Server

from ..tiny_llada import make
from .served import asked, data_url, gated, plain, png, serving, tiny

torch.set_num_threads(1)
DRAW, EDIT, INFILL, GROUND = "/v1/images/generations", "/v1/images/edits", "/v1/infill", "/v1/ground"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
RED = Image.new("RGB", (8, 8), "red")
HALF = Image.new("L", (8, 8), 255)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    return plain(server).get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_operation_describes_its_answers_and_errors(document: dict[str, Any]) -> None:
    paths = {path for path, _, _ in operations(document)}
    assert {
        DRAW,
        EDIT,
        INFILL,
        GROUND,
        CHAT,
        "/v1/models",
        "/v1/fields",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= paths
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, method, operation in operations(document):
        statuses = set(operation["responses"])
        wanted = {"200", "403", "405", "413", "500"} | (
            {"400", "404", "415", "429", "503"} if method == "post" else set()
        )
        assert wanted <= statuses and "422" not in statuses, (path, method)
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"] and answer["description"]
            if method != "head" and status >= "400" and (path, status) != ("/readyz", "503"):
                assert answer["content"] == error
            if status in ("405", "429"):
                assert {"405": "Allow", "429": "Retry-After"}[status] in answer["headers"]
        content = operation["responses"]["200"].get("content", {})
        assert (content == {}) == (method == "head")
        assert all(kind["schema"] != {} for kind in content.values())
        assert ("get" in document["paths"][path]) == ("head" in document["paths"][path])
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    for path in (DRAW, EDIT, INFILL, CHAT):
        assert "text/event-stream" in document["paths"][path]["post"]["responses"]["200"]["content"]


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names and names <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in text


def test_keys_are_described_where_the_server_has_some() -> None:
    with serving(tiny(), access=Access(keys=plain_keys(["k"]))) as served:
        document = plain(served).get("/openapi.json").json()
        for path, _, operation in operations(document):
            assert ("401" in operation["responses"]) == ("security" in operation) == path.startswith("/v1")


def shaped(model: type[BaseModel], value: Any) -> None:
    """The value is described by the model, in every field."""
    model.model_validate(value, strict=True)


def events(text: str) -> Iterator[Any]:
    for block in text.strip().split("\n\n"):
        data = next((line.removeprefix("data: ") for line in block.splitlines() if line.startswith("data: ")), "[DONE]")
        if data != "[DONE]":
            yield json.loads(data)


def test_answers_have_the_described_shape(server: Server) -> None:
    ask = plain(server)
    shaped(contract.ModelList, ask.get("/v1/models").json())
    shaped(contract.ModelCard, ask.get("/v1/models/tiny").json())
    shaped(contract.FieldSchemas, ask.get("/v1/fields").json())
    shaped(contract.Status, ask.get("/healthz").json())
    shaped(contract.Status, ask.get("/readyz").json())
    draw = {"prompt": "a dog", "steps": 1, "seed": 1}
    for more in ({}, {"reflect": 2, "n": 2}, {"plan": True}, {"response_format": "url", "size": "64x64"}):
        shaped(contract.Pictures, ask.post(DRAW, json={**draw, **more}).json())
    files = {"image": ("a.png", png(RED)), "mask": ("m.png", png(HALF))}
    shaped(contract.Pictures, ask.post(EDIT, data={"prompt": "a", "steps": 1}, files=files).json())
    url, mask = data_url(RED), data_url(HALF)
    shaped(contract.Pictures, ask.post(INFILL, json={"image": url, "mask": mask, "steps": 1}).json())
    shaped(contract.Filled, ask.post(INFILL, json={"text": "a [mask]"}).json())
    shaped(contract.Grounded, ask.post(GROUND, json={"image": url, "phrases": ["a", "b"]}).json())
    chat: dict[str, Any] = {"messages": asked(RED, "what is this?"), "max_tokens": 3, "seed": 1}
    turn: dict[str, Any] = {"messages": [{"role": "user", "content": "draw a dog"}], "max_tokens": 3}
    for body in (chat, {**chat, "n": 2}, turn, {**turn, "image_output": "markdown"}):
        shaped(contract.ChatAnswer, ask.post(CHAT, json=body).json())


def test_events_have_the_described_shape(server: Server) -> None:
    draw = {
        "prompt": "a dog",
        "steps": 2,
        "stream": True,
        "trace": True,
        "partial_images": 1,
        "plan": True,
        "reflect": 2,
    }
    seen = list(events(plain(server).post(DRAW, json=draw).text))
    for event in seen:
        shaped(contract.PictureEvent, event)
    assert {"image_generation.partial_image", "image_generation.completed", "unmask.frame"} <= {e["type"] for e in seen}
    chat = {
        "messages": asked(RED, "a"),
        "max_tokens": 3,
        "stream": True,
        "trace": True,
        "stream_options": {"include_usage": True},
    }
    for event in events(plain(server).post(CHAT, json=chat).text):
        shaped(contract.ChatChunk, event)


def test_continuations_have_the_described_shape(tmp_path: Path) -> None:
    with serving(unmask.load(make(tmp_path / "llada"))) as served:
        paths = plain(served).get("/openapi.json").json()["paths"]
        assert {COMPLETE, CHAT, INFILL} <= set(paths) and not {DRAW, EDIT, GROUND} & set(paths)
        assert "text/event-stream" in paths[COMPLETE]["post"]["responses"]["200"]["content"]
        body = {"prompt": "why", "max_tokens": 3}
        shaped(contract.CompletionAnswer, plain(served).post(COMPLETE, json=body).json())
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        for event in events(plain(served).post(COMPLETE, json=streamed).text):
            shaped(contract.CompletionAnswer, event)
        chat = {"messages": [{"role": "user", "content": "why"}], "max_tokens": 3}
        shaped(contract.ChatAnswer, plain(served).post(CHAT, json=chat).json())
        shaped(contract.ModelList, plain(served).get("/v1/models").json())


def test_errors_have_the_described_shape() -> None:
    model, gate = gated()
    with serving(model, running=1, queued=1) as served:
        ask = plain(served)
        many = ask.post(DRAW, json={"prompt": "a", "n": 10})
        gate.fault = RuntimeError("the network fails")
        failed = ask.post(DRAW, json={"prompt": "a"})
        gate.fault = None
        found = [
            many,
            failed,
            ask.get("/v1/models/other"),
            ask.get("/nothing"),
            ask.delete("/v1/models"),
            ask.post(DRAW),
        ]
        for answer in found:
            shaped(contract.Error, answer.json())
        assert [answer.status_code for answer in found] == [400, 500, 404, 404, 405, 400]


def test_limits_of_the_model_are_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    text = json.dumps(schemas["Draw"])
    assert "schedule[.]steps=" in text and '"remdm"' in text and "additionalProperties" not in schemas["Draw"]
    assert schemas["Ground"]["properties"]["image"]["pattern"] and schemas["Infill"]["anyOf"]
    assert schemas["Chat"]["properties"]["tools"]["enum"] == [[], None]
    assert "user" in schemas["Draw"]["properties"] and "data" in json.dumps(schemas["Pictures"])


def test_boxes_in_any_order_are_accepted_with_a_warning(server: Server) -> None:
    def draw(box: list[float]) -> dict[str, Any]:
        body = {"prompt": "a dog", "steps": 1, "seed": 1, "boxes": [{"phrase": "a dog", "box": box}]}
        answer = plain(server).post(DRAW, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]

    right, reversed_ = draw([0.2, 0.1, 0.5, 0.9]), draw([0.5, 0.9, 0.2, 0.1])
    assert reversed_["b64_json"] == right["b64_json"] and not any("boxes" in w for w in right["unmask"]["warnings"])
    assert any("boxes" in w for w in reversed_["unmask"]["warnings"])
    for empty in ([0, 0, 0, 0], [1, 1, 1, 1], [0.5, 0, 0.5, 1]):
        x1, y1, x2, y2 = draw(empty)["unmask"]["plan"]["things"][0]["box"]
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def test_messages_after_the_question_are_not_read(server: Server) -> None:
    question = asked(RED, "what is this?")
    body = {"messages": question, "max_tokens": 3, "seed": 1}
    more = {**body, "messages": [*question, {"role": "system", "content": "be brief"}]}
    first, second = (plain(server).post(CHAT, json=b).json() for b in (body, more))
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]
    assert any("after the last one of the user" in w for w in second["unmask"]["warnings"])
    only = plain(server).post(CHAT, json={"messages": [{"role": "assistant", "content": "hi"}]})
    assert only.status_code == 400 and only.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    "field, value", [("stream", 0), ("stream", 1.0), ("n", True), ("seed", False), ("guidance", True)]
)
def test_switches_are_no_numbers(server: Server, field: str, value: object) -> None:
    answer = plain(server).post(DRAW, json={"prompt": "a", "steps": 1, field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
