"""The scoring rules, checked case by case and against brute force."""

from __future__ import annotations

import itertools
from math import comb

import pytest

from unmask.data.world.scenes import RELATIONS, Scene, SceneObject
from unmask.evaluation.judge import Found, Seen
from unmask.evaluation.scoring import (
    Related,
    Want,
    Wanted,
    color_attr,
    colors,
    counting,
    interval,
    iou,
    matches,
    position,
    single,
    strict,
    two,
    verdict,
)


def found(name: str, colour: str = "", x: float = 0.0, y: float = 0.0, size: float = 0.25, score: float = 0.9) -> Found:
    return Found(name=name, colour=colour, box=(x, y, x + size, y + size), score=score)


def seen(*objects: Found, background: str = "white") -> Seen:
    return Seen(objects=objects, background=background)


def test_single_asks_for_presence_alone() -> None:
    assert verdict(seen(found("dog")), single("dog"))
    assert verdict(seen(found("dog"), found("dog"), found("cat")), single("dog"))
    assert not verdict(seen(found("cat")), single("dog"))
    assert not verdict(seen(), single("dog"))


def test_two_asks_for_both() -> None:
    want = two("dog", "cat")
    assert verdict(seen(found("cat"), found("dog")), want)
    assert not verdict(seen(found("dog"), found("dog")), want)


@pytest.mark.parametrize(("there", "wanted"), list(itertools.product(range(5), range(1, 5))))
def test_counting_is_exact(there: int, wanted: int) -> None:
    picture = seen(*[found("dog", x=0.2 * i) for i in range(there)], found("cat"))
    assert verdict(picture, counting("dog", wanted)) == (there == wanted)


@pytest.mark.parametrize(("there", "wanted"), list(itertools.product(range(4), range(1, 4))))
def test_a_count_that_is_not_exact_is_a_minimum(there: int, wanted: int) -> None:
    picture = seen(*[found("dog", x=0.2 * i) for i in range(there)])
    assert verdict(picture, Want(items=(Wanted(name="dog", count=wanted),))) == (there >= wanted)


def test_colors_judges_the_most_confident_object_of_the_class() -> None:
    red, blue = found("car", "red", score=0.9), found("car", "blue", x=0.5, score=0.7)
    assert verdict(seen(blue, red), colors("car", "red"))
    assert not verdict(seen(blue, red), colors("car", "blue"))
    assert not verdict(seen(found("car")), colors("car", "red"))
    assert verdict(seen(found("car")), colors("car", ""))
    assert verdict(seen(found("car", "red")), single("car"))


def test_color_attr_binds_each_colour_to_its_class() -> None:
    want = color_attr("dog", "red", "cat", "blue")
    assert verdict(seen(found("dog", "red"), found("cat", "blue")), want)
    assert not verdict(seen(found("dog", "blue"), found("cat", "red")), want)
    assert not verdict(seen(found("dog", "red")), want)


def test_two_colours_of_one_class_need_two_things() -> None:
    want = color_attr("dog", "red", "dog", "blue")
    assert verdict(seen(found("dog", "blue"), found("dog", "red", x=0.5)), want)
    assert not verdict(seen(found("dog", "red"), found("dog", "red", x=0.5)), want)
    assert not verdict(seen(found("dog", "red")), want)


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [(0.0, 0.375, "left of"), (0.75, 0.375, "right of"), (0.375, 0.0, "above"), (0.375, 0.75, "below"), (0.0, 0.0, "")],
)
def test_position_goes_by_centres(x: float, y: float, relation: str) -> None:
    picture = seen(found("dog", x=x, y=y), found("cat", x=0.375, y=0.375))
    for asked in RELATIONS:
        assert verdict(picture, position(Wanted(name="dog"), asked, Wanted(name="cat"))) == (asked == relation)


def test_position_with_colours() -> None:
    picture = seen(found("dog", "red"), found("cat", "blue", x=0.75))
    red, blue = Wanted(name="dog", colour="red"), Wanted(name="cat", colour="blue")
    assert verdict(picture, position(red, "left of", blue))
    assert not verdict(picture, position(Wanted(name="dog", colour="blue"), "left of", blue))
    twins = seen(found("dog", "red"), found("dog", "blue", x=0.75))
    assert verdict(twins, position(red, "left of", Wanted(name="dog", colour="blue")))
    assert not verdict(twins, position(red, "right of", Wanted(name="dog", colour="blue")))


def test_one_thing_is_not_beside_itself() -> None:
    want = position(Wanted(name="dog"), "left of", Wanted(name="dog"))
    assert not verdict(seen(found("dog")), want)
    assert verdict(seen(found("dog", score=0.9), found("dog", x=0.75, score=0.8)), want)


