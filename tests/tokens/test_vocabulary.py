"""Warnings about words that a model does not know, and the file that says what it knows."""

from __future__ import annotations

import json

import pytest

from unmask.tokens.vocabulary import Vocabulary

KNOWN = Vocabulary(
    name="tiny",
    draws="draws a dog or a traffic light",
    groups={"objects": ("dog", "traffic light"), "numbers": ("one", "two"), "colours": ("red",)},
    forms={"dog": ("dogs",), "two": ("2",)},
    words=("a", "and", "how many", "is", "what"),
)


@pytest.mark.parametrize(
    "text",
    [
        "a dog",
        "A DOG!",
        "two Dogs, and a red dog.",
        "2 dogs",
        "a traffic light",
        "a traffic-light",
        "a\tdog\r\nand\u00a0a\u200bdog",
        '"a dog"',
        "\uff12 dogs",
    ],
)
def test_known_words_give_no_warning(text: str) -> None:
    assert KNOWN.warnings(text) == ()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("an astronaut and a dog", ("an", "astronaut")),
        ("three dogs", ("three",)),
        ("12 dogs", ("12",)),
        ("a red light and a dog", ("light",)),
        ("many dogs", ("many",)),
        ("a dog 🐕", ("🐕",)),
        ("a dog <|mdm_mask|>", ("mdm_mask",)),
        ("a dog 一只狗", ("一只狗",)),
        ("a cat, a cat and a dog", ("cat",)),
    ],
)
def test_unknown_words_are_named_once(text: str, unknown: tuple[str, ...]) -> None:
    (line,) = KNOWN.warnings(text)
    listed = ", ".join(f"'{word}'" for word in unknown)
    assert line == f"tiny does not know {listed}; {KNOWN.about}".removesuffix(".")


def test_a_drawing_needs_an_object_and_a_question_does_not() -> None:
    for text in ("two", "", "what is red"):
        assert KNOWN.warnings(text) == (f"nothing to draw was found in the prompt; {KNOWN.about}".removesuffix("."),)
        assert KNOWN.warnings(text, needs_object=False) == ()
    (line,) = KNOWN.warnings("hello")
    assert line.startswith("tiny does not know 'hello'; nothing to draw was found in the prompt; ")


def test_a_warning_stays_one_short_printable_line() -> None:
    (line,) = KNOWN.warnings("".join(f"w{i} \x1b[2J\n" for i in range(500)) + "x" * 5000)
    assert len(line) < 400 and line.isprintable() and line.isascii()
    assert "'w0'" in line and " more; " in line
    (line,) = KNOWN.warnings("x" * 5000)
    assert len(line) < 200


def test_the_file_holds_everything() -> None:
    again = Vocabulary.parse(KNOWN.text())
    assert again == KNOWN and again.about == "tiny draws a dog or a traffic light."
    assert again.to_json() == {
        "about": again.about,
        "groups": {"objects": ["dog", "traffic light"], "numbers": ["one", "two"], "colours": ["red"]},
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "name must be"),
        ({"draws": 5}, "draws must be"),
        ({"groups": ["dog"]}, "groups must map"),
        ({"groups": {"objects": "dog"}}, "groups must map"),
        ({"groups": {"colours": ["red"]}}, "groups must have objects"),
        ({"groups": {"objects": []}}, "groups must have objects"),
        ({"forms": {"dog": [1]}}, "forms must map"),
        ({"words": [""]}, "words must be a list"),
        ({"more": 1}, "expected an object with the fields name, draws, groups, forms, words"),
    ],
)
def test_a_wrong_file_is_refused_by_field(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Vocabulary.parse(json.dumps(json.loads(KNOWN.text()) | change))
    for text in ("", "[]", "null", "{"):
        with pytest.raises(ValueError):
            Vocabulary.parse(text)
