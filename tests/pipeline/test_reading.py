"""The same request typed in another way gives the same result, bit for bit, in every task of the embedded model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.grammars.answer_format import of_schema
from unmask.pipeline.model import Model
from unmask.tasks.conversing import Message

pytestmark = pytest.mark.weights

FEW = ["schedule.steps=2"]
SCENE = Image.fromarray(render(sample("grid", "validation", 0, 3), 128))
PAIRS = [
    ("a red apple and a cat", "a red apple\nand a cat"),
    ("a red apple", "a\tred\r\napple"),
    ("a red apple", "A Red Apple."),
    ("two dogs", "2 dogs"),
    ("an apple", "1 apple"),
    ("a grey chair, a cat and a dog", "A gray chair,, a cat, and a dog"),
]
QUESTIONS = [("how many dogs are there?", "How many dogs are there"), ("what colour is it?", "what color\nis it ?")]


@pytest.mark.parametrize(("plain", "typed"), PAIRS)
def test_pictures(plain: str, typed: str, model: Model) -> None:
    first, second = (model.generate(text, seed=5, plan=False, settings=FEW)[0] for text in (plain, typed))
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.prompt, second.prompt) == (plain, typed), "results keep the text as it was typed"


def test_every_task_with_pictures(model: Model) -> None:
    plain, typed = PAIRS[-1]
    region = Image.new("L", (128, 128), 255)
    made: list[Callable[[str], Image.Image]] = [
        lambda text: model.edit(SCENE, f"add {text}", seed=5, settings=FEW)[0].image,
        lambda text: model.edit(SCENE, f"add {text}", seed=5, plan=True, settings=FEW)[0].image,
        lambda text: model.infill(SCENE, region, prompt=text, seed=5, settings=FEW).image,
    ]
    for make in made:
        assert make(plain).tobytes() == make(typed).tobytes()
    tried = [model.generate(text, attempts=2, plan=True, settings=FEW)[0].attempts for text in (plain, typed)]
    one, other = ([(t.image.tobytes(), t.plan, t.critique, t.approval) for t in attempts] for attempts in tried)
    assert one == other


@pytest.mark.parametrize(("plain", "typed"), QUESTIONS)
def test_answers(plain: str, typed: str, model: Model) -> None:
    form = of_schema({"type": "object", "properties": {"a": {"type": "integer", "description": plain}}})
    other = of_schema({"type": "object", "properties": {"a": {"type": "integer", "description": typed}}})
    assert model.ask(SCENE, plain, trace=True).trace == model.ask(SCENE, typed, trace=True).trace
    assert model.ask(SCENE, "x", form=form, trace=True).trace == model.ask(SCENE, "x", form=other, trace=True).trace


def test_boxes_and_gaps(model: Model) -> None:
    boxes = [model.ground(SCENE, [phrase]).boxes[0].corners for phrase in ("the dog", "The\ndog.")]
    assert boxes[0] == boxes[1]
    filled = [model.infill_text(text).text for text in ("two [mask] apples and a cat", "2 [mask]\tapples and a Cat.")]
    assert filled[0] == filled[1]


def test_conversations(model: Model) -> None:
    def turn(text: str) -> tuple[str, list[bytes]]:
        made = model.converse([Message(role="user", text=text)], steps=2)
        return made.text, [image.tobytes() for image in made.images]

    assert turn("draw two dogs") == turn("Draw\n2 dogs.") and turn("draw two dogs")[1]
