"""Answers in a form over HTTP, as the real ``openai`` client asks for them: always valid, or a clear refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from random import Random
from typing import Any, Literal

import openai
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, Field

import unmask
from unmask.grammars.answer_format import of_regex, of_schema
from unmask.serving.server import Server

from ..grammars.random_schemas import random_schema
from ..tiny_llada import make as llada
from .served import asked, client, plain, serving, tiny

torch.set_num_threads(1)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"], "description": "what colour is it?"},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "cat": {"type": "boolean"},
    },
}
JSON = {"content-type": "application/json"}
NUMBER = {"type": "regex", "regex": "one|two|three"}


def schema(given: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": given}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    model = unmask.load(llada(tmp_path_factory.mktemp("text") / "llada"))
    with serving(model, name="text") as served:
        yield served, model


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_noise((60, 40), 90).convert("RGB")


def content(chunks: Any) -> tuple[str, list[Any]]:
    kept = list(chunks)
    return "".join(c.choices[0].delta.content or "" for c in kept), kept


def test_json_about_a_picture(server: Server, picture: Image.Image) -> None:
    given = {"model": "tiny", "messages": asked(picture, "what is this?"), "seed": 3, "response_format": schema(SCHEMA)}
    own = tiny().ask(picture, "what is this?", seed=3, form=of_schema(SCHEMA))
    reply = client(server).chat.completions.create(**given)
    said = reply.choices[0].message.content
    assert said == own.text and json.loads(said) == own.value and set(own.value) == {"colour", "count", "cat"}
    assert reply.choices[0].finish_reason == "stop" and 0 < reply.usage.completion_tokens
    assert reply.unmask["settings"]["form"] == {"schema": SCHEMA}

    streamed, chunks = content(client(server).chat.completions.create(**given, stream=True))
    assert streamed == said and chunks[-1].choices[0].finish_reason == "stop"
    traced, chunks = content(
        client(server).chat.completions.create(**given, stream=True, extra_body={"trace": True, "steps": 6})
    )
    steps = [c.unmask for c in chunks if "tokens" in (getattr(c, "unmask", None) or {})]
    assert set(json.loads(traced)) == set(own.value) and steps[0]["of"] == 6
    assert not any(t["committed"] for t in steps[0]["tokens"]) and all(t["committed"] for t in steps[-1]["tokens"])


def test_a_model_of_pydantic_is_what_comes_back(server: Server, picture: Image.Image) -> None:
    class Colour(StrEnum):
        RED = "red"
        BLUE = "blue"

    class Size(BaseModel):
        big: bool

    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]
        size: Size | None = None

    class Thing(BaseModel):
        colour: Literal["red", "blue"]
        found: bool
        second: Colour
        third: Colour | None
        size: Size
        animal: Cat | Dog = Field(discriminator="kind")
        place: tuple[bool, Literal[1, 2]]
        share: float = Field(gt=0, le=1)

    reply = client(server).chat.completions.parse(
        model="tiny", messages=asked(picture, "what is this?"), response_format=Thing
    )
    assert isinstance(reply.choices[0].message.parsed, Thing)


def test_text_that_matches_a_regex(server: Server, picture: Image.Image) -> None:
    given = {"model": "tiny", "messages": asked(picture, "how many?"), "seed": 5, "response_format": NUMBER}
    said = client(server).chat.completions.create(**given).choices[0].message.content
    assert said in ("one", "two", "three")
    assert said == tiny().ask(picture, "how many?", seed=5, form=of_regex(NUMBER["regex"])).text
    assert content(client(server).chat.completions.create(**given, stream=True))[0] == said


def test_a_text_model_writes_json_itself(text: tuple[Server, Any]) -> None:
    server, model = text
    said = [{"role": "user", "content": "hello"}]
    given: dict[str, Any] = {"model": "text", "messages": said, "seed": 1, "max_tokens": 48}
    small = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", None]}}}
    reply = client(server).chat.completions.create(**given, response_format=schema(small))
    assert reply.choices[0].message.content == model.ask("hello", max_tokens=48, seed=1, form=of_schema(small)).text
    assert set(json.loads(reply.choices[0].message.content)) == {"a", "b"}
    word = {"type": "regex", "regex": "[a-f]{2,5}"}
    streamed, _ = content(client(server).chat.completions.create(**given, response_format=word, stream=True))
    assert re.fullmatch("[a-f]{2,5}", streamed)
    with pytest.raises(openai.BadRequestError, match="needs at least .* tokens, and there is room for 3"):
        client(server).chat.completions.create(**{**given, "max_tokens": 3}, response_format=schema(small))


def test_plain_text_is_no_form(server: Server, picture: Image.Image) -> None:
    given = {"model": "tiny", "messages": asked(picture, "what?"), "seed": 2, "max_tokens": 6}
    said = client(server).chat.completions.create(**given, response_format={"type": "text"})
    assert said.choices[0].message.content == tiny().ask(picture, "what?", max_tokens=6, seed=2).text


DOUBLING: dict[str, Any] = {"type": "boolean"}
for _ in range(31):
    DOUBLING = {"type": "array", "items": DOUBLING, "maxItems": 2}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "of no kind": ({}, "null is not supported"),
    "unknown": ({"type": "xml"}, "xml"),
    "no schema": ({"type": "json_schema"}, "has no schema"),
    "any JSON": ({"type": "json_object"}, "send json_schema"),
    "no regex": ({"type": "regex", "regex": ""}, "the regex is empty"),
    "broken regex": ({"type": "regex", "regex": "(a"}, "regex"),
    "a reference": (schema({"$ref": "#/$defs/a"}), "$ref"),
    "recursive": (schema({"type": "array", "items": {"$ref": "#"}}), "# refers to itself"),
    "another type for a list": (schema({**SCHEMA, "required": 3}), "schema.required: expected a list of names"),
    "references that double": (
        schema(
            {
                "$defs": {**{f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}},
                "$ref": "#/$defs/d0",
            }
        ),
        "schema",
    ),
    "the same words": (schema({"enum": ["red", "Red"]}), "with the same words"),
    "too large": ({"type": "regex", "regex": "(a|b)*a(a|b){20}"}, "takes more than"),
    "slow to prepare": ({"type": "regex", "regex": ".{1,600}"}, "takes more than 4000 states"),
    "slow to weigh": ({"type": "regex", "regex": "[a-z]{400,900}"}, "too complex"),
    "too long to read": ({"type": "regex", "regex": "a" * 20_001}, "more than 20,000 characters"),
    "no room": (schema({"type": "string", "minLength": 180}), "needs at least"),
    "lists that double": (schema(DOUBLING), "takes too long to build"),
    "many large patterns": (
        schema(
            {
                "type": "object",
                "properties": {f"p{i}": {"type": "string", "pattern": f".{{1,{200 - i}}}"} for i in range(100)},
            }
        ),
        "more than 20000 states",
    ),
    "very deep": (schema(json.loads('{"anyOf":[' * 400 + '{"type":"null"}' + "]}" * 400)), "nested"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("given, said", WRONG.values(), ids=WRONG)
def test_wrong_forms_are_refused(
    server: Server, picture: Image.Image, given: dict[str, Any], said: str, stream: bool
) -> None:
    sent = {
        "messages": asked(picture, "what?"),
        "max_tokens": 100 if "900" in str(given) else 8,
        "response_format": given,
        "stream": stream,
    }
    response = plain(server).post("/v1/chat/completions", json=sent)
    late = response.text.partition("event: error\ndata: ")[2]  # what takes long to find out is told in the stream
    assert response.status_code == (200 if late else 400) and (stream or not late)
    error = json.loads(late or response.text)["error"]
    assert error["code"] == "invalid_value" and error["param"] in ("response_format", None), error
    assert said in error["message"] and '"content": "' not in response.text.replace('"content": ""', "")


def test_a_turn_that_may_draw_has_no_form(server: Server, picture: Image.Image) -> None:
    for messages, draw in (([{"role": "user", "content": "draw a dog"}], None), (asked(picture, "draw a dog"), True)):
        sent = {"messages": messages, "draw": draw, "response_format": NUMBER}
        response = plain(server).post("/v1/chat/completions", json=sent)
        error = response.json()["error"]
        assert (
            response.status_code == 400 and error["param"] == "response_format" and "have a format" in error["message"]
        )


@pytest.mark.parametrize("seed", range(3))
def test_random_schemas_are_answered_or_refused(server: Server, picture: Image.Image, seed: int) -> None:
    """Valid and malformed bodies; a number that JSON lacks makes the whole body invalid, and is refused too. Some values have hundreds of
    tokens, so several of them are unmasked in a step.
    """
    rng, messages = Random(seed), asked(picture, "what?")
    codes = []
    for _ in range(40):
        body = {"messages": messages, "max_tokens": 8, "steps": 8, "response_format": schema(random_schema(rng))}
        response = plain(server).post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
        codes.append(response.status_code)
        assert codes[-1] in (200, 400), (body["response_format"], response.text)
        if codes[-1] == 400:
            assert set(response.json()["error"]) >= {"message", "type", "code", "param"}
    assert {200, 400} == set(codes)
