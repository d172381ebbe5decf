"""Recognise the scene in an image of the grid world by comparison with renderings, to label generated images.

Public idea: ``read(image, "grid")``. No learned parts, and independent of the judge of the evaluation, so that critiques trained on its
labels do not fit the judge.

Shapes: T sprites (class x colour) · S pixels per side of a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from unmask.data.world.render import backdrop, render
from unmask.data.world.scenes import Scene, SceneObject, apart
from unmask.data.world.vocabulary import LEVELS

_SIDE = 64  # pixels per side at which images are compared
_ALIKE = 0.012  # mean squared difference below which two patches are considered equal


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``scene``: the recognised objects · ``clean``: whether the image shows nothing else."""

    scene: Scene
    clean: bool


def read(image: np.ndarray, level: str = "grid") -> Reading:
    """The scene in an image uint8 [side, side, 3]. ValueError for a level without a lattice."""
    if not LEVELS[level].lattice:
        raise ValueError(
            f"objects of level {level!r} may lie anywhere, so their positions cannot be enumerated; use a grid level"
        )
    small = np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
    against = {name: np.square(small - _empty(name)).mean(-1) for name in LEVELS[level].backgrounds}
    background = min(against, key=lambda name: float(np.quantile(against[name], 0.3)))
    left = against[background].copy()  # error not yet explained by an object
    spots = _spots(level)
    found = [_best(small, background, level, spot) for spot in spots]
    gains = [float(left[_part(*s)].mean() - error) * t.size**2 for s, (t, error) in zip(spots, found, strict=True)]
    objects: list[SceneObject] = []
    for i in sorted(range(len(found)), key=lambda i: -gains[i]):
        obj, error = found[i]
        taken = any(not apart((obj.x, obj.y, obj.size), (t.x, t.y, t.size)) for t in objects)
        if error < _ALIKE and gains[i] > 0 and not taken:
            objects.append(obj)
            left[_part(*spots[i])] = error
    n = LEVELS[level].lattice
    clean = bool((left.reshape(n, _SIDE // n, n, _SIDE // n).mean((1, 3)) < _ALIKE).all())
    return Reading(scene=Scene(objects=tuple(objects), background=background, level=level), clean=clean)


def _spots(level: str) -> list[tuple[float, float, float]]:
    """All positions (x, y, size) of a level."""
    n = LEVELS[level].lattice
    return [
        (x / n, y / n, size)
        for size in LEVELS[level].sizes
        for y in range(n - round(size * n) + 1)
        for x in range(n - round(size * n) + 1)
    ]


def _part(x: float, y: float, size: float) -> tuple[slice, slice]:
    left, top, side = (round(v * _SIDE) for v in (x, y, size))
    return slice(top, top + side), slice(left, left + side)


def _best(
    small: np.ndarray, background: str, level: str, spot: tuple[float, float, float]
) -> tuple[SceneObject, float]:
    """The best matching object at a position and its mean squared difference."""
    names, drawn_TSS3 = _drawn(background, level, spot)
    error_T = np.square(drawn_TSS3 - small[_part(*spot)]).mean((1, 2, 3))
    best = int(error_T.argmin())
    name, colour = names[best]
    return SceneObject(name=name, colour=colour, x=spot[0], y=spot[1], size=spot[2]), float(error_T[best])


@lru_cache(maxsize=256)
def _drawn(background: str, level: str, spot: tuple[float, float, float]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """All (class, colour) pairs of a level, and their renderings at a position."""
    names = [(name, colour) for name in LEVELS[level].classes for colour in ("", *LEVELS[level].colours)]
    x, y, size = spot
    objects = [SceneObject(name=name, colour=colour, x=x, y=y, size=size) for name, colour in names]
    scenes = [Scene(objects=(obj,), background=background, level=level) for obj in objects]
    patches = [render(s, _SIDE)[_part(*spot)] for s in scenes]
    return names, np.stack(patches).astype(np.float32) / 255


def _empty(background: str) -> np.ndarray:
    return backdrop(background, _SIDE) / 255