def test_strict_allows_nothing_else() -> None:
    dog, cat, cup = found("dog"), found("cat", x=0.5), found("cup", y=0.5)
    assert strict(seen(dog, cat), two("dog", "cat"))
    assert not strict(seen(dog, cat, cup), two("dog", "cat"))
    assert not strict(seen(dog, dog), single("dog"))
    assert strict(seen(dog, cat), position(Wanted(name="dog"), "left of", Wanted(name="cat")))
    assert not strict(seen(cup), single("dog"))


def test_impossible_wants_are_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        Wanted(name="dog", count=0)
    with pytest.raises(ValueError, match="relation"):
        Related(first=Wanted(name="dog"), relation="near", second=Wanted(name="cat"))
    with pytest.raises(ValueError, match="items"):
        related = Related(first=Wanted(name="dog"), relation="above", second=Wanted(name="cat"))
        Want(items=(Wanted(name="dog"),), related=related)


def test_iou_equals_counting_pixels() -> None:
    def inside(box: tuple[float, float, float, float], x: int, y: int) -> bool:
        return box[0] <= x < box[2] and box[1] <= y < box[3]

    boxes = [(0, 0, 4, 4), (2, 1, 6, 5), (4, 0, 8, 4), (1, 1, 3, 3), (0, 0, 8, 8)]
    for a, b in itertools.product(boxes, boxes):
        cells = [(inside(a, x, y), inside(b, x, y)) for x in range(8) for y in range(8)]
        expected = sum(p and q for p, q in cells) / sum(p or q for p, q in cells)
        assert iou(a, b) == pytest.approx(expected)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def scene(*objects: SceneObject) -> Scene:
    return Scene(objects=objects, background="sky", level="grid")


def obj(name: str, colour: str, x: float, y: float, size: float = 0.25) -> SceneObject:
    return SceneObject(name=name, colour=colour, x=x, y=y, size=size)


def test_matches_wants_the_whole_scene() -> None:
    true = scene(obj("dog", "red", 0, 0), obj("dog", "", 0.5, 0), obj("cup", "", 0, 0.5))
    objects = [found("dog", "red"), found("dog", "", x=0.5), found("cup", "", y=0.5)]
    for order in itertools.permutations(objects):
        assert matches(seen(*order, background="sky"), true)
    assert not matches(seen(*objects, background="sand"), true)
    assert not matches(seen(*objects[:2], background="sky"), true)
    assert not matches(seen(*objects, found("cat", x=0.7, y=0.7), background="sky"), true)
    assert not matches(seen(found("dog"), found("dog", "red", x=0.5), objects[2], background="sky"), true)
    assert not matches(seen(objects[0], objects[0], objects[2], background="sky"), true)
    assert not matches(seen(*objects[:2], found("cup", "red", y=0.5), background="sky"), true)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, True), (0.08, True), (0.09, False), (0.25, False)])
def test_matches_wants_half_the_union(shift: float, expected: bool) -> None:
    # Equal squares of side s, one shifted by d: IoU = (s - d) / (s + d), a half at d = s / 3.
    assert matches(seen(found("dog", x=shift), background="sky"), scene(obj("dog", "", 0, 0))) == expected


def test_matches_tries_every_pairing() -> None:
    # The first found fits both objects, the second only the first object: taking the first fit would fail.
    true = scene(obj("dog", "", 0.0, 0.0, 0.5), obj("dog", "", 0.1, 0.0, 0.5))
    assert matches(seen(found("dog", x=0.1, size=0.5), found("dog", x=0.0, size=0.36), background="sky"), true)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (5, 10), (10, 10), (97, 100), (199, 200)])
def test_interval_solves_wilsons_equation(successes: int, n: int) -> None:
    low, high = interval(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:  # where the score test just rejects
            assert abs(share - bound) / (bound * (1 - bound) / n) ** 0.5 == pytest.approx(1.959964, rel=1e-4)


def test_interval_covers() -> None:
    # Exact coverage of a binomial share of 0.9 with n = 50: near 95 %.
    covered = sum(
        comb(50, k) * 0.9**k * 0.1 ** (50 - k) for k in range(51) if interval(k, 50)[0] <= 0.9 <= interval(k, 50)[1]
    )
    assert 0.93 < covered < 0.98


def test_interval_of_nothing_and_of_nonsense() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    for successes, n in [(3, 2), (-1, 4)]:
        with pytest.raises(ValueError, match="successes"):
            interval(successes, n)
