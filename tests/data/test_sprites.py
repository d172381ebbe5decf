"""Rendering: blending only the boxes gives the same pixels as blending the whole picture, and shared sprites equal own ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unmask.data.world.render import backdrop, pixel_box, rasterise, render
from unmask.data.world.scenes import Draft, Scene, SceneObject, sample
from unmask.data.world.sprites import SpriteFile, fresh

DENSE = Draft(counts=((1, 0.2), (3, 0.4), (6, 0.4)))


def whole(scene: Scene, side: int) -> np.ndarray:
    """The slow twin: every object is blended into the whole picture in float32, and the sum is rounded once."""
    canvas = backdrop(scene.background, side).copy()
    for obj in scene.objects:
        left, top, extent = pixel_box(obj.x, obj.y, obj.size, side)
        rgba = rasterise(obj.name, obj.colour, extent).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        rgb, rest = rgba[..., :3] * alpha, 1 - alpha
        high, wide = min(extent, side - top), min(extent, side - left)
        region = canvas[top : top + high, left : left + wide]
        region *= rest[:high, :wide]
        region += rgb[:high, :wide]
    return (canvas + 0.5).astype(np.uint8)


@pytest.mark.parametrize(("level", "side"), [("grid", 128), ("grid_half", 64), ("free", 128), ("free", 256)])
def test_a_picture_is_the_same_to_the_bit(level: str, side: int) -> None:
    for i in range(25):
        scene = sample(level, "train", 5, i, DENSE)
        assert np.array_equal(render(scene, side), whole(scene, side))


def test_objects_that_share_pixels_are_rounded_once() -> None:
    cup = SceneObject(name="cup", colour="", x=0.1, y=0.1, size=0.5)
    dog = SceneObject(name="dog", colour="red", x=0.3, y=0.35, size=0.5)
    scene = Scene(objects=(cup, dog), background="sunset", level="free")
    assert np.array_equal(render(scene, 128), whole(scene, 128))


def test_a_box_that_ends_outside_is_cut() -> None:
    last = SceneObject(name="kite", colour="", x=0.502, y=0.502, size=0.498)
    scene = Scene(objects=(last,), background="sea", level="free")
    assert np.array_equal(render(scene, 101), whole(scene, 101))


def test_shared_sprites_are_those_of_ones_own(tmp_path: Path) -> None:
    made = SpriteFile.create(tmp_path, least=60, most=64)
    assert made is not None and made.path.stat().st_size == made.bytes
    for name, colour, side in (("dog", "", 60), ("toothbrush", "white", 64), ("cup", "pink", 62), ("cup", "pink", 65)):
        for _ in range(2):  # the second time from the file
            for got, wanted in zip(made(name, colour, side), fresh(name, colour, side), strict=True):
                assert np.array_equal(got, wanted)


def test_a_sprite_is_rasterised_by_the_first_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = SpriteFile.create(tmp_path, least=60, most=61), []
    assert made is not None
    monkeypatch.setattr("unmask.data.world.sprites.rasterise", lambda *key: calls.append(key) or rasterise(*key))
    for _ in range(3):
        made("dog", "red", 60)
        SpriteFile(path=made.path, least=60, most=61)("dog", "red", 61)
    assert calls == [("dog", "red", 60), ("dog", "red", 61)]


def test_no_file_where_the_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**9

    monkeypatch.setattr("unmask.data.world.sprites.shutil.disk_usage", lambda folder: Usage)
    assert SpriteFile.create(tmp_path) is None and not list(tmp_path.iterdir())
