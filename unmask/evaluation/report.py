"""A measurement as JSON, a table and an HTML page. Public idea: ``Report``, ``write(report, out)``.

The HTML page is one file: pictures are embedded, nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from unmask.evaluation.cards import cards
from unmask.evaluation.evaluate import Figures, Measured
from unmask.json_types import Json
from unmask.writing import write_text

_BESIDE = ("majority", "mean_iou", "floor", "real", "majority_answer", "used", "perplexity", "pictures")


@dataclass(frozen=True, kw_only=True)
class Report:
    """``about``: what was measured and how · ``parts``: figures and verdicts."""

    about: Json
    parts: tuple[Measured, ...]

    def to_json(self) -> Json:
        """{part: {figure: {"value", "n", "low", "high", …}}, …, "about": {…}}."""
        return {**{part.name: part.figures for part in self.parts}, "about": self.about}

    def table(self) -> str:
        """An aligned text table, one figure per line."""
        lines = [("", "", "value", "95 % interval", "n", "")]
        for part in self.parts:
            lines += [(part.name, *line) for line in figure_lines(part.figures)]
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def figure_lines(figures: Figures, prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """(name, value, interval, n, extra values) of every figure; groups are named ``group.figure``."""
    for name, figure in figures.items():
        if not isinstance(figure, dict):
            yield prefix + name, _said(figure), "", "", ""
        elif any(isinstance(v, dict) for v in figure.values()):
            yield from figure_lines(figure, f"{prefix}{name}.")
        else:
            both = figure.get("low") is not None and figure.get("high") is not None
            span = f"{_said(figure['low'])} .. {_said(figure['high'])}" if both else ""
            more = ", ".join(f"{k.replace('_', ' ')} {_said(figure[k])}" for k in _BESIDE if k in figure)
            yield prefix + name, _said(figure.get("value", "")), span, str(figure.get("n", "")), more


def _said(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def write(report: Report, folder: Path) -> None:
    """``report.json`` and ``report.html`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", json.dumps(report.to_json(), indent=2, default=str) + "\n")
    write_text(folder / "report.html", page(report))


def page(report: Report) -> str:
    """The HTML page."""
    from jinja2 import Environment

    template = (files("unmask.evaluation") / "report.html").read_text(encoding="utf-8")
    parts = [
        {"name": part.name, "figures": list(figure_lines(part.figures)), "groups": cards(part)} for part in report.parts
    ]
    about = {k: v for k, v in report.about.items() if k != "settings"}
    settings = json.dumps(report.about.get("settings", {}), indent=1, default=str)
    return Environment(autoescape=True).from_string(template).render(about=about, settings=settings, parts=parts)
