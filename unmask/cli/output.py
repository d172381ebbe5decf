"""Output of commands: JSON, tables, numbered files. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL import Image

STDOUT = Path("-")


def print_json(value: object) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(value: object) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def news(text: str) -> None:
    """One line on stderr, unless the command has --quiet."""
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("quiet"):
        click.echo(text, err=True)


def write_picture(image: Image.Image, path: Path) -> Path:
    """Save a picture, or write it to stdout as PNG for ``-``."""
    from unmask.tokens.pictures import save_image

    if path != STDOUT:
        return save_image(image, path)
    sys.stdout.flush()
    image.save(sys.stdout.buffer, "PNG")
    sys.stdout.buffer.flush()
    return path


def refuse_stdout(out: Path | None, *, count: int, as_json: bool) -> None:
    """UsageError where ``-`` stands for stdout and something else goes there, too."""
    if out != STDOUT:
        return
    if count > 1:
        raise click.UsageError(f"--out - writes one picture to stdout, and there would be {count}; name a file")
    if as_json:
        raise click.UsageError("--out - and --json both write to stdout; leave out one of them")
    if sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError(
            "--out - writes the bytes of a PNG, and stdout is a terminal; add > picture.png or | another program"
        )


def refuse_unwritable(path: Path) -> None:
    """OSError for a file that could not be written, found before any work is done."""
    if path.is_dir():
        raise OSError(f"could not write {path}, which is a folder; name a file in it, such as {path / 'picture.png'}")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise OSError(f"could not write {path}: {above} is not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OSError(f"could not write {path}: no permission to write in {above}; choose another place")


def warn(warnings: Sequence[str]) -> None:
    """The warnings of a result on stderr, one line each."""
    for line in dict.fromkeys(warnings):
        click.echo(f"warning: {line}", err=True)


def tell_approximate(parts: Sequence[str]) -> None:
    """The parts of fast mode that acted, on stderr."""
    if parts:
        news(f"approximate: {', '.join(parts)}")


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
