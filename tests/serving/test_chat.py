"""Chat requests of ordinary clients: images in answers, fields that mean nothing, and fields that are refused by name."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image

import unmask
from unmask.serving.server import Server
from unmask.tasks.conversing import Message

from ..tiny_llada import make as llada
from .served import asked, client, data_url, opened, plain, serving, tiny

torch.set_num_threads(1)
PATH = "/v1/chat/completions"
DOT = Image.new("RGB", (8, 8), "red")
DRAW: list[dict[str, Any]] = [{"role": "user", "content": "draw a red apple"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny()) as served:
        yield served


@pytest.fixture(scope="module")
def mini() -> Iterator[Server]:
    with serving(unmask.load("mini"), name="mini") as served:
        yield served


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    model = unmask.load(llada(tmp_path_factory.mktemp("text") / "llada"))
    with serving(model, name="text") as served:
        yield served, model


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


# -- images in answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["draw a red apple", "draw a dog and a blue bus", "hello"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("output", ["images", "markdown"])
def test_a_drawing_is_the_same_plain_and_streamed(mini: Server, words: str, seed: int, output: str) -> None:
    given: dict[str, Any] = {"seed": seed, "image_output": output}
    messages = [{"role": "user", "content": words}]
    (choice,) = answered(mini, messages, **given)["choices"]
    message, streamed = choice["message"], joined(chunks(mini, messages, **given))
    assert choice["finish_reason"] == streamed["finish_reason"] == "stop"
    assert message["content"] == streamed["content"]
    assert message.get("images", []) == streamed["images"]
    assert len(message["unmask"]["images"]) == 1 and message["unmask"]["images"][0]["plan"]["things"]


def test_a_drawing_does_not_depend_on_other_requests(mini: Server) -> None:
    question = asked(DOT, "what colour is the apple?")
    alone = {seed: answered(mini, DRAW, seed=seed)["choices"] for seed in range(3)}
    with ThreadPoolExecutor(9) as pool:
        plain_ones = {seed: pool.submit(answered, mini, DRAW, seed=seed) for seed in alone}
        streams = {seed: pool.submit(chunks, mini, DRAW, seed=seed) for seed in alone}
        others = [pool.submit(answered, mini, question, seed=seed) for seed in alone]
    assert {other.result()["choices"][0]["message"]["content"] for other in others} == {"red"}
    for seed, (choice,) in alone.items():
        assert plain_ones[seed].result()["choices"] == [choice]
        message = joined(streams[seed].result())
        assert message["images"] == choice["message"]["images"] and message["content"] == choice["message"]["content"]


def test_the_image_is_in_the_message(mini: Server) -> None:
    message = answered(mini, DRAW)["choices"][0]["message"]
    (image,) = message["images"]
    assert image["type"] == "image_url" and image["index"] == 0 and message["content"] == ""
    url, own = image["image_url"]["url"], message["unmask"]["images"][0]["b64_json"]
    assert url == f"data:image/png;base64,{own}"
    assert opened(own).size == (128, 128)


def test_the_image_is_in_the_content_as_markdown(mini: Server) -> None:
    message = answered(mini, DRAW, image_output="markdown")["choices"][0]["message"]
    own = message["unmask"]["images"][0]["b64_json"]
    assert message["content"] == f"![image](data:image/png;base64,{own})" and "images" not in message


def test_text_and_an_image_of_one_turn(server: Server) -> None:
    """A tiny model says and draws anything; the words of a turn are joined as in Python."""
    for seed in range(6):
        turn = tiny().converse([Message(role="user", text="draw a dog")], seed=seed)
        messages = [{"role": "user", "content": "draw a dog"}]
        message = answered(server, messages, seed=seed)["choices"][0]["message"]
        assert message["content"] == turn.text and len(message.get("images", [])) == len(turn.images)
        for image, own in zip(message.get("images", []), turn.images, strict=True):
            raw = base64.b64decode(image["image_url"]["url"].partition(",")[2])
            assert Image.open(io.BytesIO(raw)).convert("RGB").tobytes() == own.tobytes()
        assert joined(chunks(server, messages, seed=seed))["content"] == turn.text


def test_modalities_ask_for_an_image(mini: Server) -> None:
    """An edit in a chat, as OpenRouter's clients ask for it."""
    picture = opened(answered(mini, DRAW)["choices"][0]["message"]["unmask"]["images"][0]["b64_json"])
    edit = asked(picture, "make the background sand")
    assert answered(mini, edit, modalities=["image", "text"])["choices"][0]["message"]["images"]
    assert "images" not in answered(mini, edit, modalities=["text"])["choices"][0]["message"]


@pytest.mark.parametrize("output", ["images", "markdown"])
def test_an_answer_may_be_sent_back(mini: Server, output: str) -> None:
    message = answered(mini, DRAW, image_output=output)["choices"][0]["message"]
    question = {"role": "user", "content": "what colour is the apple?"}
    reply = answered(mini, [*DRAW, message, question], draw=False)["choices"][0]["message"]
    assert reply["content"] == "red"


# -- fields -----------------------------------------------------------------------------------------------------------

