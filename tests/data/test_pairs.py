"""Pairs of a picture and a text: repeatable, split by their texts, and texts that say what the scene shows."""

from __future__ import annotations

import pytest

from unmask.data.world.pairs import Pairs
from unmask.data.world.render import render
from unmask.data.world.scenes import apart


@pytest.mark.parametrize("pairs", [Pairs(), Pairs(most=2, places=True)])
def test_pairs_are_functions_of_their_number_and_no_text_is_in_both_splits(pairs: Pairs) -> None:
    train, test = ([pairs(3, i, split) for i in range(300)] for split in ("train", "test"))
    assert train[:20] == [pairs(3, i) for i in range(20)] and train[:20] != [pairs(4, i) for i in range(20)]
    assert not {p.text for p in train} & {p.text for p in test} and len({p.text for p in test}) > 1
    assert {len(p.scene.objects) for p in train} == set(range(1, pairs.most + 1))


def test_objects_do_not_overlap_and_stand_on_the_codes_of_a_picture() -> None:
    for i in range(100):
        scene = Pairs(most=2)(0, i).scene
        spots = [(o.x, o.y, o.size) for o in scene.objects]
        assert all(apart(a, b) for n, a in enumerate(spots) for b in spots[:n])
        assert all((value * 8).is_integer() for spot in spots for value in spot)
        assert render(scene, 32).shape == (32, 32, 3)


def test_a_text_with_places_determines_the_picture() -> None:
    pairs = Pairs(most=2, places=True)
    known: dict[str, object] = {}
    for i in range(400):
        pair = pairs(0, i)
        assert known.setdefault(pair.text, pair.scene) == pair.scene


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pairs(classes=("sofa",)), "classes are some of the grid level's, got .'sofa'."),
        (lambda: Pairs(most=3), "at most 1 or 2 objects of this size, got most=3"),
        (lambda: Pairs()(0, 0, "validation"), "the splits of pairs are train and test, got 'validation'"),
    ],
)
def test_what_there_is_not_is_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_are_written_alike() -> None:
    said = {pair.text for i in range(200) for pair in (Pairs(most=2, places=True)(0, i),)}
    assert all(text.startswith(("a ", "an ")) and text.endswith(" on a white background") for text in said)
    assert any(" and " in text for text in said) and any("at the top left" in text for text in said)
