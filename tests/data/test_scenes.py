"""The world: determinism, disjoint splits, held-out combinations, the lattice, rendering."""

from __future__ import annotations

from itertools import combinations as pairs

import numpy as np
import pytest

from unmask.data.world.render import backdrop, recolour, render, sprite
from unmask.data.world.scenes import (
    Draft,
    Scene,
    SceneObject,
    apart,
    combinations,
    held_out,
    relation,
    relation_of_groups,
    sample,
    shows_held_out,
    split_of,
)
from unmask.data.world.vocabulary import BACKGROUNDS, CLASSES, COLOURS, LEVELS


def many(level: str, split: str, n: int = 400) -> list[Scene]:
    return [sample(level, split, 0, i) for i in range(n)]


def test_the_world_is_as_large_as_promised() -> None:
    assert len(CLASSES) >= 48 and len(COLOURS) >= 10 and len(BACKGROUNDS) >= 8
    grid = LEVELS["grid"]
    assert (len(grid.classes), len(grid.colours), len(grid.backgrounds)) == (24, 6, 4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_scene_is_a_function_of_its_key(level: str) -> None:
    assert sample(level, "train", 3, 7) == sample(level, "train", 3, 7)
    assert sample(level, "train", 3, 7) != sample(level, "train", 3, 8)
    assert sample(level, "train", 3, 7) != sample(level, "train", 4, 7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_splits_are_disjoint(level: str, split: str) -> None:
    assert all(split_of(scene) == split for scene in many(level, split))


def test_the_split_does_not_depend_on_the_order_of_things() -> None:
    for scene in many("grid", "train", 100):
        turned = Scene(objects=scene.objects[::-1], background=scene.background, level=scene.level)
        assert split_of(turned) == "train"


@pytest.mark.parametrize("level", ["grid", "free"])
def test_only_the_test_split_shows_held_out_combinations(level: str) -> None:
    for split in ("train", "validation"):
        assert not any(held_out(*c) for scene in many(level, split) for c in combinations(scene))
    share = np.mean([shows_held_out(scene) for scene in many(level, "test")])
    assert 0.15 < share < 0.35


def test_held_out_is_symmetric() -> None:
    assert held_out("dog", "cat") == held_out("cat", "dog")
    assert held_out("left of", "dog", "cat") == held_out("right of", "cat", "dog")
    assert held_out("above", "bus", "cup") == held_out("below", "cup", "bus")


def test_grid_scenes_lie_on_the_lattice_and_apart() -> None:
    for scene in many("grid", "train"):
        covered = np.zeros((4, 4), dtype=int)
        for t in scene.objects:
            cells = [v * 4 for v in (t.x, t.y, t.size)]
            assert all(v == round(v) for v in cells)
            x, y, n = map(round, cells)
            covered[y : y + n, x : x + n] += 1
            assert 0 <= x <= 4 - n and 0 <= y <= 4 - n
        assert covered.max() == 1


def test_relation_needs_a_clear_axis() -> None:
    a, b = (sample("grid", "train", 0, i, Draft(counts=((1, 1.0),))).objects[0] for i in (0, 1))
    found = relation(a, b)
    back = relation(b, a)
    assert {found, back} in ({""}, {"left of", "right of"}, {"above", "below"})


@pytest.mark.parametrize("level", ["grid", "free"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_two_groups_stand_apart_within_the_split(level: str, split: str) -> None:
    draft = Draft(counts=((2, 1.0), (3, 1.0), (4, 1.0)), alike=0.0, grouped=1.0)
    scenes = [sample(level, split, 0, i, draft) for i in range(300)]
    related = 0
    for scene in scenes:
        names = list(dict.fromkeys(t.name for t in scene.objects))
        first, second = ([t for t in scene.objects if t.name == name] for name in names)
        assert len({t.colour for t in first}) == len({t.colour for t in second}) == 1
        related += bool(relation_of_groups(first, second))
        assert all(0 <= v <= 1 - t.size + 1e-9 for t in scene.objects for v in (t.x, t.y))
        assert all(apart((a.x, a.y, a.size), (b.x, b.y, b.size)) for a, b in pairs(scene.objects, 2))
        assert level == "free" or all((v * 4).is_integer() for t in scene.objects for v in (t.x, t.y, t.size))
        assert split_of(scene) == split and (split == "test" or not any(held_out(*c) for c in combinations(scene)))
    assert related > 0.7 * len(scenes)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4}


def test_the_relation_of_groups_holds_for_every_pair() -> None:
    def at(x: float, y: float) -> SceneObject:
        return SceneObject(name="dog", colour="", x=x, y=y, size=0.25)

    assert relation_of_groups([at(0, 0.25), at(0, 0.5)], [at(0.75, 0.25)]) == "left of"
    assert relation_of_groups([at(0, 0.25), at(0, 0.75)], [at(0.5, 0)]) == ""
    assert relation_of_groups([at(0.75, 0.25)], [at(0, 0.25), at(0, 0.5)]) == "right of"


def test_render_shows_what_the_scene_says() -> None:
    for scene in many("grid", "train", 40):
        picture = render(scene, 128)
        assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
        empty = (backdrop(scene.background, 128) + 0.5).astype(np.uint8)
        changed = (picture != empty).any(-1)
        inside = np.zeros((128, 128), dtype=bool)
        for t in scene.objects:
            x, y, n = (round(v * 128) for v in (t.x, t.y, t.size))
            inside[y : y + n, x : x + n] = True
            assert changed[y : y + n, x : x + n].mean() > 0.1
        assert not changed[~inside].any()


def test_every_sprite_is_there_and_takes_every_colour() -> None:
    for name in CLASSES:
        natural = sprite(name, "")
        assert natural[..., 3].max() == 1 and (natural[..., 3] > 0.5).mean() > 0.05
        for colour, rgb in COLOURS.items():
            tinted = recolour(natural, np.array(rgb, dtype=np.float32) / 255)
            assert np.isfinite(tinted).all() and tinted.min() >= 0 and tinted.max() <= 1.0001, (name, colour)


def test_unknown_names_are_said() -> None:
    with pytest.raises(ValueError, match="levels are"):
        sample("hard", "train", 0, 0)
    with pytest.raises(ValueError, match="splits are"):
        sample("grid", "dev", 0, 0)
