"""Layouts survive the way to tokens and back; what a model got wrong in one is repaired or dropped, and said."""

from __future__ import annotations

import pytest

from tests.tokens.test_build import TEXTS, WORDINGS
from unmask.tokens.layouts import Layout, Placed, from_ids, to_ids
from unmask.tokens.text import BOX, END_BOX, EOT, EXP

THINGS = (
    Placed(phrase="red apple", box=(0.125, 0.25, 0.5, 0.75)),
    Placed(phrase="cat", box=(0.5, 0.0, 1.0, 0.5)),
)
TEXT, WORDING = TEXTS["compact"], WORDINGS["compact"]


@pytest.mark.parametrize("name", WORDINGS)
@pytest.mark.parametrize("objects", [THINGS, THINGS[:1], ()])
def test_there_and_back(name: str, objects: tuple[Placed, ...]) -> None:
    text, wording = TEXTS[name], WORDINGS[name]
    for reason in (wording.plan_reason, *(r for _, r in wording.edit_reasons)):
        layout = Layout(objects=objects, reason=reason)
        ids = to_ids(layout, text, wording)
        assert from_ids([*ids, text[EOT]], text, wording).objects == objects
        if objects and reason:
            assert from_ids(ids, text, wording).reason == reason
        assert to_ids(from_ids(ids, text, wording), text, wording) == ids or not objects


def test_nothing_is_read_behind_the_end() -> None:
    ids = to_ids(Layout(objects=THINGS), TEXT, WORDING)
    for end in (EOT, EXP):
        assert len(from_ids([*ids[:7], TEXT[end], *ids[7:]], TEXT, WORDING).objects) == 1


def test_a_phrase_that_spells_a_tag_stays_words() -> None:
    layout = Layout(objects=(Placed(phrase="<LOC_BEGIN> <LOC_5>", box=(0, 0, 1, 1)),))
    read = from_ids(to_ids(layout, TEXT, WORDING), TEXT, WORDING)
    assert [t.phrase for t in read.objects] == ["<loc_begin> <loc_5>"] and not read.troubles


def _written(phrase: str, *bins: int, open: bool = True, closed: bool = True) -> list[int]:
    places = [TEXT.first_location + b for b in bins]
    return TEXT.encode(phrase) + [TEXT[BOX]] * open + places + [TEXT[END_BOX]] * closed


@pytest.mark.parametrize(
    ("ids", "kept", "trouble"),
    [
        (_written("cat", 512, 0, 0, 512), (0.0, 0.0, 0.5, 0.5), "reversed"),
        (_written("cat", 0, 0, 512, 512, closed=False), (0.0, 0.0, 0.5, 0.5), ""),
        (_written("cat", 0, 0, 512, 512, open=False), (0.0, 0.0, 0.5, 0.5), ""),
        (_written("cat", 0, 0, 512, 512, 3), (0.0, 0.0, 0.5, 0.5), "5 coordinates"),
        (_written("cat", 0, 0, 512), None, "3 of 4 coordinates"),
        (_written("cat"), None, "0 of 4 coordinates"),
        (_written("cat", 0, 9, 512, 9), None, "an empty box"),
        (_written("", 0, 0, 512, 512), None, "without a phrase"),
        (TEXT.encode("cat and dog"), None, "no box"),
    ],
)
def test_what_is_wrong_is_repaired_or_dropped_and_said(
    ids: list[int], kept: tuple[float, ...] | None, trouble: str
) -> None:
    good = to_ids(Layout(objects=THINGS[:1]), TEXT, WORDING)
    for layout in (from_ids(ids + good, TEXT, WORDING), from_ids(good + ids, TEXT, WORDING)):
        if "no box" in trouble and layout.objects[0].phrase != "red apple":
            continue  # words without a box before an object belong to its name
        boxes = [t.box for t in layout.objects if t.phrase == "cat"]
        assert boxes == ([kept] if kept else [])
        assert any(t.phrase == "red apple" for t in layout.objects)
        assert (trouble in " ".join(layout.troubles)) if trouble else not layout.troubles
