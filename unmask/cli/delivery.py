"""Pictures of a command on their way to files or stdout. Public idea: ``refuse_clashes`` before the work, ``deliver`` after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.options import Run
from unmask.cli.output import STDOUT, news, numbered, print_json, refuse_stdout, tell_approximate, warn, write_picture
from unmask.tokens.pictures import save_image, save_trace

if TYPE_CHECKING:
    from unmask.tasks.results import Drawing


def refuse_clashes(run: Run, out: Path, count: int, trace: Path | None, thoughts: Path | None = None) -> None:
    """UsageError where two outputs have one name, or where ``-`` cannot be stdout."""
    refuse_stdout(out, count=count, as_json=run.json)
    named = [(flag, path) for flag, path in (("--out", out), ("--trace", trace), ("--thoughts", thoughts)) if path]
    for (flag, path), (other, same) in itertools.combinations(named, 2):
        if path == same:
            raise click.UsageError(f"{flag} and {other} are both {path}")


def deliver(
    drawn: Iterable[tuple[str, Drawing]],
    count: int,
    out: Path,
    trace: Path | None,
    run: Run,
    thoughts: Path | None = None,
) -> None:
    """Save ``count`` pictures, traces and thoughts as they come, and print their paths. ``drawn``: (name of the source or "", picture)."""
    records = []
    told: set[str] = set()
    for i, (source, drawing) in enumerate(drawn):
        warn([line for line in drawing.warnings if line not in told])
        tell_approximate(drawing.approximate if i == 0 else ())
        told |= set(drawing.warnings)
        saved = write_picture(drawing.image, out if out == STDOUT else numbered(out, i, count))
        if trace is not None:
            news(f"trace: {save_trace(drawing.trace, numbered(trace, i, count))}")
        if thoughts is not None:
            from unmask.cli.thoughts import sheet_of

            news(f"thoughts: {save_image(sheet_of(drawing), numbered(thoughts, i, count))}")
        records.append({**({"image": source} if source else {}), **drawing.to_json(), "file": str(saved)})
        if not run.json and out != STDOUT:
            click.echo(saved)
    if run.json:
        print_json(records)
