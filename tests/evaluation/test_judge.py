"""The shipped judge on renderings that it never saw, and the rules that hold for any judge."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, Scene, sample
from unmask.data.world.vocabulary import BACKGROUND_NAMES
from unmask.evaluation.judge import Found, Judge, JudgeConfig, Seen, load_judge, read_judge, save_judge
from unmask.evaluation.scoring import iou, matches
from unmask.recipe import override
from unmask.recipes.judge import Renderings, accuracy, corrupt_object, detector, examples, loss
from unmask.training.train import train

TINY = JudgeConfig(widths=(8, 8, 8), blocks=(0, 0, 1))


def pictures(level: str, count: int, side: int = 128) -> tuple[list[Scene], np.ndarray]:
    scenes = [sample(level, "test", 3, i) for i in range(count)]
    return scenes, np.stack([render(s, side) for s in scenes])


@pytest.mark.parametrize(
    ("level", "side", "least"), [("grid", 128, 0.97), ("grid_half", 64, 0.97), ("free", 128, 0.9), ("free", 256, 0.9)]
)
def test_unseen_renderings_are_read_exactly(level: str, side: int, least: float) -> None:
    scenes, images = pictures(level, 200, side)
    seen = load_judge().look(images)
    assert sum(matches(s, scene) for s, scene in zip(seen, scenes, strict=True)) >= least * len(scenes)


def test_a_larger_picture_is_read_as_its_averaged_squares() -> None:
    large = np.stack([render(sample("free", "test", 3, i), 256) for i in range(4)])
    small = (large.reshape(4, 128, 2, 128, 2, 3).mean((2, 4)) + 0.5).astype(np.uint8)
    assert load_judge().look(large) == load_judge().look(small)


def test_slightly_blurred_renderings_are_read_too() -> None:
    scenes, images = pictures("grid", 100)
    soft = [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))) for image in images]
    seen = load_judge().look(soft)
    assert sum(matches(s, scene) for s, scene in zip(seen, scenes, strict=True)) >= 95


def test_shuffled_pictures_show_nothing() -> None:
    _, images = pictures("grid", 60)
    rng = np.random.default_rng(0)
    squares = images.reshape(60, 16, 8, 16, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(60 * 256, 8, 8, 3)
    mixed = squares[rng.permutation(len(squares))].reshape(60, 16, 16, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    seen = load_judge().look(np.ascontiguousarray(mixed).reshape(60, 128, 128, 3))
    assert sum(len(s.objects) for s in seen) <= 1


def test_an_empty_picture_shows_its_background_alone() -> None:
    scenes = [Scene(objects=(), background=name, level="free") for name in BACKGROUND_NAMES]
    seen = load_judge().look([render(s) for s in scenes])
    assert [s.background for s in seen] == list(BACKGROUND_NAMES)
    assert not any(s.objects for s in seen)


def test_a_picture_is_read_alike_in_any_company() -> None:
    _, images = pictures("free", 9)
    together = load_judge().look(images)
    for image, seen in zip(images, together, strict=True):
        (alone,) = load_judge().look([image])
        assert [(f.name, f.colour) for f in alone.objects] == [(f.name, f.colour) for f in seen.objects]
        for a, b in zip(alone.objects, seen.objects, strict=True):
            assert a.box == pytest.approx(b.box, abs=1e-4) and a.score == pytest.approx(b.score, abs=1e-4)


def test_scores_fall_and_boxes_stay_apart() -> None:
    _, images = pictures("free", 30)
    for seen in load_judge().look(images):
        scores = [f.score for f in seen.objects]
        assert scores == sorted(scores, reverse=True)
        assert all(iou(a.box, b.box) < 0.5 for i, a in enumerate(seen.objects) for b in seen.objects[:i])


def test_features_tell_pictures_apart() -> None:
    _, images = pictures("grid", 40)
    features = load_judge().features(images)
    assert features.shape == (40, 256) and features.dtype == np.float32
    assert np.allclose(features[:3], load_judge().features(images[:3]), atol=1e-4)
    assert np.linalg.norm(features[:, None] - features[None], axis=-1)[np.triu_indices(40, 1)].min() > 1e-2
    assert load_judge().features([]).shape == (0, 256) and load_judge().look([]) == []


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 128, 128, 3), dtype=np.float32),
        np.zeros((1, 3, 128, 128), dtype=np.uint8),
        np.zeros((1, 64, 128, 3), dtype=np.uint8),
        np.zeros((1, 200, 200, 3), dtype=np.uint8),
    ],
)
def test_other_pictures_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        Judge(TINY).look(images)


def test_the_shipped_file_is_small() -> None:
    shipped = files("unmask.evaluation") / "assets" / "judge.safetensors"
    assert len(shipped.read_bytes()) < 4_000_000


def test_save_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge(TINY)
    save_judge(judge, tmp_path / "tiny.safetensors")
    again = read_judge(tmp_path / "tiny.safetensors")
    assert again.config == TINY and not again.training
    for name, value in judge.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value.bfloat16().float(), again.state_dict()[name])


def test_looking_leaves_the_mode_alone() -> None:
    judge = Judge(TINY).train()
    judge.look(np.zeros((1, 128, 128, 3), dtype=np.uint8))
    assert judge.training


def test_training_examples_are_the_same_for_ever() -> None:
    first, again = examples(8, 8, 0), examples(8, 8, 0)
    assert all(np.array_equal(a.image, b.image) and a.objects == b.objects for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].image, examples(8, 8, 1)[0].image)


def test_spoiling_says_how_much_it_changed() -> None:
    for i in range(60):
        scene = sample("grid", "test", 3, i)
        clean = render(scene)
        image = clean.copy()
        changed = corrupt_object(image, scene.objects[0], scene.background, clean[::-1], np.random.default_rng(i))
        outside = np.ones((128, 128), dtype=bool)
        x, y, size = (round(v * 128) for v in (scene.objects[0].x, scene.objects[0].y, scene.objects[0].size))
        outside[y : y + size, x : x + size] = False
        assert np.array_equal(image[outside], clean[outside])
        assert changed > 0 or np.abs(image.astype(int) - clean).max() <= 32


def test_accuracy_counts() -> None:
    scene = sample("grid", "test", 3, 0, Draft(counts=((2, 1.0),)))
    good = [Found(name=t.name, colour=t.colour, box=t.box, score=0.9) for t in scene.objects]
    wrong = Found(name="dog", colour="", box=(0.0, 0.0, 0.01, 0.01), score=0.9)
    seen = [
        Seen(objects=(*good, wrong), background=scene.background),
        Seen(objects=tuple(good), background=scene.background),
    ]
    counts = accuracy(seen, [scene, scene])
    assert (counts.scenes, counts.exact, counts.objects, counts.right, counts.extra) == (2, 1, 4, 4, 1)


def test_the_recipe_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Its export too is the same, though a state holds no statistics of batch norm: they are measured in the end."""
    recipe = override(detector(), ["source.batch=8", "training.steps=12", "training.save_every=6", "optim.warmup=2"])
    recipe = replace(recipe, model=lambda: keyed(TINY))
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=6)
    train(recipe, tmp_path / "parts")
    wanted, got = (read_judge(tmp_path / n / "judge.safetensors").state_dict() for n in ("whole", "parts"))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert (wanted["trunk.1.1.running_mean"] != 0).all()
    pixels, made = Renderings(seed=1, batch=8)(0)
    before, after = (loss(m.train()(pixels), made, TINY) for m in (keyed(TINY), whole))
    assert set(after) == {"classes", "colours", "places", "background"}
    assert sum(after.values()) < sum(before.values())


def keyed(config: JudgeConfig) -> Judge:
    torch.manual_seed(0)
    return Judge(config)
