"""Motions of a stick figure in two dimensions with exact texts, a reader that says what a motion shows, and pictures of it.

Public idea: ``sample(split, seed, i) -> Motion`` and ``read(poses) -> text``. A motion is two actions one after the other, "walks to the
left, then jumps twice". A pose is six numbers: place across, height of the hip, and the angles of both arms and both legs.

Shapes: T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unmask.rng import key
from unmask.writing import write_whole

FRAMES, CHANNELS = 24, 6  # of an action; across, height, left arm, right arm, left leg, right leg
TIMES = ("once", "twice", "three times")
ACTIONS = (
    "walks to the left",
    "walks to the right",
    *(f"jumps {times}" for times in TIMES),
    "waves with the left arm",
    "waves with the right arm",
    "sits down and stands up",
)
_STEP, _HIGH, _LOW, _RAISED = 0.25, 0.25, -0.3, 2.0  # what the reader wants: of a walk, a jump, sitting, an arm


@dataclass(frozen=True, kw_only=True)
class Motion:
    """``poses``: float32 [2 FRAMES, CHANNELS]."""

    text: str
    poses: np.ndarray


def text_of(actions: Sequence[str]) -> str:
    return ", then ".join(actions)


def sample(split: str, seed: int, number: int) -> Motion:
    """A motion of two different actions, with its own speed, size and noise. A fifth of the pairs is only in other splits than "train"."""
    rng = np.random.default_rng(key("motion", split, seed, number))
    while True:
        first, second = rng.permutation(len(ACTIONS))[:2]
        held = (int(first) * len(ACTIONS) + int(second)) % 5 == 0
        if held == (split != "train"):
            break
    chosen = (ACTIONS[first], ACTIONS[second])
    start = 0.3 * rng.standard_normal()
    parts = []
    for action in chosen:
        part = _acted(action, rng)
        part[:, 0] += start
        start = part[-1, 0]
        parts.append(part)
    poses = np.concatenate(parts) + 0.01 * rng.standard_normal((2 * FRAMES, CHANNELS))
    return Motion(text=text_of(chosen), poses=poses.astype(np.float32))


def _acted(action: str, rng: np.random.Generator) -> np.ndarray:
    """Poses of one action, from standing to standing."""
    t, poses = np.linspace(0, 1, FRAMES), np.zeros((FRAMES, CHANNELS))
    size, bump = 0.8 + 0.4 * rng.random(), np.sin(math.pi * t)
    if action.startswith("walks"):
        poses[:, 0] = (1 if action.endswith("right") else -1) * 0.6 * size * t
        swing = 0.5 * size * np.sin(2 * math.pi * (2 + rng.integers(2)) * t) * bump
        poses[:, 4], poses[:, 5], poses[:, 2], poses[:, 3] = swing, -swing, -0.6 * swing, 0.6 * swing
    elif action.startswith("jumps"):
        count = TIMES.index(action.removeprefix("jumps ")) + 1
        poses[:, 1] = 0.5 * size * np.maximum(0, np.sin(math.pi * count * t) * np.sign(np.sin(math.pi * count * t)))
        poses[:, 4], poses[:, 5] = 0.4 * poses[:, 1], -0.4 * poses[:, 1]
    elif action.startswith("waves"):
        side = 2 if "left" in action else 3
        raised = np.minimum(1, 4 * bump)
        poses[:, side] = raised * (2.6 + 0.25 * size * np.sin(2 * math.pi * 3 * t))
    else:
        down = np.minimum(1, 2 * bump)
        poses[:, 1], poses[:, 4], poses[:, 5] = -0.5 * size * down, 0.9 * down, 0.8 * down
    return poses


def read(poses: np.ndarray) -> str:
    """What the motion shows, as its text states it; "?" for an action that is none or more than one."""
    return text_of([_read_one(part) for part in np.split(poses, len(poses) // FRAMES)])


def _read_one(poses: np.ndarray) -> str:
    found = []
    across = float(poses[-1, 0] - poses[0, 0])
    if abs(across) > _STEP:
        found.append(f"walks to the {'right' if across > 0 else 'left'}")
    above = poses[:, 1] > _HIGH
    jumps = int((above[1:] & ~above[:-1]).sum() + above[0])
    if jumps:
        found.append(f"jumps {TIMES[jumps - 1]}" if jumps <= len(TIMES) else "?")
    if float(poses[:, 1].min()) < _LOW:
        found.append("sits down and stands up")
    found += [f"waves with the {side} arm" for side, c in (("left", 2), ("right", 3)) if poses[:, c].max() > _RAISED]
    return found[0] if len(found) == 1 else "?"


def picture(pose: np.ndarray, side: int = 96) -> Image.Image:
    """One pose on paper."""
    image = Image.new("RGB", (side, side), "#f4f1ea")
    pen, unit = ImageDraw.Draw(image), side / 4.0
    pen.line((0, side * 0.86, side, side * 0.86), "#c8c2b4", 2)
    across, height, left_arm, right_arm, left_leg, right_leg = (float(v) for v in pose)
    hip = (side / 2 + across * unit, side * 0.6 - height * unit)
    neck = (hip[0], hip[1] - 0.8 * unit)
    for (x, y), angle, length, colour in (
        (neck, -left_arm, 0.7, "#3568d4"),
        (neck, right_arm, 0.7, "#c8322b"),
        (hip, -left_leg, 1.0, "#3568d4"),
        (hip, right_leg, 1.0, "#c8322b"),
    ):
        end = (x + length * unit * math.sin(angle), y + length * unit * math.cos(angle))
        pen.line((x, y, *end), colour, 3)
    pen.line((*hip, *neck), "#30302e", 3)
    pen.ellipse((neck[0] - 6, neck[1] - 14, neck[0] + 6, neck[1] - 2), "#30302e")
    return image


def save_animation(poses: np.ndarray, path: Path, milliseconds: int = 60) -> None:
    """Write a motion as an animated GIF."""
    frames = [picture(pose) for pose in poses]

    def write(part: Path) -> None:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)

    write_whole(path, write)
