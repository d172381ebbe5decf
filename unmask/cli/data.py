"""The commands data check and data encode: what is in a user's own data, and image codes made before training."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.batch import number_in_environment
from unmask.cli.options import (
    Command,
    device_option,
    found_device,
    json_option,
    model_option,
    path_option,
    quiet_option,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, print_json, table, write_picture
from unmask.cli.progress import Bar, opening, silent
from unmask.tokens.pictures import WRITABLE

if TYPE_CHECKING:
    from unmask.cli.sheet import Row
    from unmask.data.checking import Report
    from unmask.data.order import Mixture
    from unmask.data.samples import ImageRef
    from unmask.json_types import Json
    from unmask.tasks.encoding import Encoding
    from unmask.tasks.parts import Parts

UNITS = ("fractions", "pixels", "thousandths")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data are opened, as typed."""

    pictures: Path | None
    units: str | None
    most_text: int
    part: str

    def open(self, words: tuple[str, ...], *, download: bool) -> Mixture:
        """The data sets of ``PATH[=WEIGHT]`` words. DataError as of ``open_data`` and ``open_mixture``."""
        from unmask.data.opening import open_data
        from unmask.data.order import open_mixture
        from unmask.data.regions import RowBoxes

        return open_mixture(
            words,
            functools.partial(
                open_data,
                pictures=self.pictures,
                units=RowBoxes(self.units) if self.units else None,
                most_text=self.most_text,
                part=self.part,
                download=download,
            ),
        )


