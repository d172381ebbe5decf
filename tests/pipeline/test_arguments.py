"""What Python says of wrong arguments: the argument by name, what came and what was wanted, never an error from inside torch."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.tasks.conversing import Message
from unmask.tasks.results import Attempt

PICTURE = Image.new("RGB", (40, 30), "red")
FEW = ["schedule.steps=2"]

WRONG = [
    ("generate", (), {}, "generate needs prompt; call generate(prompt)"),
    ("generate", (None,), {}, "prompt must be a text or a list of texts, got None"),
    ("generate", (5,), {}, "prompt must be"),
    ("generate", (b"a cat",), {}, "prompt must be"),
    ("generate", (PICTURE,), {}, "prompt must be"),
    ("generate", (["a cat", 5],), {}, "prompt must be"),
    ("generate", ([],), {}, "the list of prompts is empty"),
    ("generate", ("",), {}, "the prompt is empty"),
    ("generate", (["a cat", " "],), {}, "the prompt is empty"),
    ("generate", ("a cat", 4), {}, "generate(prompt) and give all other arguments by name"),
    ("generate", ("a cat",), {"n": 0}, "n must be 1 to 256, got 0"),
    ("generate", ("a cat",), {"n": -1}, "n must be 1 to 256, got -1"),
    ("generate", ("a cat",), {"n": True}, "n must be a whole number, got True (bool)"),
    ("generate", ("a cat",), {"n": 1.5}, "n must be a whole number"),
    ("generate", ("a cat",), {"n": "2"}, "n must be a whole number, got '2' (str)"),
    ("generate", ("a cat",), {"seed": "1"}, "seed must be a whole number, got '1' (str); for example seed=1"),
    ("generate", ("a cat",), {"seed": None}, "seed must be a whole number, got None"),
    ("generate", ("a cat",), {"seed": 0.5}, "seed must be a whole number"),
    ("generate", ("a cat",), {"seed": 2**63}, "seed must be between"),
    ("generate", ("a cat",), {"steps": 0}, "steps (--steps) must be at least 1, got 0"),
    ("generate", ("a cat",), {"steps": 2.5}, "steps must be a whole number or None"),
    ("generate", ("a cat",), {"guidance_scale": float("nan")}, "guidance_scale (--guidance) must be a finite number"),
    ("generate", ("a cat",), {"guidance_scale": "high"}, "guidance_scale must be a number or None"),
    ("generate", ("a cat",), {"temperature": -1}, "temperature (--temperature) must be at least 0"),
    ("generate", ("a cat",), {"attempts": 0}, "attempts must be 1 to 64"),
    ("generate", ("a cat",), {"attempts": "many"}, "attempts must be a whole number"),
    ("generate", ("a cat",), {"plan": "yes"}, "plan must be"),
    ("generate", ("a cat",), {"trace": "yes"}, "trace must be True or False"),
    ("generate", ("a cat",), {"settings": "schedule.steps=8"}, 'give a list, for example ["schedule.steps=8"]'),
    ("generate", ("a cat",), {"settings": {"schedule.steps": 8}}, "settings must be a list of texts"),
    ("generate", ("a cat",), {"settings": ["schedule.steps"]}, "must look like name=value"),
    ("generate", ("a cat",), {"sampler": "remdm"}, "sampler must be"),
    ("generate", ("a cat",), {"conditions": {"luminance": 0.5}}, "conditions must be"),
    ("generate", ("a cat",), {"guidance": 2.0}, "generate has no argument 'guidance'; did you mean 'guidance_scale'?"),
    ("generate", ("a cat",), {"num_inference_steps": 8}, "did you mean 'steps'?"),
    ("ask", (PICTURE,), {}, "ask needs question; call ask(image, question)"),
    ("ask", (), {}, "ask needs image and question"),
    ("ask", ("what is it?", PICTURE), {}, "the picture comes first; call ask(image, question)"),
    ("ask", ("what is it?", "dog.png"), {}, "the picture comes first; call ask(image, question)"),
    ("ask", (None, "what is it?"), {}, "the picture is missing"),
    ("ask", (5, "what is it?"), {}, "image must be"),
    ("ask", ([PICTURE], "what is it?"), {}, "image must be"),
    ("ask", (PICTURE, None), {}, "question must be a text"),
    ("ask", (PICTURE, ["a", "b"]), {}, "question must be a text"),
    ("ask", (PICTURE, ""), {}, "the prompt is empty"),
    ("ask", (PICTURE, "what?"), {"max_tokens": 0}, "max_tokens must be at least 1"),
    ("ask", (PICTURE, "what?"), {"max_tokens": "8"}, "max_tokens must be a whole number or None"),
    ("ask", (PICTURE, "what?"), {"form": '{"enum": ["a"]}'}, "form must be"),
    ("ask", ("nosuch.png", "what?"), {}, "there is no file nosuch.png"),
    ("edit", ("make it blue", PICTURE), {}, "the picture comes first; call edit(image, instruction)"),
    ("edit", (PICTURE,), {}, "edit needs instruction"),
    ("ground", (PICTURE,), {}, "ground needs phrases"),
    ("ground", (PICTURE, []), {}, "ground needs at least one phrase"),
    ("ground", (PICTURE, None), {}, "phrases must be"),
    ("ground", (PICTURE, ["cat", 5]), {}, "phrases must be"),
    ("ground", (PICTURE, ["cat", ""]), {}, "the prompt is empty"),
    ("ground", (["the cat"], PICTURE), {}, "must be"),
    ("ground", (PICTURE, ["cat"]), {"steps": 0}, "steps must be 1 to 4"),
    ("infill", (PICTURE,), {}, "infill needs region"),
    ("infill", (PICTURE, None), {}, "region must be"),
    ("infill", (PICTURE, Image.new("RGB", (2, 2))), {}, "give both the same size"),
    ("infill_text", (None,), {}, "target must be a text"),
    ("describe", (None,), {}, "image must be"),
    ("converse", ("hello",), {}, "messages must be a list of Messages"),
    ("converse", ([],), {}, "append one"),
    ("converse", ([{"role": "user"}],), {}, "messages must be a list of Messages"),
    ("converse", ([Message(role="user", text=5)],), {}, "the text of message 1 must be a text"),  # type: ignore[arg-type]
    ("converse", ([Message(role="user", text="a", images=("dog.png",))],), {}, "the images of message 1"),  # type: ignore
]  # fmt: skip


@pytest.mark.parametrize(("method", "given", "named", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_named(
    method: str, given: tuple[Any, ...], named: dict[str, Any], said: str, model: Model, here: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)) as caught:
        getattr(model, method)(*given, **named)
    assert "torch" not in str(caught.traceback[-1].path), "the error comes out of torch"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    PICTURE.save("dog.png")
    return tmp_path


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    plain = model.generate("a cat", seed=3, plan=False, steps=2, guidance_scale=1.0)[0]
    numbers: Any = {"seed": np.int64(3), "steps": np.int32(2), "guidance_scale": np.float32(1.0)}
    numpy = model.generate("a cat", plan=False, **numbers)[0]
    assert np.array_equal(np.asarray(plain.image), np.asarray(numpy.image))


def test_a_list_of_prompts_is_drawn_in_order_as_if_each_were_alone(model: Model) -> None:
    drawn = model.generate(["a cat", "a red apple"], n=2, seed=5, settings=FEW)
    assert [(d.prompt, d.seed) for d in drawn] == [("a cat", 5), ("a cat", 6), ("a red apple", 5), ("a red apple", 6)]
    alone = model.generate("a red apple", seed=6, settings=FEW)[0]
    assert np.array_equal(np.asarray(alone.image), np.asarray(drawn[3].image))


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (("nonsense",), {}, "no model is called 'nonsense'; use a shipped one (mini)"),
        ((None,), {}, "name must be a path, got None"),
        ((["mini"],), {}, "name must be"),
        (("mini",), {"device": None}, "device must be"),
        (("mini",), {"device": 0}, "device must be"),
        (("mini",), {"device": "nonsense"}, "'nonsense' is not a device that unmask runs on; use auto or "),
        (("mini",), {"device": "meta"}, "'meta' is not a device that unmask runs on"),
        (("mini",), {"device": "xpu"}, "'xpu' is not a device that unmask runs on"),
        (("mini",), {"device": "cuda:x"}, "'cuda:x' is not a device"),
        (("mini",), {"device": "cuda:99"}, "'cuda:99' is not available here"),
        (("mini",), {"device": torch.device("cuda:99")}, "'cuda:99' is not available here"),
        (("mini",), {"needs": "generate"}, "needs must be a list"),
        (("mini",), {"needs": ["picture"]}, "unknown part 'picture'"),
        (("mini",), {"storage": "int8"}, "storage must be"),
        (("mini",), {"dtype": "float16"}, "load has no argument 'dtype'"),
    ],
)
def test_wrong_arguments_of_load_are_named(given: tuple[Any, ...], named: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError, CheckpointError), match=re.escape(said)):
        unmask.load(*given, **named)


def attempt(critique: str) -> Attempt:
    return Attempt(
        image=Image.new("RGB", (8, 8)), plan=None, critique=critique, accepted=not critique, approval=0.5, seed=0
    )


def test_results_show_themselves_in_a_notebook(model: Model) -> None:
    drawing: Any = model.generate("a cat", settings=FEW)[0]
    assert drawing._repr_png_().startswith(b"\x89PNG")
    plain: Any = model.generate("a cat", plan=False, attempts=1, settings=FEW)[0]
    assert plain._repr_html_() is None  # then the PNG is shown
    tried: Any = replace(drawing, attempts=(attempt("<b>wrong</b>"), attempt("")))
    assert (
        tried._repr_html_().count("data:image/png;base64,") == 3 and "rejected: &lt;b&gt;wrong" in tried._repr_html_()
    )
    for drawn in (
        model.generate("a cat", n=2, plan=False, settings=FEW),
        model.generate(["a cat", "a dog"], plan=False, settings=FEW),
        model.generate("a cat", n=2, attempts=2, settings=FEW),
        model.edit(PICTURE, "make it red", n=2, settings=FEW),
    ):
        shown = cast(Any, drawn)._repr_html_()
        assert isinstance(drawn, list) and shown.count("data:image/png;base64,") == len(drawn) == 2
    film: Any = model.generate("a cat", trace=True, plan=False, settings=FEW)[0]
    assert film._repr_html_().count("data:image/png;base64,") == 1 + len(film.trace)
    answer: Any = model.ask(PICTURE, "what is <b>it</b>?")
    steps: Any = model.ask(PICTURE, "what is it?", trace=True)
    assert "<details>" not in answer._repr_html_() and steps._repr_html_().count("<li>") == len(steps.trace) > 1
    assert "&lt;b&gt;it" in answer._repr_html_() and answer.text in answer._repr_html_()
    found: Any = model.ground(PICTURE, ["<script>", "the cat"])
    shown = found._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and shown.count("data:image/png;base64,") == 1
    turn: Any = model.converse([Message(role="user", text="draw a cat")])
    assert turn._repr_html_().count("data:image/png;base64,") == len(turn.images)


@pytest.mark.parametrize("kind", [Model, TextModel])
def test_every_method_for_users_checks_its_arguments(kind: type) -> None:
    inner = {"run", "emit", "with_sampler"}  # called by this package, or with a function
    methods = {n: f for n, f in vars(kind).items() if inspect.isfunction(f) and n[0] != "_" and n not in inner}
    assert len(methods) > 2
    assert not [name for name, method in methods.items() if not hasattr(method, "__wrapped__")]
