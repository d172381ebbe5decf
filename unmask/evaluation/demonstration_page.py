"""The page of a demonstration: one HTML file with everything in it. Public idea: ``page(findings, about) -> str``."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.evaluation.demonstration import Cell, Findings, Media, Plot, Table
from unmask.json_types import Json

if TYPE_CHECKING:
    from PIL import Image

_WIDE, _HIGH = 460.0, 280.0
_KINDS = {".gif": "image/gif", ".png": "image/png", ".svg": "image/svg+xml", ".wav": "audio/wav", ".mp4": "video/mp4"}


def page(findings: Findings, about: Json) -> str:
    """The HTML page. ValueError for a file of media that is of no known kind."""
    from jinja2 import Environment

    template = (files("unmask.evaluation") / "demonstration.html").read_text(encoding="utf-8")
    parts = [_part(part) for part in findings.shown]
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            about=about,
            outcome=outcome(findings),
            findings=findings,
            figures=[(k, said(v)) for k, v in findings.figures.items()],
            parts=parts,
        )
    )


def outcome(findings: Findings) -> str:
    """In three words: whether the effect lies outside the interval of the baseline."""
    return "Effect seen" if findings.seen else "Effect not seen"


def said(cell: Cell) -> str:
    """A cell as text: ``0.912 [0.880, 0.935]`` for a figure."""
    if isinstance(cell, dict):
        low, high = cell.get("low"), cell.get("high")
        return said(cell["value"]) + (f" [{said(low)}, {said(high)}]" if low is not None and high is not None else "")
    if cell is None or isinstance(cell, float) and not math.isfinite(cell):
        return "-"
    if isinstance(cell, float):
        cell = 0.0 if abs(cell) < 0.0005 else cell  # not -0.000
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:.1f}" if abs(cell) < 1000 else f"{cell:.0f}"
    return str(cell)


def _part(part: Table | Plot | Media) -> Json:
    if isinstance(part, Table):
        rows = [[said(cell) for cell in row] for row in part.rows]
        return {"kind": "table", "title": part.title, "note": part.note, "head": part.head, "rows": rows}
    if isinstance(part, Plot):
        return {"kind": "plot", "title": part.title, "note": "", **_drawn(part)}
    items = [{"caption": caption, **_embedded(item)} for caption, item in part.items]
    return {"kind": "media", "title": part.title, "note": part.note, "items": items}


def _embedded(item: Image.Image | Path) -> Json:
    """{"url", "kind"}: image, audio or video."""
    if isinstance(item, Path):
        if item.suffix not in _KINDS:
            raise ValueError(f"{item.name} cannot be shown on a page; use {', '.join(_KINDS)}")
        kind, raw = _KINDS[item.suffix], item.read_bytes()
    else:
        stream = io.BytesIO()
        item.save(stream, "PNG")
        kind, raw = "image/png", stream.getvalue()
    return {"url": f"data:{kind};base64,{base64.b64encode(raw).decode()}", "kind": kind.partition("/")[0]}


@dataclass(frozen=True, kw_only=True)
class _Axis:
    low: float
    high: float
    size: float
    log: bool = False
    flip: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.size * (1 - share if self.flip else share), 1)


def _drawn(plot: Plot) -> Json:
    """The lines as SVG coordinates, with their intervals and the ticks of both axes."""
    points = {name: [(float(x), *_bounds(y)) for x, y in line] for name, line in plot.lines.items()}
    every = [p for line in points.values() for p in line]
    if not every:
        return {"across": plot.across, "up": plot.up, "lines": [], "x": [], "y": [], "wide": _WIDE, "high": _HIGH}
    xs = sorted({p[0] for p in every})
    if plot.log and xs[0] <= 0:
        raise ValueError(f"{plot.title}: a logarithmic axis needs x above 0, got {xs[0]}")
    low, high = min(p[2] for p in every), max(p[3] for p in every)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    x = _Axis(low=xs[0], high=xs[-1], size=_WIDE, log=plot.log)
    y = _Axis(low=low - margin, high=high + margin, size=_HIGH, flip=True)
    ticks = xs if len(xs) <= 9 else _round_numbers(x.low, x.high)
    drawn = [
        {
            "name": name,
            "points": [
                {"x": x(a), "y": y(b), "low": y(lo), "high": y(hi), "text": f"{name}: {a:g}, {b:.4g}"}
                for a, b, lo, hi in line
            ],
        }
        for name, line in points.items()
    ]
    axes = {"x": [(x(v), f"{v:.3g}") for v in ticks], "y": [(y(v), f"{v:.3g}") for v in _round_numbers(y.low, y.high)]}
    return {"across": plot.across, "up": plot.up, "lines": drawn, **axes, "wide": _WIDE, "high": _HIGH}


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten, from ``low`` to ``high``."""
    ten = 10.0 ** math.floor(math.log10((high - low) / 5)) if high > low else 1.0
    step = next(ten * k for k in (1, 2, 5, 10) if (high - low) / (ten * k) <= 5 + 1e-9)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _bounds(y: Cell) -> tuple[float, float, float]:
    """Value, lower and upper limit."""
    if not isinstance(y, dict):
        return (float(y),) * 3
    value = float(y["value"])
    low, high = y.get("low"), y.get("high")
    return value, value if low is None else float(low), value if high is None else float(high)
