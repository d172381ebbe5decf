"""Fields of chat requests: those that mean nothing, those that are refused by name, and messages as clients write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import unmask
from unmask.serving.server import Server

from .chats import DOT, DRAW, PATH, answered, chunks, sent
from .served import asked, data_url, plain, serving, tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


@pytest.fixture(scope="module")
def mini() -> Iterator[Server]:
    with serving(unmask.load("mini"), name="mini") as served:
        yield served


OPTIONAL = (
    *(
        "model",
        "settings",
        "sampler",
        "priority",
        "steps",
        "guidance",
        "n",
        "draw",
        "image_output",
        "modalities",
    ),
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "response_format", "stream"),
    *("stream_options", "trace", "tools", "functions", "tool_choice", "logprobs", "logit_bias", "audio", "user"),
)
HARMLESS: dict[str, dict[str, Any]] = {
    "null for everything": dict.fromkeys(OPTIONAL),
    "no tools": {"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "functions": []},
    "tools are optional": {"tool_choice": "auto", "function_call": "auto"},
    "no log probabilities": {"logprobs": False, "top_logprobs": 0, "logit_bias": {}},
    "no penalties": {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
    "no limits": {"top_k": 0, "min_p": 0, "top_p": 1},
    "bookkeeping": {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "safety_identifier": "s",
        "service_tier": "auto",
    },
    "hints": {"reasoning_effort": "low", "verbosity": "low", "prediction": {"type": "content", "content": "red"}},
    "one answer": {"n": 1},
    "greedy": {"temperature": 0},
    "no stop": {"stop": []},
    "plain text": {"response_format": {"type": "text"}, "modalities": ["text"]},
    "options of no stream": {"stream": False, "stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("more", HARMLESS.values(), ids=HARMLESS)
def test_fields_that_mean_nothing_change_nothing(server: Server, more: dict[str, Any]) -> None:
    messages = asked(DOT, "what is this?")
    usual = answered(server, messages)
    found = answered(server, messages, **more)
    assert found["choices"] == usual["choices"] and found["usage"] == usual["usage"]
    assert found["unmask"]["warnings"] == []


def test_a_seed_of_null_is_random(server: Server) -> None:
    messages = asked(DOT, "what is this?")
    assert (
        answered(server, messages, seed=None)["unmask"]["seed"]
        != answered(server, messages, seed=None)["unmask"]["seed"]
    )


def test_unknown_fields_are_ignored_and_named(server: Server) -> None:
    messages = asked(DOT, "what is this?")
    found = answered(server, messages, provider={"order": []}, chat_id="7")
    assert found["choices"] == answered(server, messages)["choices"]
    assert found["unmask"]["warnings"] == ["unknown fields were ignored: provider, chat_id"]
    (*_, last) = chunks(server, messages, provider={})
    assert last["unmask"]["warnings"] == ["unknown fields were ignored: provider"]
    raw = json.dumps({"messages": messages, "seed": 1, "\ud800": 1})
    assert plain(server).post(PATH, content=raw, headers={"content-type": "application/json"}).status_code == 200


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "a required tool": ({"tool_choice": "required"}, "tool_choice"),
    "a named tool": ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    "log probabilities": ({"logprobs": True}, "logprobs"),
    "top log probabilities": ({"top_logprobs": 3}, "top_logprobs"),
    "a bias": ({"logit_bias": {"5": 10}}, "logit_bias"),
    "presence": ({"presence_penalty": 0.5}, "presence_penalty"),
    "frequency": ({"frequency_penalty": -1}, "frequency_penalty"),
    "top_k": ({"top_k": 40}, "top_k"),
    "a voice": ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    "speech": ({"modalities": ["text", "audio"]}, "modalities"),
    "a search": ({"web_search_options": {}}, "web_search_options"),
    "another server's format": ({"guided_json": {"type": "object"}}, "guided_json"),
    "many answers": ({"n": 11}, "n"),
    "no answer": ({"n": 0}, "n"),
    "hot": ({"temperature": 2.1}, "temperature"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "many stops": ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    "misspelt": ({"temprature": 1}, "temprature"),
    "an empty stop": ({"stop": ""}, "stop"),
    "stop with a format": ({"stop": "a", "response_format": {"type": "regex", "regex": "a+"}}, "stop"),
    "another output": ({"image_output": "url"}, "image_output"),
}  # fmt: skip


@pytest.mark.parametrize("more, param", REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_name(server: Server, more: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        response = sent(server, asked(DOT, "what is this?"), stream=stream, **more)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param and param in error["message"]


PART = {"type": "image_url", "image_url": {"url": data_url(DOT)}}
MESSAGES: dict[str, tuple[list[Any], str, str]] = {
    "a tool's result": ([{"role": "tool", "tool_call_id": "1", "content": "7"}], "messages.0.role", "tool"),
    "a tool call": (
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, *DRAW], "messages.0.tool_calls", "tools"
    ),
    "sound": ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0.type", "input_audio"),
    "a file": ([{"role": "user", "content": [PART, {"type": "file"}]}], "messages.0.content.1.type", '"file"'),
    "a number": ([{"role": "user", "content": 7}], "messages.0.content", "text or a list"),
    "no role": ([{"content": "hi"}], "messages.0.role", "role"),
    "an image of the system": ([{"role": "system", "content": [PART]}, *DRAW], "messages.0.content", "system"),
    "a part without its text": ([{"role": "user", "content": [{"type": "text"}, PART]}], "messages.0.content.0", "text"),
    "a part without its image": ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0", "image_url"),
    "two images": ([{"role": "user", "content": [PART, PART, {"type": "text", "text": "what?"}]}], "messages", "has 2"),
    "a remote image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "https://a.example/b.png"}, {"type": "text", "text": "?"}]}],
        "messages", "does not fetch",
    ),
    "no image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,aGk="}, {"type": "text", "text": "?"}]}],
        "messages", "image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("messages, param, said", MESSAGES.values(), ids=MESSAGES)
def test_messages_that_are_refused(server: Server, messages: list[Any], param: str, said: str) -> None:
    response = sent(server, messages)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and said in error["message"]


def test_parts_as_clients_write_them(server: Server) -> None:
    usual = answered(server, asked(DOT, "what is this?"))["choices"]
    url, words = data_url(DOT), {"type": "text", "text": "what is this?"}
    for image in (
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "index": 0},
        {"type": "image_url", "image_url": {"url": url, "detail": None}, "text": None},
    ):
        messages = [{"role": "user", "content": [image, words], "name": None}]
        assert answered(server, messages)["choices"] == usual


def test_what_is_not_read_is_named(mini: Server) -> None:
    question = asked(DOT, "what colour is the apple?")
    assert answered(mini, question)["unmask"]["warnings"] == []
    system = {"role": "system", "content": "be brief"}
    (warning,) = answered(mini, [system, *question])["unmask"]["warnings"]
    assert "system messages" in warning
    answer = {"role": "assistant", "content": "red"}
    (warning,) = answered(mini, [*question, answer, *question])["unmask"]["warnings"]
    assert "earlier images" in warning
    (warning,) = answered(mini, question, top_p=0.5)["unmask"]["warnings"]
    assert "top_p" in warning
