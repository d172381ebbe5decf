"""Structured answers: always valid, batch-invariant, and what the embedded model is given."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.data.world.questions import questions
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.data.world.vocabulary import COLOUR_NAMES
from unmask.grammars.answer_format import of_regex, of_schema
from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks.forms import Fill, bound
from unmask.tasks.understand import Ask

from ..tiny_llada import make as make_llada
from ..tiny_model import make

torch.set_num_threads(1)
WRITES_JSON = {"field_by_field": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = unmask.load(make(tmp_path_factory.mktemp("tiny")))
    assert isinstance(model, Model)
    return model


@pytest.fixture(scope="module")
def writer(tiny: Model) -> Model:
    """The same model, decoding JSON by itself."""
    wording = dataclasses.replace(tiny.parts.wording, **WRITES_JSON)
    return Model(dataclasses.replace(tiny.parts, wording=wording), tiny.presets)


def picture(number: int = 0) -> Image.Image:
    return Image.fromarray(render(sample("grid", "validation", 0, number), 128))


def random_schema(rng: Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["enum", "boolean", "integer", "number", "string", "pattern", "anyOf", "array", "object", "object"]
    kind = "object" if depth == 0 else rng.choice(kinds[: 7 if depth > 2 else 10])
    if kind == "enum":
        return {"enum": rng.sample(["red", "Blue", 7, None, True, 'q"'], rng.randint(1, 4))}
    if kind == "boolean":
        return {"type": "boolean"}
    if kind in ("integer", "number"):
        low = rng.randint(-30, 30)
        return {"type": kind, "minimum": low, "maximum": low + rng.randint(0, 40)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 6)}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["[a-z]{1,3}", '"?x|y*', "(red|blue)?"])}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "array":
        return {
            "type": "array",
            "items": random_schema(rng, depth + 2),
            "minItems": rng.randint(0, 1),
            "maxItems": rng.randint(1, 2),
        }
    return {"type": "object", "properties": {f"k{i}": random_schema(rng, depth + 1) for i in range(rng.randint(1, 2))}}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """The check, written without the package."""
    if "enum" in schema:
        return any(value == v and type(value) is type(v) for v in schema["enum"])
    if "anyOf" in schema:
        return any(valid(value, s) for s in schema["anyOf"])
    kind = schema["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "number":
        return type(value) in (int, float) and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string" and "pattern" in schema:
        return isinstance(value, str) and bool(re.fullmatch(schema["pattern"], value))
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    if kind == "array":
        inside = isinstance(value, list) and all(valid(v, schema["items"]) for v in value)
        return inside and schema["minItems"] <= len(value) <= schema["maxItems"]
    names = list(schema["properties"])
    return (
        isinstance(value, dict)
        and list(value) == names
        and all(valid(value[n], schema["properties"][n]) for n in names)
    )


@pytest.mark.parametrize("number", range(12))
def test_answers_are_always_valid(number: int, tiny: Model, writer: Model) -> None:
    rng = Random(number)
    schema = random_schema(rng)
    settings = [[], ["schedule.each=3"], ["selection.noise=5", "schedule.each=2"]][number % 3]
    for model in (tiny, writer):
        try:
            said = model.ask(picture(), "what?", form=of_schema(schema), settings=settings, seed=number)
        except ValueError as wrong:  # words for two values that sound alike, an honest refusal
            assert "same words" in str(wrong) and model is tiny
            continue
        assert valid(said.value, schema), (said.value, schema)
        assert json.loads(said.text) == said.value and said.settings["form"] == {"schema": schema}
        json.dumps(said.to_json())


def test_a_regex_is_matched_to_the_last_character(tiny: Model) -> None:
    for pattern in (r"\d{2}-\d{2}", " ?[xyz]{5}", "(red|blue) apple(s)?"):
        said = tiny.ask(picture(), "what?", form=of_regex(pattern), trace=True)
        assert re.fullmatch(pattern, said.text) and said.value == said.text
        assert len(said.trace) > 1 and said.to_json()["value"] == said.text
    assert "value" not in tiny.ask(picture(), "what?").to_json()


def test_too_small_a_room_is_told_before_any_work(tiny: Model, writer: Model) -> None:
    form = of_schema({"type": "object", "properties": {"a": {"type": "boolean"}}})
    with pytest.raises(
        ValueError, match=r"at least (\d+) tokens, and there is room for 3; set max_tokens to \1 or more"
    ) as wrong:
        writer.ask(picture(), "what?", form=form, max_tokens=3)
    least = int(re.findall(r"at least (\d+)", str(wrong.value))[0])
    assert type(writer.ask(picture(), "what?", form=form, max_tokens=least).value["a"]) is bool
    assert tiny.ask(picture(), "what?", form=form, max_tokens=1).value["a"] in (True, False)
    many = {f"k{i}": {"type": "boolean", "description": "x " * 30} for i in range(200)}
    with pytest.raises(ValueError, match="the model's context of 4096; shorten the prompt"):
        tiny.ask(picture(), "what?", form=of_schema({"type": "object", "properties": many}))
    with pytest.raises(ValueError, match="longer than 400 tokens"):
        tiny.ask(picture(), "what?", form=of_schema({"type": "boolean", "description": "x " * 500}))


def test_a_larger_maximum_changes_no_value_and_costs_nothing(tiny: Model, writer: Model) -> None:
    """A smaller one neither, as long as it is enough; otherwise the value is decoded again in as many tokens."""
    properties = {"a": {"enum": ["red", "sea green"]}, "b": {"type": "integer", "minimum": 10, "maximum": 2000}}
    form = of_schema({"type": "object", "properties": properties})
    for model in (tiny, writer):
        usual = model.ask(picture(), "what?", form=form, trace=True)
        slots = form.slots(model.parts.text, model.parts.wording)
        least, same = max(slot.grammar.least for slot in slots), []
        for most in (least, least + 3, least + 9, 60, 100, 1024, 32000, 10**9):
            said = model.ask(picture(), "what?", form=form, max_tokens=most, trace=True)
            same.append((said.value, said.trace, said.finish_reason) == (usual.value, usual.trace, "stop"))
        assert same == sorted(same) and same[-4:] == [True] * 4, same
        short = model.ask(picture(), "what?", form=form, max_tokens=least)
        assert valid(short.value, {"type": "object", "properties": properties}) and short.finish_reason == "stop"


def test_a_value_that_is_longer_than_the_maximum_is_decoded_again(tiny: Model) -> None:
    form = of_regex("(a|bc){12}|a{3}")
    usual = tiny.ask(picture(), "what?", form=form)
    (slot,) = form.slots(tiny.parts.text, tiny.parts.wording)
    assert slot.grammar.least < 4
    short = tiny.ask(picture(), "what?", form=form, max_tokens=slot.grammar.least)
    assert re.fullmatch("(a|bc){12}|a{3}", short.text)
    assert len(tiny.parts.text.encode(short.text)) <= len(tiny.parts.text.encode(usual.text))


def test_an_answer_in_a_format_cannot_be_cut_at_a_stop_string(tiny: Model) -> None:
    with pytest.raises(ValueError, match="stop cannot cut an answer in a format; leave out stop, or the format"):
        tiny.ask(picture(), "what?", form=of_regex("[a-z]+"), stop=["a"])


def test_answers_in_a_form_are_batch_invariant_in_the_engine(tiny: Model, writer: Model) -> None:
    """Forms and a plain question at the same time. Answers are compared as text; the engine's own tests compare bits."""
    rng, engine, submitted, wanted = Random(5), Engine(tiny.parts.net), [], []
    for number in range(4):
        model, seen = (tiny, writer)[number % 2], tiny.parts.image_views(picture(number % 2))
        form = of_schema(random_schema(rng)) if number < 3 else of_regex("[a-z ]{4,9}")
        slots = tuple(form.slots(model.parts.text, model.parts.wording))
        task = Fill(
            pixels=seen, question="what?", form=form, slots=slots, lengths=tuple(h.default_length(4) for h in slots)
        )
        sampler = bound(override(model.presets.ask(model.parts), ["selection.noise=1"]), slots)
        request = Request(sequence=task.build(tiny.parts), sampler=sampler, seed=number)
        submitted.append((task, engine.submit(request)))
        settings = ["selection.noise=1"]
        wanted.append(model.ask(picture(number % 2), "what?", form=form, seed=number, settings=settings).text)
    plain = Ask(pixels=tiny.parts.image_views(picture()), question="what?")
    request = Request(sequence=plain.build(tiny.parts), sampler=tiny.presets.ask(tiny.parts))
    submitted.append((plain, engine.submit(request)))
    wanted.append(tiny.ask(picture(), "what?").text)
    engine.drain()
    assert [task.read(handle.result(0), tiny.parts) for task, handle in submitted] == wanted


def test_a_text_model_answers_in_a_form(tmp_path: Path) -> None:
    model = unmask.load(make_llada(tmp_path / "llada"))
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3}}}
    said = model.ask("how many?", form=of_schema(schema), max_tokens=24)  # type: ignore[call-arg]
    assert said.value["n"] in (1, 2, 3) and json.loads(said.text) == said.value
    with pytest.raises(ValueError, match="needs at least"):
        model.ask("how many?", form=of_schema(schema), max_tokens=2)  # type: ignore[call-arg]
    usual = model.ask("how many?", form=of_schema(schema))  # type: ignore[call-arg]
    for most in (64, 1024, 10**9):
        assert model.ask("how many?", form=of_schema(schema), max_tokens=most).text == usual.text  # type: ignore[call-arg]


@pytest.mark.weights
def test_the_embedded_model_says_what_it_sees() -> None:
    """Colours and counts of validation scenes, several values of one picture in one run."""
    model, right, asked = unmask.load("mini"), 0, 0
    for number in range(20):
        scene = sample("grid", "validation", 0, number)
        known = {q.kind: q for q in questions(scene, Random(number)) if q.kind in ("colour", "count")}
        kinds = {"colour": {"enum": list(COLOUR_NAMES)}, "count": {"type": "integer", "minimum": 0, "maximum": 9}}
        fields = {kind: {**kinds[kind], "description": q.text} for kind, q in known.items()}
        if not fields:
            continue
        value = model.ask(
            picture(number), "what is this?", form=of_schema({"type": "object", "properties": fields})
        ).value
        words = {kind: q.answer for kind, q in known.items()}
        numbers = model.parts.wording.numbers
        right += sum((numbers[v] if kind == "count" else v) == words[kind] for kind, v in value.items())
        asked += len(fields)
    assert asked >= 15 and right >= 0.9 * asked, (right, asked)
