"""docs/samplers.md: its commands run, it names every order, schedule and cache, and its figures are those of bench/history.jsonl.

After new figures: ``python -m tests.test_samplers_page`` writes them into the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.cli import samplers as command
from unmask.cli.samplers import METRICS

from .pages import ROOT, commands, follow

PAGE = ROOT / "docs" / "samplers.md"
BLOCK = re.compile(r"(?<=<!-- figures: python -m tests.test_samplers_page -->\n).*?(?=<!-- end of figures -->)", re.S)
TABLES = {
    "mini.generate": "**`mini`, pictures** of validation prompts of the synthetic world; quality: the judge",
    "mini.ask": "**`mini`, answers** to validation questions of the synthetic world; quality: right answers",
    "own_llada.ask": "**`own_llada`, answers**; quality: right answers",
    "llada2_uni_16.generate": "**`llada2_uni_16`, pictures**: the layout of LLaDA2.0-Uni with random weights, so costs alone",
}
NONE = "No figures are recorded.\n"


def figures(history: str) -> str:
    """A table for each model and task, from the last row of each sampler. Runs of all samplers, with few prompts, are docs/methods.md's."""
    last: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in history.splitlines():
        row = json.loads(line)
        if row["name"].startswith("samplers.") and "--orders all" not in row.get("command", ""):
            model, task, sampler = row["name"].removeprefix("samplers.").split(".", 2)
            last.setdefault(f"{model}.{task}", {})[sampler] = row
    return "\n".join(_table(title, last[name]) for name, title in TABLES.items() if name in last) or NONE


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(rows.values()))["more"]
    lines = [
        f"{title}; {first['n']} prompts, seed {first['seed']}:\n",
        "| sampler | forwards | tokens a forward | tokens computed | CPU seconds | times as fast | agreement | quality | change |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(name, row["more"]) for name, row in rows.items())]) + "\n"


def _line(name: str, m: Mapping[str, Any]) -> str:
    quality, gain = m["quality"], m["gain"]
    change = (
        "" if name == "reference" or not gain else f"{gain['value']:+.3f} ({gain['low']:+.2f}..{gain['high']:+.2f})"
    )
    figures = (
        f"{m['forwards']:.1f}",
        f"{m['tokens_a_forward']:.2f}",
        f"{m['computed']:.0f}",
        f"{m['seconds']:.3f}",
        f"{m['speedup']:.2f}",
        f"{m['agreement']:.3f}",
        f"{quality['value']:.3f} ({quality['low']:.2f}..{quality['high']:.2f})" if quality else "",
        change,
    )
    return f"| {name} | {' | '.join(figures)} |"


def test_the_figures_are_those_of_the_history() -> None:
    found = BLOCK.search(PAGE.read_text())
    assert found and found[0] == figures((ROOT / "bench" / "history.jsonl").read_text()), (
        "python -m tests.test_samplers_page"
    )
    assert all(title in found[0] for title in TABLES.values())


def test_a_table_shows_the_last_row_of_each_sampler() -> None:
    more = {"n": 12, "seed": 0, "forwards": 8.0, "tokens_a_forward": 2.0, "computed": 100.0, "seconds": 0.25}
    more |= {"speedup": 2.0, "agreement": 0.5, "quality": {"value": 0.75, "low": 0.5, "high": 0.9}}
    more |= {"gain": {"value": -0.125, "low": -0.25, "high": 0.0}}
    rows = [
        {"name": f"samplers.mini.ask.{name}", "value": 0.75, "more": {**more, "forwards": forwards}}
        for name, forwards in (("reference", 4.0), ("order random", 9.0), ("order random", 8.0))
    ]
    made = figures("\n".join(map(json.dumps, [*rows, {"name": "samplers.other.ask.reference"}])))
    assert made.count("order random") == 1 and len(made.splitlines()) == 6
    assert (
        "| order random | 8.0 | 2.00 | 100 | 0.250 | 2.00 | 0.500 | 0.750 (0.50..0.90) | -0.125 (-0.25..+0.00) |"
        in made
    )
    assert made.splitlines()[4].endswith("| 0.750 (0.50..0.90) |  |")
    assert figures("") == NONE
    every = {**rows[0], "command": "unmask bench samplers --world 14 --orders all", "value": 0.1}
    assert figures("\n".join(map(json.dumps, [*rows, every]))) == figures("\n".join(map(json.dumps, rows)))
    alone = {"name": "samplers.mini.ask.order random", "value": 0.5, "more": {**more, "quality": None, "gain": None}}
    assert figures(json.dumps(alone)).splitlines()[-1].endswith("| 0.500 |  |  |")


def test_the_page_names_every_part() -> None:
    page = PAGE.read_text().partition("## Figures")[0]
    for name in (*command.ORDERS, *command.SCHEDULES, *command.CACHES, *METRICS):
        assert f"`{name}`" in page, name


def test_commands_run_in_order(tmp_path: Path) -> None:
    for line in commands(PAGE.read_text()):
        follow(line, tmp_path)
    assert (tmp_path / "samplers.png").exists()


if __name__ == "__main__":
    text = figures((ROOT / "bench" / "history.jsonl").read_text())
    PAGE.write_text(BLOCK.sub(lambda _: text, PAGE.read_text()))
