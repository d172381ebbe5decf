"""Motions of the stick figure: the reader reads what the generator says, splits differ, and pictures show the pose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unmask.data.world.motions import ACTIONS, CHANNELS, FRAMES, picture, read, sample, save_animation


def test_every_motion_is_read_as_its_text_says() -> None:
    made = [sample(split, 3, i) for split in ("train", "test") for i in range(200)]
    assert all(read(m.poses) == m.text for m in made)
    assert {a for m in made for a in m.text.split(", then ")} == set(ACTIONS)
    assert made[0].poses.shape == (2 * FRAMES, CHANNELS)


def test_pairs_of_actions_of_the_test_are_not_in_the_training() -> None:
    train, test = ({sample(split, 0, i).text for i in range(400)} for split in ("train", "test"))
    assert not train & test and len(train) > 30 and len(test) > 8
    assert np.array_equal(sample("train", 0, 7).poses, sample("train", 0, 7).poses)


def test_what_is_no_single_action_is_not_read() -> None:
    poses = np.zeros((2 * FRAMES, CHANNELS), np.float32)
    assert read(poses) == "?, then ?"
    both = sample("train", 0, 0).poses.copy()
    both[:FRAMES, 1] = -0.6
    both[:FRAMES, 0] = np.linspace(0, 1, FRAMES)
    assert read(both).startswith("?, then")


def test_pictures_follow_the_pose_and_become_an_animation(tmp_path: Path) -> None:
    left, right = (np.asarray(picture(np.array([across, 0, 0, 0, 0, 0]))) for across in (-0.8, 0.8))
    assert not np.array_equal(left, right) and (left[:, :48] < 100).any() and not (left[:, 60:] < 100).all(-1).any()
    save_animation(sample("train", 0, 1).poses, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as found:
        assert getattr(found, "n_frames", 1) > FRAMES
