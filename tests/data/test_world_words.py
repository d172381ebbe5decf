"""The vocabulary of the embedded model: all of its training texts are known, and other words are not."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from random import Random

import pytest

from unmask.data.world import edits, language
from unmask.data.world.questions import questions
from unmask.data.world.scenes import sample
from unmask.data.world.vocabulary import BACKGROUND_NAMES, CLASSES, COLOUR_NAMES, LEVELS
from unmask.data.world.words import vocabulary
from unmask.tokens.prompts import COMPACT
from unmask.tokens.vocabulary import Vocabulary

GRID = LEVELS["grid"]
KNOWN = vocabulary("grid", "mini")


def texts(split: str, scenes: int) -> Iterator[tuple[str, bool]]:
    """Texts about scenes, each with whether it is a caption, which names an object."""
    rng = Random(split)
    for index in range(scenes):
        scene = sample("grid", split, 7, index)
        yield language.caption(scene, rng), True
        yield from ((question.text, False) for question in questions(scene, rng))
        yield from ((phrase, False) for phrase, _ in language.referring(scene, rng))
        yield from ((phrase, True) for phrase, _ in language.layout(scene, rng))
        if made := edits.edit(scene, split, rng):
            yield made.instruction, False


def test_the_shipped_file_is_that_of_the_world() -> None:
    shipped = files("unmask") / "assets" / "mini" / "vocabulary.json"
    assert Vocabulary.parse(shipped.read_text(encoding="utf-8")) == KNOWN


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_text_of_the_world_warns(split: str) -> None:
    """The test split has the held-out combinations."""
    made = list(texts(split, 700))
    assert len(made) > 4000
    assert [text for text, caption in made if KNOWN.warnings(text, needs_object=caption)] == []


def test_no_request_of_the_wording_warns() -> None:
    for text in (COMPACT.describe, COMPACT.complete, COMPACT.describe_and_draw, "draw a dog", "add two cats"):
        assert KNOWN.warnings(text, needs_object=False) == ()


def test_every_object_colour_number_and_background_outside_the_level_warns() -> None:
    outside = [
        *(f"a {name}" for name in CLASSES if name not in GRID.classes),
        *(many for one, (many, _) in CLASSES.items() if one not in GRID.classes),
        *(f"a {colour} dog" for colour in COLOUR_NAMES if colour not in GRID.colours and colour != "white"),
        *(f"a dog on a {name} background" for name in BACKGROUND_NAMES if name not in GRID.backgrounds),
        *(f"{number} dogs" for number in ("zero", "five", "seven", "12", "5", "0", "100", "2.5", "-2000", "several")),
        *(f"a dog {relation} a cat" for relation in ("behind", "inside", "under", "near", "riding", "without", "not")),
    ]
    assert [text for text in outside if not KNOWN.warnings(text)] == []


def test_every_known_word_is_in_a_text_or_a_request() -> None:
    assert {word for words in KNOWN.groups.values() for word in words} <= KNOWN._known
    assert KNOWN.groups["objects"] == GRID.classes and KNOWN.groups["numbers"] == ("one", "two", "three", "four")
    assert "24 objects" in KNOWN.about and all(name in KNOWN.about for name in GRID.classes)
