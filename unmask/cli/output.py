"""Output of commands: JSON, tables, numbered files. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click


def print_json(value: object) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def news(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


def warn(warnings: Sequence[str]) -> None:
    """The warnings of a result on stderr, one line each."""
    for line in dict.fromkeys(warnings):
        news(f"warning: {line}")


def numbered(path: Path, index: int, count: int) -> Path:
    """``apples.png`` for a single file, otherwise ``apples-1.png``, ``apples-2.png`` …"""
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")


def save_text(path: Path, text: str) -> Path:
    """Write a text file atomically."""
    from unmask.tokens.pictures import write_whole

    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers right-aligned, with thousands separators."""
    cells = [[f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    lines = [list(head), ["-" * w for w in widths], *cells]
    return "\n".join(
        "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )
