"""/openapi.json promises what the server takes, no more and no less, at the extreme values of every field."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import pytest
import torch
from httpx2 import ASGITransport, AsyncClient
from PIL import Image

import unmask
from unmask.pipeline.catalogue import samplers
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.serving.api import application
from unmask.serving.engine import Limits
from unmask.serving.service import Service

from ..tiny_llada import make
from .extremes import extremes
from .json_schema import fits
from .served import Gate, asked, data_url, png, tiny

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
DRAW, EDIT, INFILL, GROUND = "/v1/images/generations", "/v1/images/edits", "/v1/infill", "/v1/ground"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
IMAGE, MASK = data_url(Image.new("RGB", (8, 8), "red")), data_url(Image.new("L", (8, 8), 255))
FILES = {"image": ("a.png", png(Image.new("RGB", (8, 8), "red")), "image/png")}
MASKED = {**FILES, "mask": ("m.png", png(Image.new("L", (8, 8), 255)), "image/png")}
PART = {"type": "image_url", "image_url": {"url": IMAGE}}
STRINGS = (
    *(
        "auto",
        "1x1",
        "64X64",
        "999x999",
        "1000x1000",
        "2000x2000",
        "4096x4096",
        "4097x4097",
        "64x65",
        IMAGE,
        "data:,x",
        "http://x",
    ),
    *("a [mask]", "x" * 201, "dog " * 3),
)
QUESTION = asked(Image.new("RGB", (8, 8), "red"), "what is this?")
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": (DRAW, {"prompt": "a dog"}),
    "boxes": (DRAW, {"prompt": "a dog", "boxes": [{"phrase": "a dog", "box": [0, 0, 1, 1]}]}),
    "a sampler": (DRAW, {"prompt": "a dog", "sampler": "remdm"}),
    "several": (DRAW, {"prompt": "a dog", "n": 2}),
    "inpainting": (INFILL, {"image": IMAGE, "mask": MASK}),
    "gaps": (INFILL, {"text": "a [mask] dog"}),
    "phrases": (GROUND, {"image": IMAGE, "phrases": ["a dog"]}),
    "a turn": (CHAT, {"messages": [{"role": "user", "content": "a dog"}]}),
    "a question": (CHAT, {"messages": QUESTION}),
    "a question, not drawn": (CHAT, {"messages": QUESTION, "draw": False}),
    "a schedule and a cache": (DRAW, {"prompt": "a dog", "schedule": "cosine:steps=3", "cache": "block"}),
    "a question with a cache": (CHAT, {"messages": QUESTION, "cache": "prefix"}),
    "a question, sampled": (CHAT, {"messages": QUESTION, "sampler": "fast_dllm"}),
    "a drawing of an image": (CHAT, {"messages": QUESTION, "draw": True}),
    "a drawing by modality": (CHAT, {"messages": QUESTION, "modalities": ["image"]}),
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt": (COMPLETE, {"prompt": "why", "max_tokens": 4}),
    "a chat": (CHAT, {"messages": [{"role": "user", "content": "why"}]}),
    "gaps in a text": (INFILL, {"text": "a [mask] dog"}),
}
# Limits that JSON Schema cannot express (docs/api.md names them).
INEXPRESSIBLE = ("is longer than", "the region is empty", "more than 512; use fewer objects")
# Fields of which the document says less than the server takes (docs/api.md names them).
NARROWER = ("response_format", "settings", "schedule", "cache")
AT_ONCE = 16  # requests
_Told = TypeVar("_Told")


@dataclass(frozen=True, kw_only=True)
class Documented:
    """A server whose network fails at the first forward, so that an accepted request costs nothing, and its document.

    Requests go to the application without a server or another thread, several at a time: there are thousands.
    """

    loop: asyncio.Runner
    client: AsyncClient
    document: Any = None

    def get(self, path: str) -> Any:
        return self.loop.run(self.client.get(path)).json()

    def schema(self, path: str) -> Any:
        body = self.document["paths"][path]["post"]["requestBody"]["content"]
        schema = next(iter(body.values()))["schema"]
        return self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema

    def disagreements(self, path: str, bodies: Iterator[dict[str, Any]]) -> list[str]:
        """Requests that the document allows and the server refuses, or the reverse."""
        found, schema = [], self.schema(path)
        for body, answer in self._answers(path, ((body, {"json": body}) for body in bodies)):
            found += _disagreement(body, fits(body, schema, self.document), answer)
        return found

    def _answers(self, path: str, requests: Iterable[tuple[_Told, dict[str, Any]]]) -> Iterator[tuple[_Told, Any]]:
        """The answer to each request, in order."""

        async def together(some: list[tuple[_Told, dict[str, Any]]]) -> list[Any]:
            return await asyncio.gather(*(self._answered(path, request) for _, request in some))

        rest = iter(requests)
        while some := list(islice(rest, AT_ONCE)):
            yield from zip((told for told, _ in some), self.loop.run(together(some)), strict=True)

    async def _answered(self, path: str, request: dict[str, Any]) -> Any:
        """The answer, asked for again while calls of a request that failed are still leaving the queue."""
        for _ in range(100):
            answer = await self.client.post(path, **request)
            if answer.status_code != 429:
                break
            await asyncio.sleep(0.1)
        return answer

    def disagreements_of_forms(self, forms: Iterator[dict[str, list[str]]], files: Any) -> list[str]:
        """The same of edits, which are sent as forms."""
        found, schema = [], self.schema(EDIT)
        for form, answer in self._answers(EDIT, ((form, {"data": form, "files": files}) for form in forms)):
            body = dict.fromkeys(files, "") | {name: self.read(name, texts) for name, texts in form.items()}
            found += _disagreement(body, fits(body, schema, self.document), answer)
        return found

    def read(self, name: str, texts: list[str]) -> Any:
        """The value of a form field: the first reading of its texts that its schema allows."""
        read = [[text, _parsed(text)] for text in texts]
        readings = [*(read[0] if len(read) == 1 else ()), *([one[i] for one in read] for i in range(2))]
        schema = self.schema(EDIT)["properties"][name]
        return next((value for value in readings if fits(value, schema, self.document)), readings[0])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _disagreement(body: Any, promised: bool, answer: Any) -> list[str]:
    """What is wrong with an answer; nothing if it is the one that the document promises. A 404 says that the model has another name."""
    assert answer.status_code in (200, 400, 404, 500), answer.text
    if answer.status_code == 500:
        assert answer.json()["error"]["code"] == "model_failed", (body, answer.text)
    taken = answer.status_code in (200, 500)
    narrow = any(name in body for name in NARROWER) or ("n" in body and "size" in body)
    free = answer.status_code == 404 or any(words in answer.text for words in INEXPRESSIBLE)
    if free or promised == taken or (taken and narrow):
        return []
    return [f"promised {promised}: {json.dumps(body)[:600]} -> {answer.status_code} {answer.text[:200]}"]


@contextmanager
def failing(model: Model | TextModel) -> Iterator[Documented]:
    """The document of a model whose network fails at every forward."""
    gate = Gate(model.parts.net)
    gate.fault = RuntimeError("no forward is needed")
    if isinstance(model, TextModel):
        broken: Model | TextModel = TextModel(replace(model.parts, net=gate))  # type: ignore[arg-type]
    else:
        broken = Model(replace(model.parts, net=gate, weights=None), model.presets)  # type: ignore[arg-type]
    logging.disable(logging.CRITICAL)  # a traceback for every request
    service = Service(broken, name="tiny", limits=Limits(running=64, queued=64))
    try:
        with asyncio.Runner() as loop:
            client = AsyncClient(transport=ASGITransport(app=application(service)), base_url="http://127.0.0.1")
            made = Documented(loop=loop, client=client)
            yield replace(made, document=made.get("/openapi.json"))
            loop.run(client.aclose())
    finally:
        service.close()
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def documented() -> Iterator[Documented]:
    with failing(tiny()) as found:
        yield found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documented]:
    with failing(unmask.load(make(tmp_path_factory.mktemp("llada") / "model"))) as found:
        yield found


def values(documented: Documented, path: str, base: dict[str, Any]) -> dict[str, list[Any]]:
    """The extreme values of every field of a body."""
    schema = documented.schema(path)
    found = {}
    for name, field in schema["properties"].items():
        free = not set(field) - {"title", "description"}  # accepted and ignored
        words = STRINGS if '"string"' in json.dumps(field) else ()
        found[name] = [None, {"a": 1}] if free else [*extremes(field, documented.document), *words]
    return found


# Bodies whose fields are tried one by one, and which of the values of each field: two bodies of one schema and task share the work of a
# third, and every value of every field occurs with the first.
ALONE = {
    **dict.fromkeys(("prompt", "inpainting", "gaps", "phrases", "a turn"), slice(None)),
    **{"boxes": slice(0, None, 3), "a question": slice(1, None, 3), "a drawing of an image": slice(2, None, 3)},
}
VALUES = (0, 1, 0.5)  # of a setting
SAMPLED = ("prompt", "gaps", "phrases", "a turn", "a question")


def by_samplers(documented: Documented, path: str, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every sampler with and without steps, guidance, temperature, one value of each of the preset's settings (another one for the next
    sampler), and every value of its own settings and of those of the next sampler.
    """
    known = samplers()
    preset = [setting["name"] for setting in documented.get("/v1/fields")["generate"]["x-unmask-settings"]]
    properties = documented.schema(path)["properties"]
    plain: list[dict[str, Any]] = [
        {},
        {"steps": 2},
        {"guidance": 1},
        {"temperature": 1},
        {"stop": "a"},
        {"reflect": 2},
    ]
    names = [None, "nothing", *known]
    for name, other in zip(names, [*names[2:], *names[:2]], strict=True):
        arguments = {a for one in (name, other) if one in known for a in known[one].arguments}
        number = names.index(name)
        shared = [(key, VALUES[(number + i) % len(VALUES)]) for i, key in enumerate(preset)]
        own = [(key, value) for key in sorted(arguments) for value in VALUES]
        options = [{"settings": [f"{key}={value}"]} for key, value in (*shared, *own)]
        for more in (*plain, *options):
            if set(more) <= set(properties):
                yield {**base, "sampler": name, **more}


