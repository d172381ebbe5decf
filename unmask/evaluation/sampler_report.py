"""What a comparison of samplers shows: JSON, lines of a history, a plot. Public idea: ``SamplerReport(..).to_json()``, ``plot(report)``."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from unmask.evaluation.history import Line
from unmask.evaluation.metrics import Figure
from unmask.evaluation.sampler_axes import REFERENCE
from unmask.evaluation.sampler_runs import SamplerRow
from unmask.json_types import Json

HEAD = (
    *("sampler", "forwards", "tokens a forward", "tokens computed", "seconds", "times as fast", "agreement", "equal"),
    *("quality", "change"),
)
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Box = tuple[float, float, float, float]
_HIGH, _WIDE, _LEFT, _TOP = 420, 400, 60, 60
# Where a label may stand beside its point, in pixels, the best first.
_ASIDE = (6, -20, -7, -7, 9, -22, 9, -22, 22, -36, -7, -7)
_DOWN = (-9, -9, -23, 5, -23, -23, 6, 6, -9, -9, -37, 19)
_LOG_FROM = 20  # times the smallest value, from which on an axis is logarithmic
_INK, _GREY, _BLUE, _RED = "#282828", "#aab0ba", "#2a6fdb", "#c83c32"


@dataclass(frozen=True, kw_only=True)
class SamplerReport:
    """``rows``: of ``compare``; the reference is the first, and the reference at other seeds the second · ``label``: the model's name."""

    label: str
    task: str
    prompts: int
    seed: int
    device: str
    metric: str
    rows: tuple[SamplerRow, ...]

    def to_json(self) -> Json:
        about = {"model": self.label, "task": self.task, "prompts": self.prompts, "seed": self.seed}
        about |= {"device": self.device, "metric": self.metric or None}
        return {**about, "samplers": [row.to_json() for row in self.rows]}

    @property
    def repeated(self) -> int:
        """How many combinations have the sampler of an earlier row."""
        return sum(bool(row.same_as) for row in self.rows)

    def cells(self) -> list[list[str]]:
        """A line of text for each sampler that ran, under ``HEAD``, without repeated ones."""
        return [_cells(row) for row in self.rows if not (row.same_as or row.refused)]

    def refusals(self) -> list[list[str]]:
        """Name and reason of each sampler that the model or the task does not allow."""
        return [[row.name, row.refused] for row in self.rows if row.refused]

    def lines(self) -> list[Line]:
        """A line of a history for each sampler that ran: the value is its quality, or its agreement without a metric."""
        ran = [row for row in self.rows if not (row.refused or row.same_as)]
        return [
            Line(
                name=f"samplers.{self.label}.{self.task}.{row.name}",
                value=_height(row),
                unit="share",
                more={"n": self.prompts, "seed": self.seed, "metric": self.metric, **_rounded(row)},
            )
            for row in ran
        ]


def _cells(row: SamplerRow) -> list[str]:
    quality = _figure(row.quality, "{:.3f}", "{:.2f}")
    gain = "" if row.name == REFERENCE else _figure(row.gain, "{:+.3f}", "{:+.2f}")
    speed = f"{row.seconds:.3f}", f"{row.speedup:.2f}"
    cost = f"{row.forwards:.1f}", f"{row.tokens_a_forward:.2f}", f"{row.computed:.0f}"
    return [row.name, *cost, *speed, f"{row.agreement:.3f}", f"{row.equal:.3f}", quality, gain]


def _figure(figure: Figure | None, value: str, limit: str) -> str:
    """``0.667 (0.53..0.78)``."""
    if figure is None:
        return ""
    return f"{value.format(figure['value'])} ({limit.format(figure['low'])}..{limit.format(figure['high'])})"


def _height(row: SamplerRow) -> float:
    """What the plot and a history show of a sampler: its quality, without a metric its agreement."""
    return row.agreement if row.quality is None else row.quality["value"]


def _rounded(row: SamplerRow) -> Json:
    figures = {k: v for k, v in row.to_json().items() if k not in ("name", "settings", "same_as")}
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    return rounded | {
        name: {k: round(v, 4) for k, v in figure.items() if k != "n"}
        for name, figure in (("quality", row.quality), ("gain", row.gain))
        if figure is not None
    }


def plot(report: SamplerReport) -> Image.Image:
    """Quality (without a metric: agreement with the reference) against forwards, and against seconds as a share of the reference's.

    The reference is red; a sampler that none beats in both is blue, the others are grey.
    """
    rows = [row for row in report.rows[:1] + report.rows[2:] if not (row.refused or row.same_as)]
    image = Image.new("RGB", (2 * (_WIDE + _LEFT) + 40, _HIGH + 2 * _TOP + 20 * len(rows)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    up = f"quality ({report.metric})" if report.metric else "agreement with the reference"
    pen.text((_LEFT, 12), f"{report.label}, {report.task}: {up}, {report.prompts} prompts", _INK, font)
    heights = [_height(row) for row in rows]
    _panel(pen, font, "forwards", [row.forwards for row in rows], heights, _LEFT)
    times = [1 / row.speedup if row.speedup else 0.0 for row in rows]
    _panel(pen, font, "seconds, reference = 1", times, heights, 2 * _LEFT + _WIDE)
    for number, row in enumerate(rows):
        pen.text(
            (_LEFT, _HIGH + 2 * _TOP - 10 + 20 * number),
            f"{number + 1}  {row.name}",
            _RED if not number else _INK,
            font,
        )
    return image


def _panel(pen: ImageDraw.ImageDraw, font: Font, title: str, across: Items[float], up: Items[float], left: int) -> None:
    low, high = min(up), max(up)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    first, last = 0.0, max(across) * 1.1 or 1.0
    log = min(across) > 0 and last > _LOG_FROM * min(across)  # else one slow sampler would push all others to the edge
    if log:
        first, last = math.log10(min(across) / 1.1), math.log10(last)
    pen.rectangle((left, _TOP, left + _WIDE, _TOP + _HIGH), outline=_GREY)
    for step in range(5):
        x, y = left + _WIDE * step / 4, _TOP + _HIGH * (1 - step / 4)
        tick = first + (last - first) * step / 4
        pen.text((x - 12, _TOP + _HIGH + 6), f"{10**tick if log else tick:.3g}", _INK, font)
        pen.text((left - 42, y - 8), f"{low + (high - low) * step / 4:.2f}", _INK, font)
    pen.text((left, _TOP - 20), title, _INK, font)
    points = list(zip(across, up, strict=True))
    shares = [((math.log10(cost) if log else cost) - first) / (last - first) for cost in across]
    heights = [(value - low) / (high - low) for value in up]
    dots = [(left + _WIDE * share, _TOP + _HIGH * (1 - height)) for share, height in zip(shares, heights, strict=True)]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for number, ((cost, value), (x, y)) in enumerate(zip(points, dots, strict=True)):
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        colour = _RED if not number else _GREY if beaten else _BLUE
        pen.ellipse(taken[number], fill=colour)
        corners = [(x + aside, y + down) for aside, down in zip(_ASIDE, _DOWN, strict=True)]
        boxes = [pen.textbbox(corner, str(number + 1), font) for corner in corners]
        place = min(range(len(boxes)), key=lambda k: sum(_overlap(boxes[k], other) for other in taken))
        pen.text(corners[place], str(number + 1), _INK if colour == _GREY else colour, font)
        taken.append(boxes[place])


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes (left, top, right, bottom) share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