def data_options(command: Command) -> Command:
    """Add the options of ``DataOptions``, passed together as ``options``."""

    @functools.wraps(command)
    def wrapped(pictures: Path | None, units: str | None, most_text: int, part: str, **own: object) -> object:
        options = DataOptions(pictures=pictures, units=units, most_text=most_text, part=part)
        return command(options=options, **own)

    options = (
        click.option(
            "--pictures",
            type=click.Path(path_type=Path),
            help="Folder of the pictures that a manifest names.  [default: the manifest's, or images in it]",
        ),
        click.option(
            "--boxes",
            "units",
            type=click.Choice(UNITS),
            help="Unit of boxes that do not state theirs.  [default: fractions if all are 0 to 1, else pixels]",
        ),
        click.option(
            "--most-text",
            type=click.IntRange(min=1),
            metavar="N",
            default=20_000,
            show_default=True,
            help="Characters of a row's texts; a longer row is broken.",
        ),
        click.option(
            "--part",
            default="train",
            show_default=True,
            help="Published split of a Hugging Face dataset or of RefCOCO.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


allow_option = click.option(
    "--allow",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    default=0.05,
    show_default=True,
    help="Largest share of broken rows to accept.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Threads that read pictures.  [default: one per core]",
)
hub_option = click.option(
    "--download", is_flag=True, help="Download a model or data set of the hub that is not in the local cache."
)


@click.group()
def data() -> None:
    """Check your own data, and encode its pictures for training.

    \b
    Examples:
      unmask data check pets/
      unmask data encode pets/ pets-codes
    """


@data.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@path_option("--sheet", tuple(WRITABLE), "Save a sheet of samples of every task.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read only N rows, evenly spread.")
@allow_option
@workers_option
@data_options
@json_option
@hub_option
@quiet_option
def check(
    options: DataOptions,
    paths: tuple[str, ...],
    sheet: Path | None,
    limit: int | None,
    allow: float,
    workers: int | None,
    as_json: bool,
    download: bool,
    quiet: bool,
) -> int:
    """Read data and report what is in it: tasks, sizes, texts, duplicates, broken rows.

    PATH is a folder of pictures with .txt or .json beside them, a .jsonl, .json, .parquet or .tar file, a pattern such as 'shards/*.tar',
    or owner/name on the hub (see docs/data.md). Several are read as one. Exit code 1 if more rows are broken than allowed.

    \b
    Examples:
      unmask data check pets/ --sheet pets.png
      unmask data check captions.jsonl llava.json --pictures coco --json
      unmask data check 'shards/*.tar' --limit 1000
    """
    from unmask.cli.sheet import sheet as sheet_of
    from unmask.data import checking

    found = options.open(paths, download=download)
    bar = Bar(what="checking", words=_rows, lines=not as_json)
    report = checking.check(
        found, limit=limit, workers=workers or os.cpu_count() or 1, on_progress=silent if quiet else bar
    )
    if sheet and (rows := _shown(report)):
        news(f"sheet: {write_picture(sheet_of(rows), sheet)}")
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if report.share > allow:
        news(f"{len(report.broken)} of {report.rows} rows are broken ({report.share:.1%}), more than {allow:.1%}")
    return int(report.share > allow)


def _rows(done: int, of: int) -> str:
    return f"row {done:,} of {of:,}"


def _print(report: Report) -> None:
    lines = [[task, count, *_three(report.texts[task].to_json())] for task, count in report.tasks.items()]
    if lines:
        click.echo(table(("task", "samples", "characters: least", "median", "most"), lines))
    for name, spread in report.sizes.items():
        click.echo(f"{name} of {report.pictures:,} pictures: {spread.least} to {spread.most}, median {spread.median}")
    if report.pictures:
        click.echo(f"square: {report.square:.1%} of the pictures")
    doubled = (
        ("keys", report.duplicate_keys),
        ("pictures", report.duplicate_pictures),
        ("texts", report.duplicate_texts),
    )
    for name, found in doubled:
        if found:
            first = ", ".join(f"{key} ({n} times)" for key, n in list(found.items())[:3])
            click.echo(f"{name} that occur more than once: {len(found):,}; {first}")
    click.echo(f"broken: {len(report.broken):,} of {report.rows:,} rows ({report.share:.1%})")
    for broken in report.broken[:20]:
        click.echo(f"  {broken.reason}")
    if len(report.broken) > 20:
        click.echo(f"  and {len(report.broken) - 20:,} more")


def _three(spread: dict[str, int]) -> list[int]:
    return [spread["least"], spread["median"], spread["most"]]


def _shown(report: Report) -> list[Row]:
    from PIL import Image

    from unmask.cli.sheet import Cell, Row
    from unmask.tokens.pictures import strip

    rows = []
    for task in report.tasks:
        cells = tuple(
            Cell(
                picture=strip(e.pictures, columns=4) if e.pictures else Image.new("RGB", (64, 8), "white"),
                lines=tuple(line[:120] for line in e.lines),
            )
            for e in report.examples
            if e.task == task
        )
        rows.append(Row(cells=cells, columns=4, title=f"{task} · {report.tasks[task]:,} samples"))
    return rows


# -- encode -----------------------------------------------------------------------------------------------------------


@data.command()
@click.argument("path")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@model_option
@click.option("--side", type=click.IntRange(min=8), metavar="N", help="Pixels per side.  [default: the model's]")
@click.option("--crop", is_flag=True, help="Crop the middle square of a picture; without it, pictures are padded.")
@click.option(
    "--features", is_flag=True, help="Also encode all pictures with the vision tower, for training with frozen vision."
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), metavar="N", default=16, show_default=True, help="Pictures at a time."
)
@allow_option
@workers_option
@data_options
@json_option
@device_option
@threads_option
@hub_option
@quiet_option
def encode(
    options: DataOptions,
    path: str,
    out: Path,
    model: str,
    side: int | None,
    crop: bool,
    features: bool,
    batch: int,
    allow: float,
    workers: int | None,
    as_json: bool,
    device: str,
    threads: int | None,
    download: bool,
    quiet: bool,
) -> None:
    """Encode the pictures of PATH into shards in OUT, with a model's image tokenizer.

    Codes are made of the pictures that a model learns to draw: those of captions, edits and interleaved conversations. Run it again to
    resume: pictures that are encoded already are skipped. Under torchrun, every process takes a share of the rows. OUT can be used with
    the same tokenizer weights only. Prints OUT.

    \b
    Examples:
      unmask data encode pets/ pets-codes
      unmask data encode 'shards/*.tar' codes --model jacklishufan/LaViDa-O-v1.0 --side 512 --crop
      torchrun --nproc-per-node 2 -m unmask.cli.main data encode pets/ pets-codes
    """
    from unmask.data.codes import Shards, encode
    from unmask.data.samples import Broken, BrokenRows

    rank, world = number_in_environment("RANK", 0), number_in_environment("WORLD_SIZE", 1)
    drawn, looked_at, broken = _pictures(options.open((path,), download=download), rank, world)
    counted = BrokenRows(total=max(1, len(drawn) + len(looked_at) + len(broken)), most=allow)
    kinds = _encodings(_opened(model, device, rank, threads, download), side, crop, features)
    record: Json = {"folder": str(out)}
    for kind in kinds:
        bar = Bar(what=f"encoding {kind.name}", words=_rows, lines=not as_json)
        made = encode(
            drawn if kind.name == "codes" else [*drawn, *looked_at],
            Shards(out, kind.made_by(), name=kind.name),
            kind.prepare,
            kind,
            batch=batch,
            workers=workers or os.cpu_count() or 1,
            on_progress=silent if quiet else bar,
        )
        broken += made.broken
        record[kind.name] = {"new": made.new, "known": made.known, "broken": list(made.broken)}
        news(
            f"{kind.name}: {made.new} encoded, {made.known} encoded before, {len(made.broken)} pictures cannot be read"
        )
    for reason in broken:
        counted.rows.setdefault((reason, reason), Broken(key=reason, reason=reason))
    if counted.share > allow:
        counted.refuse()
    if as_json:
        print_json(record)
    else:
        click.echo(out)


def _pictures(found: Mixture, rank: int, world: int) -> tuple[list[ImageRef], list[ImageRef], tuple[str, ...]]:
    """Of this process's rows the pictures of tasks that draw, those of tasks that only read pictures, and the reasons of broken rows."""
    from unmask.data.samples import Broken, Caption, EditPair, Interleaved, pictures_of

    drawn: list[ImageRef] = []
    looked_at: list[ImageRef] = []
    broken = []
    for i in range(rank, len(found), world):
        sample = found[i]
        if isinstance(sample, Broken):
            broken.append(sample.reason)
        elif isinstance(sample, Caption | EditPair | Interleaved):
            drawn += pictures_of(sample)
        else:
            looked_at += pictures_of(sample)
    return drawn, looked_at, tuple(broken)


def _opened(model: str, device: str, rank: int, threads: int | None, download: bool) -> Parts:
    """The model with no weights read. UsageError for a text model."""
    import unmask
    from unmask.pipeline.model import Model

    use_threads(threads)
    place = found_device(device)
    place = f"cuda:{number_in_environment('LOCAL_RANK', rank)}" if place == "cuda" and rank else place
    found = unmask.load(model, device=place, needs=(), download=download, on_bytes=opening(model))
    if not isinstance(found, Model):
        raise click.UsageError(f"{model} is a text model, which has no image tokenizer; choose another --model")
    return found.parts


def _encodings(parts: Parts, side: int | None, crop: bool, features: bool) -> list[Encoding]:
    from unmask.data.squares import Crop, Pad
    from unmask.tasks.encoding import Coding, Looking

    square = Crop(middle=True) if crop else Pad(paper=parts.paper)
    kinds: list[Encoding] = [Coding(parts=parts, square=square, side=side or parts.side)]
    if features:
        kinds.append(Looking(parts=parts))
    for kind in kinds:
        parts.require(kind.needs)
    return kinds
