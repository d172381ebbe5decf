"""Scene -> pixels: sprites from the shipped sheet, recoloured, resized and pasted.

Public idea: ``render(scene, side)``. Sprites are cached by (class, colour, size), so a 64 px grid scene takes tens of microseconds
and training needs no worker processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from unmask.data.world.scenes import Scene
from unmask.data.world.vocabulary import BACKGROUNDS, CLASS_NAMES, COLOURS

_CELL = 128  # pixels per side of a sprite on the sheet
_COLUMNS = 8

Sized = Callable[[str, str, int], tuple[np.ndarray, np.ndarray]]  # (class, colour, pixels) -> ``planes`` of its sprite


@lru_cache(maxsize=1)
def _sheet() -> np.ndarray:
    with (files("unmask.data.world") / "artwork" / "sprites.png").open("rb") as f:
        return np.asarray(Image.open(f).convert("RGBA"), dtype=np.float32) / 255


@cache
def sprite(name: str, colour: str) -> np.ndarray:
    """One sprite at full size: RGBA in [0, 1], float32 [128, 128, 4]. ``colour`` "" keeps the natural colour."""
    row, column = divmod(CLASS_NAMES.index(name), _COLUMNS)
    rgba = _sheet()[row * _CELL : (row + 1) * _CELL, column * _CELL : (column + 1) * _CELL].copy()
    if colour:
        rgba[..., :3] = recolour(rgba, np.array(COLOURS[colour], dtype=np.float32) / 255)
    return rgba


def recolour(rgba: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Replace the hue of a sprite and keep its luminance structure: dark -> shade, middle -> the colour, bright -> tint.

    rgba [H, W, 4] in [0, 1], rgb [3] in [0, 1] -> [H, W, 3]. Luminance is stretched per sprite and its median mapped
    to the middle, so that dark and bright sprites are recoloured alike.
    """
    luminance = rgba[..., :3] @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
    seen = luminance[rgba[..., 3] > 0.5]
    low, high = np.percentile(seen, (2, 98))
    level = np.clip((luminance - low) / max(high - low, 0.15), 0, 1)[..., None]
    middle = np.clip((np.median(seen) - low) / max(high - low, 0.15), 0.05, 0.95)
    level = level ** (np.log(0.5) / np.log(middle))
    dark = rgb * 0.35
    tint = rgb + (1 - rgb) * 0.55
    return np.where(level < 0.5, dark + (rgb - dark) * level * 2, rgb + (tint - rgb) * (level - 0.5) * 2)


def rasterise(name: str, colour: str, side: int) -> np.ndarray:
    """A sprite at ``side`` pixels: RGBA, uint8 [side, side, 4]."""
    drawing = Image.fromarray((sprite(name, colour) * 255 + 0.5).astype(np.uint8), "RGBA")
    # Pillow premultiplies RGBA when resizing, so transparent pixels do not bleed into the edges.
    return np.asarray(drawing.resize((side, side), Image.Resampling.LANCZOS))


def planes(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(RGB, alpha) of a sprite, both uint8 [side, 3 * side]: alpha stands three times, so that blending is over flat rows."""
    side = len(rgba)
    return rgba[..., :3].reshape(side, -1), rgba[..., 3].repeat(3, axis=1)


@lru_cache(maxsize=20000)
def _sized(name: str, colour: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    return planes(rasterise(name, colour, side))


@lru_cache(maxsize=64)
def backdrop(name: str, side: int) -> np.ndarray:
    """A background alone: float32 [side, side, 3] in 0..255. Read only."""
    _, top, bottom = BACKGROUNDS[name]
    fade = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    ends = np.array(top, dtype=np.float32), np.array(bottom, dtype=np.float32)
    picture = np.broadcast_to(ends[0] + (ends[1] - ends[0]) * fade, (side, side, 3)).copy()
    picture.flags.writeable = False
    return picture


def pixel_box(x: float, y: float, size: float, side: int) -> tuple[int, int, int]:
    """Position in fractions -> (left, top, side) in whole pixels of an image of ``side`` pixels."""
    return round(x * side), round(y * side), max(1, round(size * side))


@lru_cache(maxsize=64)
def _painted(name: str, side: int) -> np.ndarray:
    """A background alone as pixels: uint8 [side, side, 3]. Read only."""
    picture = (backdrop(name, side) + 0.5).astype(np.uint8)
    picture.flags.writeable = False
    return picture


class _Scratch(threading.local):
    """Two float32 buffers per thread: new arrays of this size would cost more than the arithmetic."""

    def __init__(self) -> None:
        self.buffers = np.empty((2, 0), dtype=np.float32)

    def __call__(self, high: int, wide: int) -> np.ndarray:
        """[2, high, wide], with any content."""
        if self.buffers.shape[1] < high * wide:
            self.buffers = np.empty((2, high * wide), dtype=np.float32)
        return self.buffers[:, : high * wide].reshape(2, high, wide)


_scratch = _Scratch()


def render(scene: Scene, side: int = 128, sized: Sized = _sized) -> np.ndarray:
    """The picture of a scene: uint8 [side, side, 3]. ``sized``: where its sprites come from (``sprites.SpriteFile``).

    Only the boxes of the objects are blended. Where two boxes share pixels, the whole picture is, so that nothing is rounded twice.
    """
    boxes = [pixel_box(obj.x, obj.y, obj.size, side) for obj in scene.objects]
    apart = all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    below = backdrop(scene.background, side) if apart else backdrop(scene.background, side).copy()
    canvas = _painted(scene.background, side).copy()
    flat, flat_below = canvas.reshape(side, -1), below.reshape(side, -1)
    for obj, (left, top, extent) in zip(scene.objects, boxes, strict=True):
        rgb, alpha = sized(obj.name, obj.colour, extent)
        high, wide = min(extent, side - top), 3 * min(extent, side - left)
        here = slice(top, top + high), slice(3 * left, 3 * left + wide)
        blended, colour = _scratch(high, wide)
        np.divide(alpha[:high, :wide], np.float32(255), out=blended)
        np.multiply(rgb[:high, :wide], blended, out=colour)
        np.subtract(1, blended, out=blended)
        blended *= flat_below[here]
        blended += colour
        if apart:
            blended += 0.5
            flat[here] = blended
        else:
            flat_below[here] = blended
    return canvas if apart else (below + 0.5).astype(np.uint8)


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[2] <= b[1] or b[1] + b[2] <= a[1]
