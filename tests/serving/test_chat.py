"""Chat answers for ordinary clients: their images, several of them, their usage and their limits."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.serving.server import Server, listen
from unmask.serving.service import Service
from unmask.tasks.conversing import Message

from ..tiny_llada import make as llada
from .chats import DOT, DRAW, answered, chunks, joined, sent
from .served import asked, client, opened, serving, tiny

torch.set_num_threads(1)


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


def test_the_server_says_where_images_are_unless_the_request_does(mini: Server) -> None:
    with Server(Service(mini.service.model, name="mini", image_output="markdown"), listen("127.0.0.1", 0)) as server:
        given = {"seed": 1}
        for more, inside in (({}, True), ({"image_output": "images"}, False), ({"image_output": "markdown"}, True)):
            message = answered(server, DRAW, **given, **more)["choices"][0]["message"]
            assert ("![image](data:image/png;base64," in (message["content"] or "")) is inside
            assert ("images" in message) is not inside
            assert joined(chunks(server, DRAW, **given, **more))["content"] == message["content"]


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
