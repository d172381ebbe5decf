"""Pictures that are not square -> squares, by padding or by cropping.

Public idea: a ``Square`` such as ``Pad(paper)`` or ``Crop()`` maps a picture to ``side`` pixels. A crop is told to the model as the
conditions WIDTH, HEIGHT, TOP and LEFT of the paper (spec 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from PIL import Image

from unmask.tokens.boxes import FractionBox
from unmask.tokens.pictures import square
from unmask.tokens.prompts import Conditions


@dataclass(frozen=True, kw_only=True)
class Squared:
    """A square picture. ``window``: (x1, y1, x2, y2) of the square in fractions of the original picture, beyond it where it was padded ·
    ``conditions``: size and crop offset; None: the whole picture is in it.
    """

    image: Image.Image
    window: FractionBox
    conditions: Conditions | None = None

    def box(self, box: FractionBox) -> FractionBox | None:
        """A box in fractions of the picture -> fractions of the square; None if less than half of its area is in the square."""
        x1, y1, x2, y2 = self.window
        wide, high = x2 - x1, y2 - y1
        moved = ((box[0] - x1) / wide, (box[1] - y1) / high, (box[2] - x1) / wide, (box[3] - y1) / high)
        inside = tuple(min(max(v, 0.0), 1.0) for v in moved)
        return (inside[0], inside[1], inside[2], inside[3]) if 2 * _area(inside) >= _area(moved) else None


def _area(box: tuple[float, ...]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


class Square(Protocol):
    """How a picture becomes a square. ``rng``: for a random choice. ``name``: written beside codes that depend on it."""

    @property
    def name(self) -> str: ...

    def __call__(self, image: Image.Image, side: int, rng: Random) -> Squared: ...


@dataclass(frozen=True, kw_only=True)
class Pad:
    """The whole picture, centred on ``paper``."""

    paper: tuple[int, int, int]

    @property
    def name(self) -> str:
        return f"pad {self.paper[0]},{self.paper[1]},{self.paper[2]}"

    def __call__(self, image: Image.Image, side: int, rng: Random) -> Squared:
        padded, placement = square(image, side, self.paper)
        left, top = (-v for v in placement.offset)
        return Squared(
            image=padded,
            window=(
                left / image.width,
                top / image.height,
                (left + placement.side) / image.width,
                (top + placement.side) / image.height,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The short side resized to ``side`` (bilinear), then a square of it: a random one, or the middle."""

    middle: bool = False

    @property
    def name(self) -> str:
        return "crop middle" if self.middle else "crop random"

    def __call__(self, image: Image.Image, side: int, rng: Random) -> Squared:
        factor = side / min(image.size)
        wide, high = (max(side, round(v * factor)) for v in image.size)
        resized = image if (wide, high) == image.size else image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = ((v - side) // 2 if self.middle else rng.randint(0, v - side) for v in (wide, high))
        return Squared(
            image=resized.crop((left, top, left + side, top + side)),
            window=(left / wide, top / high, (left + side) / wide, (top + side) / high),
            conditions=Conditions(width=image.width, height=image.height, top=top, left=left),
        )
