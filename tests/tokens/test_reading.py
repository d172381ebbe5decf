"""Typed text is read as the training texts write it, and training texts are not changed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from unmask.data.world import edits, language
from unmask.data.world.questions import questions
from unmask.data.world.scenes import sample
from unmask.tokens.prompts import COMPACT, RELEASED

SAME = {
    "a red apple": [
        *("A red apple.", "a RED Apple", "  a red apple  ", "a red apple!", "a red apple...", '"a red apple"', "“a red apple”"),
        *("1 red apple", "one red apple", "a\nred apple", "a\r\nred\tapple", "a red\u00a0apple", "a\u2028red\u3000apple"),
        *("a\u200bred\u200b apple", "\ufeffa red apple", "a red app\u00adle", "a\x00red\x1fapple", "ａ red apple", "a red apple,"),
    ],
    "an apple": ["1 apple", "one apple", "An apple."],
    "two dogs": ["2 dogs", "Two Dogs", "２ dogs", "two\ndogs", "2\tdogs."],
    "a dog, a cat and three birds": [
        *("a dog,, a cat and 3 birds", "a dog,a cat, and 3 birds", "a dog , a cat ,and three birds", "a dog. A cat and 3 birds."),
        *("a dog;\na cat & 3 birds", "a dog,\n\na cat and three birds"),
    ],
    "two dogs, one at the top and one at the left": ["2 dogs, 1 at the top and 1 at the left"],
    "how many dogs are there?": [
        *("how many dogs are there", "How many dogs are there ?", "how many dogs are there??", "how many dogs\nare there."),
    ],
    "what is left of the cat?": ["What's left of the cat", "what’s left of the cat?", "what is\tleft of the cat?"],
    "what colour is the car?": ["what color is the car", "WHAT COLOR IS THE CAR?"],
    "is there a dog?": ["is there 1 dog", "Is there one dog?"],
    "a grey chair in the centre": ["a gray chair in the center."],
    "an airplane": ["an aeroplane", "1 aeroplane"],
}  # fmt: skip


@pytest.mark.parametrize(("plain", "typed"), [(plain, typed) for plain, all_ in SAME.items() for typed in all_])
def test_what_a_newcomer_types_is_read_as_the_plain_form(plain: str, typed: str) -> None:
    assert COMPACT.read(typed) == plain
    assert RELEASED.read(typed) == typed, "released models read every byte"


@pytest.mark.parametrize(
    "text",
    [
        *("12 cats", "7 dogs", "2.5 dogs", "-2 dogs", "02 dogs", "2nd dog", "1:30", "3/4", "100000000000000000000 dogs"),
        *("a [mask] apple left of a [mask]", "<|mdm_mask|> a dog", "<loc_5> a dog", "?", "...", "describe, then draw"),
    ],
)  # fmt: skip
def test_what_has_no_other_form_stays(text: str) -> None:
    assert COMPACT.read(text) == text


def world(split: str) -> Iterator[str]:
    rng = Random(split)
    for index in range(300):
        for level in ("grid", "free"):
            scene = sample(level, split, 11, index)
            yield language.caption(scene, rng)
            yield from (question.text for question in questions(scene, rng))
            yield from (phrase for phrase, _ in language.referring(scene, rng))
            yield from (phrase for phrase, _ in language.layout(scene, rng))
            if made := edits.edit(scene, split, rng):
                yield made.instruction


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_text_of_the_world_changes(split: str) -> None:
    made = list(world(split))
    assert len(made) > 3000
    assert [text for text in made if COMPACT.read(text) != text] == []


def test_any_text_becomes_one_line_of_single_spaces() -> None:
    rng = Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("aA1 2.,;!?\n\t'\"&é½ﬁ\u200b\u00ad€<>[]-🐕\x00") for _ in range(rng.randint(0, 14)))
        read = COMPACT.read(f"{text} dog")
        assert read.isprintable() and "  " not in read and read == read.strip() and "dog" in read


def test_lone_surrogates_are_read() -> None:
    assert COMPACT.read("a \ud800 Dog") == "a \ud800 dog"
