"""The example inputs on the web page: ``mini`` gets every one right at three seeds.

The judge, a network that shares nothing with ``mini``, looks at what was drawn and at the example images; the right answers and boxes
follow from what it sees. The requests are those of the page: test_page.py holds that an example sends its prompt and image alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from unmask.data.world.language import number, position_word
from unmask.data.world.scenes import SceneObject, relation
from unmask.evaluation.judge import Found, Seen, load_judge
from unmask.evaluation.scoring import Want, Wanted, iou, position, strict
from unmask.pipeline.model import Model
from unmask.serving import calls, chat
from unmask.serving.edit_form import EditForm
from unmask.serving.schema import Draw, Edit, Ground
from unmask.serving.schema_chat import Chat
from unmask.tasks.conversing import Message

pytestmark = pytest.mark.weights

WEB = Path(unmask.__file__).parent / "serving" / "web"
SEEDS = (0, 1, 2)


def _want(*items: Wanted) -> Want:
    return Want(items=items)


def _one(name: str, colour: str | None = None) -> Wanted:
    return Wanted(name=name, colour=colour)


# What a prompt asks for, and its background if it names one.
DRAW: dict[str, tuple[Want, str | None]] = {
    "a yellow bus above a green car": (position(_one("bus", "yellow"), "above", _one("car", "green")), None),
    "two red apples": (_want(Wanted(name="apple", count=2, colour="red", exact=True)), None),
    "a pink elephant on a sky background": (_want(_one("elephant", "pink")), "sky"),
    "a purple umbrella right of a dog": (position(_one("umbrella", "purple"), "right of", _one("dog")), None),
    "two blue cars on a sand background": (_want(Wanted(name="car", count=2, colour="blue", exact=True)), "sand"),
}


def examples() -> dict[str, list[dict[str, Any]]]:
    """The value of EXAMPLES in examples.js, which is plain JSON."""
    found = re.search(r"^export const EXAMPLES = (\{.*\});$", (WEB / "examples.js").read_text(), re.M | re.S)
    assert found
    return json.loads(found[1])


def example_image(name: str) -> Path:
    return WEB / f"example-{name}.png"


def as_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def seen(*images: Image.Image) -> list[Seen]:
    return load_judge().look([np.asarray(image.convert("RGB")) for image in images])


def scene(name: str) -> Seen:
    return seen(Image.open(example_image(name)))[0]


def content(one: Seen) -> tuple[str, list[tuple[str, str]]]:
    return one.background, sorted((found.colour, found.name) for found in one.objects)


def all_of(one: Seen, name: str) -> list[Found]:
    return [found for found in one.objects if found.name == name]


def the(one: Seen, name: str) -> Found:
    (found,) = all_of(one, name)
    return found


def placed(found: Found) -> SceneObject:
    x1, y1, x2, _ = found.box
    return SceneObject(name=found.name, colour=found.colour, x=x1, y=y1, size=x2 - x1)


# The right answer, from what the judge sees.
ASK: dict[str, Callable[[Seen], str]] = {
    "what colour is the car?": lambda s: the(s, "car").colour,
    "how many cups are there?": lambda s: number(len(all_of(s, "cup"))),
    "where is the dog?": lambda s: position_word(placed(the(s, "dog"))),
    "is there a cat?": lambda s: "yes" if all_of(s, "cat") else "no",
    "what is above the dog?": lambda s: " ".join(
        o.name for o in s.objects if relation(placed(o), placed(the(s, "dog"))) == "above"
    ),
}
BOX: dict[str, Callable[[Seen], Found]] = {
    "the leftmost cup": lambda s: min(all_of(s, "cup"), key=lambda found: found.centre[0])
}
# What an edit makes of the background and of the (colour, name) of every object.
EDIT: dict[str, Callable[[str, list[tuple[str, str]]], tuple[str, list[tuple[str, str]]]]] = {
    "make the background sand": lambda ground, objects: ("sand", objects),
    "remove the cat": lambda ground, objects: (ground, [o for o in objects if o[1] != "cat"]),
    "make the car green": lambda ground, objects: (
        ground,
        [("green", "car") if o[1] == "car" else o for o in objects],
    ),
    "add a dog at the bottom right": lambda ground, objects: (ground, [*objects, ("", "dog")]),
}


@pytest.fixture(scope="module")
def model() -> Model:
    found = unmask.load("mini")
    assert isinstance(found, Model)
    return found


def by_prompt(task: str) -> Any:
    return pytest.mark.parametrize("one", examples()[task], ids=lambda one: one["prompt"])


@by_prompt("draw")
def test_drawings(model: Model, one: dict[str, Any]) -> None:
    want, background = DRAW[one["prompt"]]
    drawn = [calls.drawing(Draw.model_validate(one), seed)(model) for seed in SEEDS]
    for result in seen(*(d.image for d in drawn)):
        assert strict(result, want), content(result)
        assert background in (None, result.background)


@by_prompt("ask")
def test_answers(model: Model, one: dict[str, Any]) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": as_url(example_image(one["image"]))}},
        {"type": "text", "text": one["prompt"]},
    ]
    body = Chat.model_validate({"messages": [{"role": "user", "content": parts}]})
    right = ASK[one["prompt"]](scene(one["image"]))
    assert right and [chat.chatting(body, seed)(model).text for seed in SEEDS] == [right] * len(SEEDS)


@by_prompt("ground")
def test_boxes(model: Model, one: dict[str, Any]) -> None:
    truth, phrases = scene(one["image"]), one["prompt"].split("\n")
    body = Ground.model_validate({"image": as_url(example_image(one["image"])), "phrases": phrases})
    for seed in SEEDS:
        found = calls.grounding(body, seed)(model)
        width, height = found.image_size
        for phrase, box in zip(phrases, found.boxes, strict=True):
            right = BOX[phrase](truth) if phrase in BOX else the(truth, phrase.removeprefix("the "))
            assert iou((box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height), right.box) > 0.8


@by_prompt("edit")
def test_edits(model: Model, one: dict[str, Any]) -> None:
    before, image = scene(one["image"]), example_image(one["image"]).read_bytes()
    background, objects = EDIT[one["prompt"]](*content(before))
    body = Edit.model_validate({"prompt": one["prompt"]})
    edited = [calls.editing(body, EditForm(image=image, mask=None, fields={}), seed)(model).image for seed in SEEDS]
    for result in seen(*edited):
        assert content(result) == (background, sorted(objects)) != content(before)
        fresh = [found for found in result.objects if not any(iou(found.box, old.box) > 0.8 for old in before.objects)]
        where = [("dog", "bottom right")] if one["prompt"].startswith("add") else []
        assert [(found.name, position_word(placed(found))) for found in fresh] == where, "nothing else has moved"


def test_the_region_that_the_placeholder_describes(model: Model) -> None:
    found = re.search(r'^const REGION_PLACEHOLDER = "(.*)";$', (WEB / "edit.js").read_text(), re.M)
    assert found and found[1] == "a bicycle and a dog"
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 64, 64, 128))  # over the car
    drawn = [model.infill(example_image("street"), mask, prompt=found[1], seed=seed).image for seed in SEEDS]
    assert [strict(s, _want(_one("bicycle"), _one("dog"))) for s in seen(*drawn)] == [True] * len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_conversation(model: Model, seed: int) -> None:
    draw, ask, change, add = (one["prompt"] for one in examples()["chat"])
    messages: list[Message] = []

    def say(text: str) -> tuple[str, list[Seen]]:
        messages.append(Message(role="user", text=text, images=()))
        turn = model.converse(messages, seed=seed)
        messages.append(Message(role="assistant", text=turn.text, images=tuple(turn.images)))
        return turn.text, seen(*turn.images) if turn.images else []

    _, (drawn,) = say(draw)
    assert content(drawn)[1] == [("red", "apple")]
    assert say(ask) == (drawn.objects[0].colour, [])
    _, (changed,) = say(change)
    assert content(changed) == ("sky", [("red", "apple")])
    _, (added,) = say(add)
    assert content(added) == ("sky", [("", "cat"), ("red", "apple")])
    assert position_word(placed(the(added, "cat"))) == "bottom left"
