"""Pictures of the world are read correctly, and other pictures are rejected."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.data.world.reading import read
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject, sample


def seen(scene: Scene) -> set[tuple[str, str, float, float, float]]:
    return {(t.name, t.colour, t.x, t.y, t.size) for t in scene.objects}


@pytest.mark.parametrize("split", ["train", "test"])
def test_renderings_are_read_as_they_are(split: str) -> None:
    for i in range(25):
        scene = sample("grid", split, 5, i)
        found = read(render(scene, 128))
        assert seen(found.scene) == seen(scene), scene.signature
        assert found.scene.background == scene.background and found.clean
        assert found.scene.level == "grid"


def test_noise_does_not_hide_things() -> None:
    rng = np.random.default_rng(0)
    for i in range(5):
        scene = sample("grid", "train", 6, i)
        noisy = render(scene, 128) + rng.normal(0, 8, (128, 128, 3))
        assert seen(read(noisy.clip(0, 255).astype(np.uint8)).scene) == seen(scene)


def test_what_nothing_explains_is_not_clean() -> None:
    """A square that is no object, in an empty cell and over an object: the other objects are still read."""
    scene = Scene(
        objects=(
            SceneObject(name="apple", colour="", x=0.0, y=0.0, size=0.25),
            SceneObject(name="dog", colour="", x=0.5, y=0.5, size=0.5),
        ),
        background=sample("grid", "train", 0, 0).background,
        level="grid",
    )
    picture = render(scene, 128)
    assert read(picture).clean and seen(read(picture).scene) == seen(scene)
    beside, over = picture.copy(), picture.copy()
    for spoilt, rows, columns in ((beside, slice(0, 32), slice(96, 128)), (over, slice(0, 32), slice(0, 32))):
        spoilt[rows, columns] = np.random.default_rng(1).integers(0, 256, (32, 1, 3))  # stripes
    assert not read(beside).clean and seen(read(beside).scene) == seen(scene)
    assert not read(over).clean and {t.name for t in read(over).scene.objects} == {"dog"}


def test_an_empty_picture_is_clean_and_shows_nothing() -> None:
    scene = Scene(objects=(), background=sample("grid", "train", 0, 0).background, level="grid")
    found = read(render(scene, 128))
    assert found.clean and not found.scene.objects and found.scene.background == scene.background


def test_a_level_without_places_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="'free' may lie anywhere.*; use a grid level"):
        read(np.zeros((128, 128, 3), np.uint8), "free")
