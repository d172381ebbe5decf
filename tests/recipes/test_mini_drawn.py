"""Drawn pictures become critiques: in words that are taught, kept where they are sure, and gone on with after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from unmask.data.drawn import load_drawn
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject, shows_held_out
from unmask.evaluation import scoring
from unmask.evaluation.scoring import Related, Want, Wanted
from unmask.evaluation.world_geneval import Prompt
from unmask.recipes import mini_drawn
from unmask.recipes.mini_drawn import KINDS, draw, rule_critique, training_prompts

from ..tiny_model import make


def scene(*objects: tuple[str, str, float, float]) -> Scene:
    placed = tuple(SceneObject(name=name, colour=colour, x=x, y=y, size=0.25) for name, colour, x, y in objects)
    return Scene(objects=placed, background="sand", level="grid")


LOWER, LOWEST = ("apple", "", 0.0, 0.25), ("apple", "", 0.0, 0.75)
APPLES = Wanted(name="apple", count=2, exact=True)
TWO_APPLES = Want(
    items=(APPLES, Wanted(name="dog")),
    related=Related(first=APPLES, relation="left of", second=Wanted(name="dog"), every=True),
)
APPLE, RED, DOG = ("apple", "", 0.0, 0.0), ("apple", "red", 0.0, 0.0), ("dog", "blue", 0.75, 0.0)


@pytest.mark.parametrize(
    ("want", "shown", "said"),
    [
        (scoring.single("apple"), scene(APPLE), {""}),
        (scoring.single("apple"), scene(DOG), {"there is no apple", "an apple is missing"}),
        (scoring.counting("apple", 2), scene(APPLE), {"there should be two apples, not one"}),
        (scoring.counting("apple", 1), scene(APPLE, ("apple", "", 0.5, 0.0)), {"there should be one apple, not two"}),
        (scoring.colors("apple", "blue"), scene(RED), {"the apple should be blue, not red"}),
        (scoring.colors("apple", "blue"), scene(APPLE), {None}),
        (
            scoring.position(scoring.Wanted(name="apple"), "left of", scoring.Wanted(name="dog")),
            scene(APPLE, DOG),
            {""},
        ),
        (
            scoring.position(scoring.Wanted(name="dog"), "left of", scoring.Wanted(name="apple")),
            scene(APPLE, DOG),
            {"the dog should be left of the apple"},
        ),
        (scoring.color_attr("apple", "blue", "dog", "red"), scene(RED, DOG), {"the apple should be blue, not red"}),
        (TWO_APPLES, scene(APPLE, LOWER, DOG), {""}),
        (TWO_APPLES, scene(APPLE, LOWEST, DOG), {"the apples should be left of the dog"}),
        (TWO_APPLES, scene(APPLE, DOG), {"there should be two apples, not one"}),
        (Want(items=(Wanted(name="apple", size="big"),)), scene(APPLE), {"the apple should be bigger"}),
        (Want(items=(Wanted(name="apple", size="small"),)), scene(APPLE), {""}),
        (Want(items=(APPLES,), background="sky"), scene(APPLE, LOWER), {"the background should be sky, not sand"}),
        (Want(items=(APPLES,), background="sand"), scene(APPLE, LOWER), {""}),
    ],
)
def test_what_is_wrong_is_said_in_the_words_that_are_taught(want: Want, shown: Scene, said: set[str | None]) -> None:
    assert {rule_critique(want, shown, Random(i)) for i in range(20)} == said


def test_prompts_are_of_the_training_split_and_the_first_ones_stay() -> None:
    some = training_prompts(60, seed=1)
    assert [p.kind for p in some] == [kind.name for kind in KINDS] * 2 and training_prompts(12, seed=1) == some[
        :12
    ] != training_prompts(12, seed=2)
    assert not any(p.unseen or shows_held_out(p.scene) for p in some)
    assert 0 < sum(p.text.startswith("a photo of ") for p in some) < 60


def test_pictures_are_kept_in_batches_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Renders:
        """Draws the first half of what it is asked for right, and nothing of the other."""

        def __init__(self, **settings: Any) -> None: ...

        def __call__(self, model: Any, items: Sequence[Prompt]) -> np.ndarray:
            asked.extend(item.text for item in items)
            half = [render(item.scene) for item in items[: len(items) // 2]]
            return np.stack(half + [np.full_like(half[0], 250)] * (len(items) - len(half)))

    monkeypatch.setattr(mini_drawn, "PromptGenerator", Renders)
    monkeypatch.setattr(mini_drawn, "BATCH", 4)
    model, out = str(make(tmp_path)), tmp_path / "drawn"
    draw(model, str(out), count=4)
    assert len(asked) == 4
    draw(model, str(out), count=8)
    assert len(asked) == 8, "the first four were there"
    pictures, told = load_drawn(out)
    assert len(pictures) == len(told) == 4 and all(d.clean and not d.critique for d in told)
    assert [d.prompt for d in told] == [p.text for i, p in enumerate(training_prompts(8, 0)) if i % 4 < 2]
    with pytest.raises(ValueError, match="another seed; choose another folder"):
        draw(model, str(out), count=4, seed=1)


def test_a_model_that_draws_no_recognisable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 2 images could be labelled"):
        draw(str(make(tmp_path)), str(tmp_path / "drawn"), count=2)
