"""Charts as PNG pictures, drawn with Pillow. Public ideas: ``bars(rows, title)`` and ``curves(panels, title)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#2a6fdb", "#b8862d", "#7a8290")
_HIGH, _WIDE, _LEFT = 230, 280, 56


@dataclass(frozen=True, kw_only=True)
class Curve:
    """``points``: (x, y), both above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves over one axis, both axes logarithmic."""

    title: str
    curves: Sequence[Curve]


def bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], title: str) -> Image.Image:
    """A group of bars for each row, (label, one value for each of ``names``); the longest bar fills the width."""
    high = 22 * len(names) + 16
    image, pen, font = _canvas(640, 70 + high * len(rows))
    pen.text((8, 8), title, "black", font)
    for place, name in enumerate(names):
        pen.text((90 + 220 * place, 28), name, COLOURS[place], font)
    most = max(value for _, values in rows for value in values)
    for row, (label, values) in enumerate(rows):
        top = 54 + high * row
        pen.text((8, top + 4), label, "black", font)
        for place, value in enumerate(values):
            y, width = top + 22 * place, 440 * value / most
            pen.rectangle((90, y, 90 + width, y + 18), COLOURS[place])
            pen.text((96 + width, y + 3), f"{value:.3g} s", "black", font)
    return image


def curves(panels: Sequence[Panel], title: str) -> Image.Image:
    """The panels side by side, two in a row."""
    rows = math.ceil(len(panels) / 2)
    image, pen, font = _canvas(2 * (_WIDE + _LEFT + 20), 40 + rows * (_HIGH + 70))
    pen.text((8, 8), title, "black", font)
    for number, panel in enumerate(panels):
        corner = (number % 2 * (_WIDE + _LEFT + 20) + _LEFT, number // 2 * (_HIGH + 70) + 56)
        _panel(pen, font, panel, corner)
    return image


def _panel(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, panel: Panel, corner: tuple[int, int]) -> None:
    left, top = corner
    pen.text((left, top - 18), panel.title, "black", font)
    pen.rectangle((left, top, left + _WIDE, top + _HIGH), outline="#aaaaaa")
    points = [point for curve in panel.curves for point in curve.points]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x0) / (math.log(x1 / x0) or 1)
        up = math.log(y / y0) / (math.log(y1 / y0) or 1)
        return left + 10 + across * (_WIDE - 20), top + _HIGH - 10 - up * (_HIGH - 20)

    for number, curve in enumerate(panel.curves):
        found = [at(x, y) for x, y in curve.points]
        pen.line(found, COLOURS[number], 2)
        for x, y in found:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), COLOURS[number])
        pen.text((left + 12, top + 6 + 14 * number), curve.name, COLOURS[number], font)
    for x, _ in panel.curves[0].points:
        pen.text((at(x, y0)[0] - 8, top + _HIGH + 4), f"{x:g}", "black", font)
    for y in (y0, y1):
        pen.text((left - 48, at(x0, y)[1] - 6), f"{y:.3g}", "black", font)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.ImageFont]:
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image), ImageFont.load_default(12)  # type: ignore[return-value]
