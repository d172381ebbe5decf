"""/v1/completions as the real ``openai`` client uses it, and as lm-eval's local-completions model asks: the model's own continuations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
import torch

import unmask
from unmask.pipeline.text_model import Continue, TextModel
from unmask.serving.completions import Complete, CompletionEvents
from unmask.serving.server import Server
from unmask.tasks.running import StepEvent

from ..tiny_llada import make
from .served import client, plain, serving, tiny

torch.set_num_threads(1)
PATH = "/v1/completions"
PROMPT = "why is the sky"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return unmask.load(make(tmp_path_factory.mktemp("models") / "llada"))


@pytest.fixture(scope="module")
def server(model: TextModel) -> Iterator[Server]:
    with serving(model, name="text") as served:
        yield served


def complete(server: Server, prompt: Any = PROMPT, **more: Any) -> Any:
    own = {key: more.pop(key) for key in ("steps", "settings") if key in more}
    given = {"max_tokens": 8, "seed": 1, **more}
    return client(server).completions.create(model="text", prompt=prompt, extra_body=own, **given)


def test_a_continuation_is_that_of_the_model(server: Server, model: TextModel) -> None:
    found = complete(server, max_tokens=12)
    alone = model.complete(PROMPT, max_tokens=12, seed=1)
    (choice,) = found.choices
    assert choice.text.strip() == alone.text and (choice.index, choice.logprobs) == (0, None)
    assert choice.finish_reason == alone.finish_reason and found.object == "text_completion" and found.model == "text"
    given = len(model.parts.text.encode(PROMPT))
    assert found.usage.prompt_tokens == given and 0 <= found.usage.completion_tokens <= 12
    assert found.usage.total_tokens == given + found.usage.completion_tokens
    assert found.unmask["seed"] == 1 and found.unmask["warnings"] == []


def test_a_continuation_keeps_its_leading_space_and_ends_at_a_whole_character(model: TextModel) -> None:
    """The token of a word includes the space before it, and prompt and continuation are joined as they are."""
    text, sent = model.parts.text, list[Any]()
    body = Complete(prompt=PROMPT, max_tokens=3, stream=True)
    built = Continue(prompt=PROMPT, length=3).build(model.parts)
    (span,) = (s for s in built.spans if s.writable)

    def after(ids: list[int], open_: int) -> CompletionEvents:
        now = replace(built, ids=built.ids.clone(), masked=built.masked.clone())
        now.ids[span.start : span.stop] = torch.tensor((ids + [0] * 3)[:3])
        now.masked[span.start : span.stop] = torch.tensor([i >= 3 - open_ for i in range(3)])
        events = CompletionEvents(sent.append, text, body, index=0)
        events.on_step(StepEvent(row=0, number=1, of=3, sequence=now), False)
        return events

    assert after(text.encode(" blue the is"), 0).read().text.startswith(" blue")
    assert after(text.encode(" blue"), 2).read().text.startswith(" ") and sent
    euro = text.encode("€")  # three bytes, each a token
    assert len(euro) == 3 and after(euro, 0).read().text == "€"
    assert after([*text.encode("a"), *euro], 0).read().text == "a"


def test_max_tokens_is_a_maximum(server: Server) -> None:
    long = complete(server, max_tokens=20).choices[0].text
    assert all(long.startswith(complete(server, max_tokens=n).choices[0].text.rstrip("\ufffd")) for n in (1, 5, 13))
    usual = client(server).completions.create(model="text", prompt=PROMPT, seed=1)
    assert usual.usage.completion_tokens <= 16
    assert complete(server, max_tokens=10**6).choices[0].text  # the model's context bounds it


def test_prompts_and_continuations(server: Server, model: TextModel) -> None:
    tokens = model.parts.text.encode(PROMPT)
    one = complete(server).choices[0].text
    assert complete(server, tokens).choices[0].text == one
    several = complete(server, [PROMPT, "the sky is"], n=2)
    assert [c.index for c in several.choices] == [0, 1, 2, 3] and several.choices[0].text == one
    assert several.choices[1].text == complete(server, seed=2).choices[0].text
    assert several.choices[2].text == complete(server, "the sky is").choices[0].text
    assert several.usage.prompt_tokens == len(tokens) + len(model.parts.text.encode("the sky is"))
    by_ids = complete(server, [tokens, model.parts.text.encode("the sky is")])
    assert [c.text for c in by_ids.choices] == [several.choices[0].text, several.choices[2].text]
    assert complete(server, echo=True).choices[0].text == PROMPT + one
    assert complete(server, tokens, echo=True).choices[0].text == PROMPT + one


def test_sampling_options(server: Server) -> None:
    assert complete(server, temperature=0).choices[0].text == complete(server).choices[0].text
    hot = [complete(server, temperature=1.5, top_p=0.9, seed=seed).choices[0].text for seed in range(3)]
    assert len(set(hot)) > 1 and complete(server, temperature=1.5, top_p=0.9, seed=0).choices[0].text == hot[0]
    assert complete(server, temperature=1.5, top_p=1e-9, seed=5).choices[0].text  # the most probable token alone
    warm = {"max_tokens": 20, "temperature": 1}
    text = complete(server, **warm).choices[0].text
    stop = text[len(text) // 2 :][:2]
    cut = complete(server, **warm, stop=[stop]).choices[0]
    assert stop and cut.text == text[: text.find(stop)] and cut.finish_reason == "stop"
    assert complete(server, **warm, stop=stop).choices[0].text == cut.text


def test_the_text_before_a_suffix_is_written(server: Server, model: TextModel) -> None:
    found = complete(server, "why is", suffix=" blue?", max_tokens=6, seed=2)
    assert found.choices[0].text.strip() == model.complete("why is", suffix=" blue?", max_tokens=6, seed=2).text
    given = len(model.parts.text.encode("why is")) + len(model.parts.text.encode(" blue?"))
    assert found.usage.prompt_tokens == given
    assert found.choices[0].text != complete(server, "why is", max_tokens=6, seed=2).choices[0].text


def test_streams_join_to_the_whole(server: Server) -> None:
    for more in ({}, {"n": 2}, {"echo": True}, {"stop": ["e", "is"], "max_tokens": 20}, {"suffix": " blue?"}):
        whole = complete(server, temperature=0.7, **more)
        texts, reasons = [""] * len(whole.choices), [None] * len(whole.choices)
        for chunk in complete(server, temperature=0.7, stream=True, **more):
            assert chunk.object == "text_completion" and chunk.usage is None
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == [c.text for c in whole.choices] and reasons == [c.finish_reason for c in whole.choices]


def test_a_stream_ends_with_its_usage_and_done(server: Server) -> None:
    chunks = list(complete(server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == complete(server).usage
    raw = plain(server).post(PATH, json={"prompt": PROMPT, "max_tokens": 4, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream") and raw.text.endswith("data: [DONE]\n\n")
    first = json.loads(raw.text.split("\n\n")[0].removeprefix("data: "))
    assert set(first) == {"id", "object", "created", "model", "choices"}
    assert set(first["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}


def test_what_lm_eval_sends(server: Server) -> None:
    """Its generation requests (local-completions): prompts as token ids, up to max_gen_toks; and those of log-likelihoods."""
    asks = {"prompt": [[40, 41, 42], [43, 44]], "model": "text", "max_tokens": 6, "temperature": 0, "seed": 1234}
    found = plain(server).post(PATH, json={**asks, "stop": ["\n\n", "Question:", "</s>"]})
    assert found.status_code == 200, found.text
    assert [(c["index"], type(c["text"])) for c in found.json()["choices"]] == [(0, str), (1, str)]
    scored = {"prompt": [40, 41], "model": "text", "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    error = plain(server).post(PATH, json=scored)
    assert error.status_code == 400 and error.json()["error"]["param"] == "logprobs"
    assert "likelihood" in error.json()["error"]["message"]


WRONG: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no prompt": ({}, "prompt", "required"),
    "an empty prompt": ({"prompt": ""}, "prompt", "at least 1 character"),
    "a blank prompt": ({"prompt": "  "}, "prompt", "empty"),
    "no prompts": ({"prompt": []}, "prompt", "at least 1 item"),
    "an empty one of several": ({"prompt": ["a", ""]}, "prompt.1", "at least 1 character"),
    "a number": ({"prompt": 5}, "prompt", "must be a string or a list, got 5"),
    "an object among the prompts": ({"prompt": ["a", {}]}, "prompt.1", "must be a string or a list"),
    "an unknown token": ({"prompt": [1, 10**6]}, "prompt", "not in the vocabulary"),
    "a negative token": ({"prompt": [[-1]]}, "prompt.0.0", "at least 0"),
    "a long prompt": ({"prompt": "sky " * 400}, "prompt", "context"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
    "an empty stop": ({"prompt": "a", "stop": [""]}, "stop.0", "at least 1 character"),
    "hot": ({"prompt": "a", "temperature": 3}, "temperature", "at most 2"),
    "penalties": ({"prompt": "a", "presence_penalty": 1}, "presence_penalty", "not supported"),
    "biases": ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    "the best of several": ({"prompt": "a", "best_of": 3}, "best_of", "not supported"),
    "log-probabilities": ({"prompt": "a", "logprobs": 0}, "logprobs", "likelihood"),
    "a long suffix": ({"prompt": "a", "suffix": "sky " * 400}, "prompt", "context"),
}  # fmt: skip


@pytest.mark.parametrize("body, param, words", WRONG.values(), ids=WRONG)
def test_errors_name_the_field(server: Server, body: dict[str, Any], param: str | None, words: str) -> None:
    answer = plain(server).post(PATH, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and words in error["message"]
    if body:
        streamed = plain(server).post(PATH, json={**body, "stream": True})
        assert streamed.status_code == 400 and streamed.json()["error"]["param"] == param


def test_neutral_values_of_unsupported_fields_are_accepted(server: Server) -> None:
    neutral = {
        "best_of": 1,
        "logprobs": None,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
    }
    assert complete(server, **neutral).choices[0].text == complete(server).choices[0].text
    odd = plain(server).post(PATH, json={"prompt": PROMPT, "max_tokens": 2, "whatever": 1}).json()
    assert "whatever" in odd["unmask"]["warnings"][0]


def test_an_image_model_names_the_path_to_use() -> None:
    with serving(tiny()) as served, pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
        client(served).completions.create(model="tiny", prompt="a dog")
