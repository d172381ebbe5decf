"""The table that ``run.sh`` ends with: each part with its exit code, then every figure, what was compared side by side.

python bench/gpu/table.py runs/gpu
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

MOST = 60  # characters of what stands beside a figure


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def main() -> None:
    out = Path(sys.argv[1])
    rows, parts = read(out / "rows.jsonl"), read(out / "parts.jsonl")
    cards = sorted({row["machine"].get("accelerator", row["machine"]["cpu"]) for row in rows})
    print(f"\n{', '.join(cards)}; torch {rows[0]['machine']['torch'] if rows else '?'}")
    for part in parts:
        print(f"{part['part']:26} exit {part['exit']:<4d}{part['seconds']:5d} s")
    for name in ("tests",):
        log = out / f"{name}.log"
        said = log.read_text().splitlines() if log.exists() else []
        print(*[line[:150] for line in said if line.startswith(("FAILED", "ERROR"))], *said[-1:], sep="\n")
    compared = [r for r in rows if r["name"].startswith(("speed.latency", "speed.batch"))]
    print(*side_by_side(compared), sep="\n")
    for row in rows:
        if row not in compared:
            print(f"{row['name']:42}{row['value']:11.4g} {row['unit']:10}{beside(row)}".rstrip())


if __name__ == "__main__":
    main()
