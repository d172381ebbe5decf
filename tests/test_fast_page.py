"""docs/fast.md: its commands and Python run, it shows the values of fast mode, and its figures are those of bench/history.jsonl.

After new figures or values: ``python -m tests.test_fast_page`` writes them into the page, and the rows of the published presets.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unmask.sampling.fast import EVERY, FAST
from unmask.sampling.presets import lavida_o_edit, lavida_o_image
from unmask.sampling.sampler import Sampler
from unmask.sequence import Kind, Span, collate
from unmask.tasks.speeds import speed_of

from .contract.instances import NULL, fake
from .contract.instances import row as masked_row
from .pages import ROOT, commands, follow, python, run

PAGE = ROOT / "docs" / "fast.md"
BLOCK = re.compile(r"(?<=<!-- figures: python -m tests.test_fast_page -->\n).*?(?=\n<!-- end of figures -->)", re.S)
ROWS = re.compile(r"(?<=<!-- rows: python -m tests.test_fast_page -->\n).*?(?=<!-- end of rows -->)", re.S)
TASKS = {
    "draw": "Pictures",
    "plan": "Pictures from a layout",
    "edit": "Edits",
    "guided_edit": "Edits with guidance 1 and image guidance 0.5",
    "ask": "Answers",
}
NONE = "No figures are recorded."


def figures(history: str) -> str:
    """The tables of the page: a row per setting, from the last line of each ``pareto.test`` figure."""
    last: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in history.splitlines():
        row = json.loads(line)
        if row["name"].startswith("pareto.test."):
            task, setting = row["name"].removeprefix("pareto.test.").split(".", 1)
            last.setdefault(task, {})[setting] = row
    return "\n\n".join(_table(title, last[task]) for task, title in TASKS.items() if task in last) or NONE


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"**{title}**, {next(iter(rows.values()))['more']['n']} prompts:\n",
        "| speed | quality | change | CPU seconds | times as fast | rows |",
        "|---|---|---|---|---|---|",
    ]
    for setting, row in rows.items():
        m = row["more"]
        change = "" if setting == "exact" else f"{m['gain']:+.3f} ({m['gain_low']:+.3f}..{m['gain_high']:+.3f})"
        quality = f"{row['value']:.3f} ({m['low']:.3f}..{m['high']:.3f})"
        speed = f"{m['speedup']:.2f}"
        lines.append(f"| `{setting}` | {quality} | {change} | {m['seconds']:.3f} | {speed} | {m['rows']:.1f} |")
    return "\n".join(lines)


def test_the_figures_are_those_of_the_history() -> None:
    found = BLOCK.search(PAGE.read_text())
    assert found and found[0] == figures((ROOT / "bench" / "history.jsonl").read_text()), (
        "python -m tests.test_fast_page"
    )


def test_a_table_shows_the_last_row_of_each_setting() -> None:
    more = {"n": 12, "low": 0.5, "high": 0.9, "seconds": 0.25, "speedup": 1.0, "rows": 32.0}
    more |= {"gain": -0.01, "gain_low": -0.03, "gain_high": 0.01}
    named = (("exact", 0.7, 1.0), ("steps=0.5", 0.1, 9.0), ("steps=0.5", 0.69, 1.9))
    rows = [
        {"name": f"pareto.test.draw.{setting}", "value": value, "more": {**more, "speedup": speedup}}
        for setting, value, speedup in named
    ]
    other = {"name": "pareto.validation.draw.fast", "value": 0.2, "more": more}
    made = figures("\n".join(map(json.dumps, [*rows, other])))
    assert made.startswith("**Pictures**, 12 prompts:") and len(made.splitlines()) == 6
    assert "| `exact` | 0.700 (0.500..0.900) |  | 0.250 | 1.00 | 32.0 |" in made
    assert "| `steps=0.5` | 0.690 (0.500..0.900) | -0.010 (-0.030..+0.010) | 0.250 | 1.90 | 32.0 |" in made
    assert figures(json.dumps(other)) == NONE


def test_the_page_has_the_values_of_fast_mode() -> None:
    table = {
        cells[1].partition("=")[0].strip("` "): cells
        for cells in _rows(PAGE.read_text().partition("## What it costs")[0])
    }
    for column, task in enumerate(("draw", "edit", "text"), start=3):
        own = getattr(EVERY, task)
        for part in dataclasses.fields(own):
            value = getattr(own, part.name)
            shown = ":".join(f"{edge:g}" for edge in value) if isinstance(value, tuple) else f"{value:g}"
            bold = "" if getattr(getattr(FAST, task), part.name) is None else "**"
            assert table[part.name][column].strip() == f"{bold}`{part.name}={shown}`{bold}"
            assert getattr(getattr(FAST, task), part.name) in (None, value)


def _rows(page: str) -> list[list[str]]:
    return [line.split("|") for line in page.splitlines() if line.startswith("| `")]


def test_the_rows_are_those_of_the_published_presets() -> None:
    found = ROWS.search(PAGE.read_text())
    assert found and found[0].strip() == published_rows(), "python -m tests.test_fast_page"
    exact = published_rows().splitlines()[2:]
    assert exact[0].startswith("| picture | 128 |") and exact[1].startswith("| edit | 192 |")


def published_rows() -> str:
    """Rows of the forward passes of a picture and an edit, counted on a small grid: the number of steps is the same."""
    grid, drop = (8, 8), frozenset({"prompt", "source"})
    image = lavida_o_image(grid=grid, null_id=NULL, drop=drop)
    edit = lavida_o_edit(grid=grid, null_id=NULL, drop=drop, keep=frozenset({"source"}))
    speeds = ("exact", "fast", "interval", "refresh", "steps")
    lines = [f"| | {' | '.join(f'`{speed}`' for speed in speeds)} |", "|---|---|---|---|---|---|"]
    for name, task, sampler in (("picture", "draw", image), ("edit", "edit", edit)):
        counted = [_rows_of(getattr(speed_of(speed), task)(sampler)) for speed in speeds]
        lines.append(f"| {name} | {' | '.join(map(str, counted))} |")
    return "\n".join(lines)


def _rows_of(sampler: Sampler) -> int:
    prompt = Span(name="prompt", kind=Kind.TEXT, start=0, stop=2)
    image = Span(name="image", kind=Kind.CODE, start=2, stop=66, writable=True, grid=(8, 8), fold=2)
    run, rows = sampler.start(collate([masked_row((prompt, image))], [0])), 0
    while (query := run.query) is not None:
        rows += query.batch.rows
        run.advance(fake(query.batch, predict=query.predict))
    return rows


def test_commands_run_in_order(tmp_path: Path) -> None:
    for command in commands(PAGE.read_text()):
        follow(command, tmp_path)
    assert (tmp_path / "drawing.png").exists()


@pytest.mark.parametrize("block", python(PAGE.read_text()))
def test_python_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    text = figures((ROOT / "bench" / "history.jsonl").read_text())
    page = BLOCK.sub(lambda _: text, PAGE.read_text())
    PAGE.write_text(ROWS.sub(lambda _: f"{published_rows()}\n", page))