def singly(
    documented: Documented, path: str, base: dict[str, Any], part: slice = slice(None)
) -> Iterator[dict[str, Any]]:
    """Bodies without a field, and with one field at each of its extreme values, or at a ``part`` of them."""
    for name, several in values(documented, path, base).items():
        yield {k: v for k, v in base.items() if k != name}
        yield from ({**base, name: value} for value in several[part])


def together(documented: Documented, path: str, base: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """Bodies of several fields, most of which are valid alone."""
    rng, schema = random.Random(path), documented.schema(path)
    valid = {
        name: [value for value in several if fits({**base, name: value}, schema, documented.document)]
        for name, several in values(documented, path, base).items()
    }
    names = [name for name, several in valid.items() if several]
    for _ in range(number):
        chosen = rng.sample(names, min(len(names), rng.randint(2, 6)))
        yield {**base, **{name: rng.choice(valid[name]) for name in chosen}}


def forms(documented: Documented, prompt: str, part: slice) -> Iterator[dict[str, list[str]]]:
    """Forms with one field at an extreme value, or at a ``part`` of them, and some with several."""
    several = {}
    for name, found in values(documented, EDIT, {}).items():
        if name not in FILES and name not in MASKED:
            texts = [_texts(value) for value in found]
            several[name] = [list(one) for one in dict.fromkeys(map(tuple, texts)) if one]
    for name, found in several.items():
        yield from ({"prompt": [prompt], name: texts} for texts in found[part])
    rng, schema = random.Random(prompt), documented.schema(EDIT)["properties"]
    valid = {
        name: [texts for texts in found if fits(documented.read(name, texts), schema[name], documented.document)]
        for name, found in several.items()
    }
    for _ in range(100):
        chosen = rng.sample(list(valid), rng.randint(2, 6))
        yield {"prompt": [prompt], **{name: rng.choice(valid[name]) for name in chosen}}


def _texts(value: Any) -> list[str]:
    """A value as the texts of a form field."""
    return [one if isinstance(one, str) else json.dumps(one) for one in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize(
    "files, part", [(FILES, slice(None)), (MASKED, slice(0, None, 3))], ids=["an edit", "inpainting"]
)
def test_every_field_of_a_form_is_described_exactly(documented: Documented, files: Any, part: slice) -> None:
    assert documented.disagreements_of_forms(forms(documented, "a dog", part), files) == []


@pytest.mark.parametrize("name", ALONE)
def test_every_field_is_described_exactly(documented: Documented, name: str) -> None:
    path, base = BODIES[name]
    assert documented.disagreements(path, singly(documented, path, base, ALONE[name])) == []


@pytest.mark.parametrize("path, base", BODIES.values(), ids=BODIES)
def test_fields_of_other_bodies_are_described_exactly(documented: Documented, path: str, base: dict[str, Any]) -> None:
    names = {name for other in (DRAW, EDIT, INFILL, GROUND, CHAT) for name in documented.schema(other)["properties"]}
    own = documented.schema(path)["properties"]
    foreign = [
        name
        for name in sorted(names)
        if own.get(name, {}).get("enum", [None]) == [None] and "type" not in own.get(name, {})
    ]
    assert "mask" in foreign or path == INFILL
    assert documented.disagreements(path, ({**base, name: value} for name in foreign for value in ({}, None))) == []


@pytest.mark.parametrize("name", SAMPLED)
def test_what_a_sampler_takes_is_described(documented: Documented, name: str) -> None:
    path, base = BODIES[name]
    assert documented.disagreements(path, by_samplers(documented, path, base)) == []


@pytest.mark.parametrize("path, base", BODIES.values(), ids=BODIES)
def test_fields_together_are_described_exactly(documented: Documented, path: str, base: dict[str, Any]) -> None:
    assert documented.disagreements(path, together(documented, path, base, 30)) == []


@pytest.mark.parametrize("path, base", TEXTS.values(), ids=TEXTS)
def test_every_field_of_a_text_model_is_described_exactly(text: Documented, path: str, base: dict[str, Any]) -> None:
    assert text.disagreements(path, singly(text, path, base)) == []
    assert text.disagreements(path, together(text, path, base, 30)) == []


@pytest.mark.parametrize("kind", ["documented", "text"])
def test_a_generator_has_few_combinations_of_choices_to_join(request: pytest.FixtureRequest, kind: str) -> None:
    """schemathesis 4.32 joins each anyOf of an allOf with all others, and gives up from 32 combinations on; a oneOf it takes apart."""
    found: Documented = request.getfixturevalue(kind)
    todo, joined = [found.document], [1]
    while todo:
        schema = todo.pop()
        todo += schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        if isinstance(schema, dict) and isinstance(schema.get("allOf"), list):
            joined.append(math.prod(len(one.get("anyOf", [1])) for one in schema["allOf"]))
    assert 1 < max(joined) <= 16


def test_samplers_that_no_request_may_name_are_left_out(documented: Documented) -> None:
    left_out = {name for name, sampler in samplers().items() if not sampler.served}
    assert {"wavefront", "edlm"} <= left_out and "remdm" not in left_out
    assert not any(f'"{name}"' in json.dumps(documented.document) for name in left_out)
    for name in left_out:
        answer = documented.loop.run(documented.client.post(DRAW, json={"prompt": "a dog", "sampler": name}))
        assert answer.status_code == 400 and f"the sampler '{name}'" in answer.json()["error"]["message"]
