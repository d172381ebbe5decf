"""The table that ``run.sh`` ends with: each part with its exit code, then every figure, what was compared side by side.

Public idea: ``table(out, logs) -> str``; as a program, ``python bench/gpu/table.py runs/gpu``.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

MOST = 60  # characters of what stands beside a figure


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a line that is being written is no row yet."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def variant(row: dict[str, Any]) -> str:
    """How a row of speed.py was measured: CPU, float32, bf16 or bf16+fused."""
    words = shlex.split(row["command"])
    given = dict(zip(words, words[1:], strict=False))
    if given.get("--device", "cpu") == "cpu" and "--threads" in given:
        return "CPU"
    name = "bf16" if given.get("--dtype") == "bfloat16" else "float32"
    return f"{name}+fused" if given.get("--attention") == "fused" else name


def beside(row: dict[str, Any]) -> str:
    more = {k: v for k, v in (row.get("more") or {}).items() if k != "quick"}
    said = " ".join(f"{k} {v:.4g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in more.items())
    return said[:MOST]


def side_by_side(rows: list[dict[str, Any]]) -> list[str]:
    """Latency and throughput of ``mini``, one line a figure and one column a variant."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["name"].removeprefix("speed."), row["unit"]), {})[variant(row)] = row["value"]
    columns = [c for c in ("float32", "bf16", "bf16+fused", "CPU") if any(c in v for v in found.values())]
    lines = [f"{'mini':26}{'':5}" + "".join(f"{c:>12}" for c in columns)] if found else []
    for (name, unit), values in found.items():
        lines.append(f"{name:26}{unit:5}" + "".join(f"{values[c]:12.4g}" if c in values else " " * 12 for c in columns))
    return lines


def table(out: Path, logs: Path) -> str:
    """``out``: with rows.jsonl and parts.jsonl · ``logs``: with tests.log, and left_out.log, where the shards have not all files."""
    rows, parts = read(out / "rows.jsonl"), read(out / "parts.jsonl")
    cards = sorted({row["machine"].get("accelerator", row["machine"]["cpu"]) for row in rows})
    lines = ["", f"{', '.join(cards)}; torch {rows[0]['machine']['torch'] if rows else '?'}"]
    lines += [f"{part['part']:26} exit {part['exit']:<4d}{part['seconds']:5d} s" for part in parts]
    said, left_out = (_lines(logs / f"{name}.log") for name in ("tests", "left_out"))
    lines += [line[:150] for line in said if line.startswith(("FAILED", "ERROR"))] + said[-1:]
    lines += [f"not in the shards: {', '.join(left_out)[:150]}"] if left_out else []
    compared = [r for r in rows if r["name"].startswith(("speed.latency", "speed.batch"))]
    lines += side_by_side(compared)
    lines += [
        f"{row['name']:42}{row['value']:11.4g} {row['unit']:10}{beside(row)}".rstrip()
        for row in rows
        if row not in compared
    ]
    return "\n".join(lines) + "\n"


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


if __name__ == "__main__":
    print(table(Path(sys.argv[1]), Path(sys.argv[1])), end="")