OPTIONAL = (
    *(
        "model",
        "seed",
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
    found = answered(server, messages, **{"seed": 1, **more, **({"seed": 1} if "seed" in more else {})})
    assert found["choices"] == usual["choices"] and found["usage"] == usual["usage"]
    assert found["unmask"]["warnings"] == []


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
    "an empty stop": ({"stop": ""}, "stop.0"),
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


# -- several answers, usage, limits -----------------------------------------------------------------------------------


def test_several_answers(server: Server) -> None:
    messages = asked(DOT, "what is this?")
    found = answered(server, messages, n=3, temperature=2)
    alone = [answered(server, messages, seed=1 + i, temperature=2) for i in range(3)]
    assert [c["index"] for c in found["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in found["choices"]] == [a["choices"][0]["message"]["content"] for a in alone]
    assert len({c["message"]["content"] for c in found["choices"]}) > 1
    assert [c["message"]["unmask"]["seed"] for c in found["choices"]] == [1, 2, 3]
    assert found["usage"]["completion_tokens"] == sum(a["usage"]["completion_tokens"] for a in alone)
    assert found["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    stream = chunks(server, messages, n=3, temperature=2)
    assert [joined(stream, i)["content"] for i in range(3)] == [c["message"]["content"] for c in found["choices"]]


def test_usage_of_a_stream(server: Server) -> None:
    messages = asked(DOT, "what is this?")
    whole = answered(server, messages)
    assert not any("usage" in chunk for chunk in chunks(server, messages))
    assert not any("usage" in chunk for chunk in chunks(server, messages, stream_options={"include_usage": False}))
    *before, last = chunks(server, messages, stream_options={"include_usage": True}, trace=True)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in before)
    assert before[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_maximum_above_what_is_possible_is_no_error(mini: Server, name: str) -> None:
    messages = asked(DOT, "what colour is the apple?")
    usual = answered(mini, messages)
    for most in (1025, 32_000, 10**30):
        found = answered(mini, messages, **{name: most})
        assert found["choices"] == usual["choices"] and found["usage"] == usual["usage"]


def test_an_answer_ends_before_a_stop(server: Server) -> None:
    """Of a random model: letters that it does write."""
    messages = asked(DOT, "what is this?")
    for seed in range(4):
        whole = answered(server, messages, seed=seed, max_tokens=24)["choices"][0]["message"]["content"]
        for stop in (whole[3:5], whole[-1:], [whole[1:4], "never"]):
            first = min(at for one in ([stop] if isinstance(stop, str) else stop) if (at := whole.find(one)) >= 0)
            given = {"seed": seed, "max_tokens": 24, "stop": stop}
            (choice,) = answered(server, messages, **given)["choices"]
            assert choice["message"]["content"] == whole[:first] and choice["finish_reason"] == "stop"
            assert joined(chunks(server, messages, **given))["content"] == whole[:first]


def test_a_sampler_that_masks_tokens_again_streams_what_it_answers(server: Server) -> None:
    for seed in range(4):
        given = {"seed": seed, "sampler": "remdm", "max_tokens": 12}
        (choice,) = answered(server, asked(DOT, "what is this?"), **given)["choices"]
        assert joined(chunks(server, asked(DOT, "what is this?"), **given))["content"] == choice["message"]["content"]


def test_temperature_and_top_p_of_an_answer(server: Server) -> None:
    messages = asked(DOT, "what is this?")
    usual = answered(server, messages, max_tokens=12)["choices"]
    hot = answered(server, messages, max_tokens=12, temperature=2)["choices"]
    assert answered(server, messages, max_tokens=12, temperature=0)["choices"] == usual != hot
    assert answered(server, messages, max_tokens=12, temperature=2, top_p=0)["choices"] == usual
    assert answered(server, messages, max_tokens=12, temperature=2, seed=2)["choices"] != hot


def test_a_text_model_reads_the_whole_conversation(text: tuple[Server, Any]) -> None:
    server, model = text
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "who are you?"}]},
    ]
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    before = [
        Message(role=role, text=text) for role, text in (("system", "be brief"), ("user", "hello"), ("assistant", "hi"))
    ]
    own = model.ask("who are you?", messages=before, seed=1, **given)
    found = answered(server, said, **given)
    assert found["choices"][0]["message"]["content"] == own.text
    assert found["choices"][0]["finish_reason"] == own.finish_reason
    assert found["unmask"]["unread"] == 0 and found["unmask"]["warnings"] == []
    assert joined(chunks(server, said, **given))["content"] == own.text
    assert answered(server, said[-1:], **given)["choices"] != found["choices"]
    stopped = answered(server, said, **given, stop=own.text[1:3])["choices"][0]["message"]["content"]
    assert stopped == own.text[: own.text.find(own.text[1:3])]
    for more in ({"modalities": ["image"]}, {"draw": True}):
        assert sent(server, said, **more).status_code == 400


def test_the_openai_client(mini: Server) -> None:
    """What its types make of the fields that they do not have."""
    reply = client(mini).chat.completions.create(model="mini", messages=DRAW, seed=1)  # type: ignore[arg-type]
    (image,) = reply.choices[0].message.images  # type: ignore[attr-defined]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    stream = client(mini).chat.completions.create(
        model="mini",
        messages=DRAW,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    )
    kept = list(stream)
    assert [c for c in kept if c.choices and getattr(c.choices[0].delta, "images", None)][0].choices[
        0
    ].delta.images == [image]
    assert kept[-1].usage is not None and kept[-1].usage.total_tokens > 0 and not kept[-1].choices
