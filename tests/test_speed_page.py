"""docs/speed.md: its tables are made from bench/history.jsonl, and its commands take the options that it gives them.

After new figures: ``python -m tests.test_speed_page`` writes the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .pages import ROOT, commands, run

PAGE = ROOT / "docs" / "speed.md"
HISTORY = ROOT / "bench" / "history.jsonl"
NONE = "not measured"
Row = dict[str, Any]

# Each row: what, before, goal, and the figures of today: (row of the history, its field or "", format).
GOALS: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "operations done over necessary, `mid`: drawing / editing",
        "1.0 / 1.41",
        "≤ 1.03 both",
        (("speed.paired.mid.draw.s", "over_necessary", ".3f"), ("speed.paired.mid.edit.s", "over_necessary", ".3f")),
    ),
    (
        "fraction of the matmul peak, `mid`, bfloat16: drawing / editing",
        ".70 / .21",
        "",
        (("speed.paired.mid.draw.s", "peak", ".2f"), ("speed.paired.mid.edit.s", "peak", ".2f")),
    ),
    (
        "… at the released widths, `wide`",
        "",
        "≥ .80 / .70 [.75 / .60]",
        (("speed.paired.wide.draw.s", "peak", ".2f"), ("speed.paired.wide.edit.s", "peak", ".2f")),
    ),
    (
        "times as fast as published, `wide`: drawing / editing / 64-token answer / 4 boxes",
        "1.5 / 1.1–1.5 / .18–.5 / .34–.7",
        "≥ 1.8 / 2.2 / 1.3 / 1.3 [1.7 / 1.8 / 1.1 / 1.1]",
        tuple((f"speed.paired.wide.{task}", "", ".2f") for task in ("draw", "edit", "answer", "boxes")),
    ),
    (
        "… `mid`",
        "",
        "",
        tuple((f"speed.paired.mid.{task}", "", ".2f") for task in ("draw", "edit", "answer", "boxes")),
    ),
    (
        "… `mini`",
        "",
        "",
        tuple((f"speed.paired.mini.{task}", "", ".2f") for task in ("draw", "edit", "answer", "boxes")),
    ),
    (
        "`mini`, one CPU thread, ms: drawing / answer / box / edit",
        "243 / 33 / 12 / 435",
        "≤ 120 / 10 / 6 / 200 [160 / 15 / 8 / 260]",
        tuple((f"speed.latency.{task}", "", "ms") for task in ("draw", "answer", "ground", "edit")),
    ),
    (
        "one GPU, 10.4 B parameters, exact, seconds: drawing / editing 1024 px",
        "5.61 / 20.6",
        "≤ 2.0 / ≤ 7",
        (("gpu.released.draw.graphs.run", "", ".2f"), ("gpu.released.edit.graphs.run", "", ".2f")),
    ),
    (
        "… with `--speed fast`",
        NONE,
        "≤ 0.7 / ≤ 2.5",
        (("gpu.released.draw.fast.run", "", ".2f"), ("gpu.released.edit.fast.run", "", ".2f")),
    ),
)

GPU: tuple[tuple[str, str], ...] = (
    ("draw.fused.run", "drawing, 64 steps"),
    ("draw.graphs.run", "… its layers as CUDA graphs"),
    ("draw.fused_elementwise.estimate", "… and elementwise operations compiled, estimated from 6 steps"),
    ("draw.fast.run", "… `--speed fast`"),
    ("draw.every.run", "… every part of fast, 32 steps"),
    ("draw.int8.estimate", "… int8 weights, estimated from 6 steps"),
    ("edit.fused.estimate", "edit, 64 steps, estimated from 6"),
    ("edit.graphs.run", "… its layers as CUDA graphs"),
    ("edit.fused_elementwise.estimate", "… and elementwise operations compiled, estimated from 6 steps"),
    ("edit.fast.run", "… `--speed fast`"),
    ("edit.every.run", "… every part of fast, 32 steps"),
    ("answer.fused.run", "answer of 64 tokens"),
    ("answer.fast.run", "… `--speed fast` (random weights never reach its threshold)"),
    ("boxes", "four boxes"),
)
TOGETHER = (1, 2, 4, 8)


def newest() -> dict[str, Row]:
    """The last row of each name; on a CPU those of one thread alone."""
    rows = map(json.loads, HISTORY.read_text().splitlines())
    return {row["name"]: row for row in rows if _counts(row)}


def _counts(row: Row) -> bool:
    on_gpu = "accelerator" in row["machine"]
    return on_gpu == ("released" in row["name"]) and (on_gpu or row["machine"]["threads"] == 1)


def value(rows: dict[str, Row], name: str, field: str, form: str) -> str:
    if name not in rows:
        return NONE
    found = rows[name]["more"][field] if field else rows[name]["value"]
    return f"{1000 * found:.0f}" if form == "ms" else f"{found:{form}}"


def goals(rows: dict[str, Row]) -> str:
    lines = ["| | before | goal | now | seen at |", "|---|---|---|---|---|"]
    for what, before, goal, figures in GOALS:
        cells = [value(rows, *figure) for figure in figures]
        now = NONE if set(cells) == {NONE} else " / ".join(cells)
        seen = sorted({f"{rows[n]['date'][:10]}, {rows[n]['commit']}" for n, _, _ in figures if n in rows})
        lines.append(f"| {what} | {before} | {goal} | {now} | {'; '.join(seen)} |")
    return "\n".join(lines) + "\n"


def profile(rows: dict[str, Row]) -> str:
    found = {name: row["more"] for name, row in rows.items() if name.startswith("speed.profile.")}
    if not found:
        return f"{NONE.capitalize()}.\n"
    kinds = list(next(iter(found.values())))
    lines = [f"| step | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, shares in sorted(found.items()):
        words = name.removeprefix("speed.profile.").replace(".", ", ")
        lines.append(f"| {words} | {' | '.join(f'{shares.get(kind, 0):.0%}' for kind in kinds)} |")
    return "\n".join(lines) + "\n"


def growth(rows: dict[str, Row]) -> str:
    costs = {
        "canvas": "a drawing step, pixels a side",
        "batch": "a drawing step at 512 px, images",
        "boxes": "boxes, phrases",
        "answers": "an answer, tokens",
    }
    lines = ["| what grows | from, to | seconds, times | operations, times | one over the other |", "|---" * 5 + "|"]
    for name, words in costs.items():
        if row := rows.get(f"growth.{name}"):
            m = row["more"]
            cells = [words, f"{m['least']} to {m['most']}", f"{m['seconds']:.2f}", f"{m['operations']:.2f}"]
            lines.append(f"| {' | '.join(cells)} | {row['value']:.2f} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else f"{NONE.capitalize()}.\n"


def gpu(rows: dict[str, Row]) -> str:
    """Whole runs on one card, and requests a second of several together."""
    found = [(words, rows[f"gpu.released.{name}"]) for name, words in GPU if f"gpu.released.{name}" in rows]
    if not found:
        return f"{NONE.capitalize()}.\n"
    _, first = found[0]
    lines = [f"{first['machine']['accelerator']}, commit {first['commit']}.\n", "| run | seconds |", "|---|---|"]
    lines += [f"| {words} | {row['value']:.2f} |" for words, row in found]
    together = {task: [rows.get(f"gpu.released.batch{n}.{task}") for n in TOGETHER] for task in ("draw", "answer")}
    lines += ["", f"| requests a second of | {' | '.join(map(str, TOGETHER))} together |", "|---" * 5 + "|"]
    for task, some in together.items():
        cells = [NONE if row is None else format(row["value"], ".2f") for row in some]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[dict[str, Row]], str]] = {"goals": goals, "profile": profile, "growth": growth, "gpu": gpu}


def rendered(page: str, rows: dict[str, Row]) -> str:
    for name, table in TABLES.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        end = f"<!-- end of {name} -->"
        page = f"{before}<!-- {name} -->\n{table(rows)}{end}{rest.partition(end)[2]}"
    return page


def test_the_tables_are_those_of_the_history() -> None:
    page = PAGE.read_text()
    assert all(page.count(f"<!-- {name} -->") == 1 for name in TABLES)
    assert rendered(page, newest()) == page, "new figures? python -m tests.test_speed_page writes the tables"


def test_a_new_row_shows_in_its_table() -> None:
    machine = {"threads": 1}
    base: Row = {"date": "2026-11-27T00:00", "commit": "abc", "machine": machine}
    rows = {
        "speed.paired.wide.edit": base | {"name": "speed.paired.wide.edit", "value": 2.345},
        "speed.latency.draw": base | {"name": "speed.latency.draw", "value": 0.1234},
        "speed.profile.mid.draw": base | {"more": {"linear layers": 0.7, "other": 0.3}},
        "growth.boxes": base | {"value": 1.25, "more": {"seconds": 2.5, "operations": 2.0, "least": 1, "most": 8}},
    }
    assert f"| {NONE} / 2.35 / {NONE} / {NONE} | 2026-11-27, abc |" in goals(rows)
    assert f"| 123 / {NONE} / {NONE} / {NONE} |" in goals(rows)
    assert "| mid, draw | 70% | 30% |" in profile(rows)
    assert "| boxes, phrases | 1 to 8 | 2.50 | 2.00 | 1.25 |" in growth(rows)
    card: Row = {"commit": "abc", "machine": {"accelerator": "X", "threads": 8}}
    on_card = {"gpu.released.boxes": card | {"value": 0.5}, "gpu.released.batch2.draw": card | {"value": 3.0}}
    assert "| four boxes | 0.50 |" in gpu(on_card) and f"| draw | {NONE} | 3.00 | {NONE} | {NONE} |" in gpu(on_card)
    assert gpu(on_card).startswith("X, commit abc.") and NONE.capitalize() in gpu({})
    assert NONE.capitalize() in growth({}) and NONE.capitalize() in profile({})


def test_rows_of_other_machines_do_not_count() -> None:
    for name, machine, wanted in (
        ("speed.paired.mini.draw", {"threads": 1}, True),
        ("speed.paired.mini.draw", {"threads": 2}, False),
        ("speed.paired.mini.draw", {"threads": 1, "accelerator": "X"}, False),
        ("speed.paired.released.draw.s", {"threads": 8, "accelerator": "X"}, True),
        ("speed.paired.released.draw.s", {"threads": 1}, False),
    ):
        assert _counts({"name": name, "machine": machine}) is wanted


@pytest.mark.parametrize("script", ["speed", "growth"])
def test_the_commands_take_their_options(script: str) -> None:
    """As far as --help, which reads the options before it; tests/test_paired.py runs them in small."""
    found = [line for line in commands(PAGE.read_text()) if line.startswith(f"unmask bench {script}")]
    assert found
    longest = max(found, key=len)
    done = run([sys.executable, "-m", *longest.split(), "--help"], ROOT)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(), newest()))
