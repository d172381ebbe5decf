"""The command batch: run a file of requests."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.options import (
    Storage,
    device_option,
    download_option,
    found_device,
    json_option,
    loading_options,
    lora_option,
    model_option,
    threads_option,
    use_threads,
)
from unmask.cli.output import STDOUT, news, print_json
from unmask.cli.progress import opening
from unmask.cli.sampling import quirks_option, speed_option
from unmask.evaluation.progress import Lines

if TYPE_CHECKING:
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.serving.batch import BatchPlan


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False, allow_dash=True))
@model_option
@lora_option
@speed_option
@quirks_option
@click.option(
    "--live",
    type=click.IntRange(1, 256),
    default=16,
    metavar="N",
    show_default=True,
    help="Requests that run at the same time.",
)
@click.option("--retry-failed", "retry", is_flag=True, help="Rerun lines that ended in an error.")
@json_option
@device_option
@threads_option
@loading_options
@download_option
def batch(
    manifest: Path,
    out: Path,
    model: str,
    lora: tuple[str, ...],
    speed: str,
    quirks: str,
    live: int,
    retry: bool,
    as_json: bool,
    device: str,
    threads: int | None,
    storage: Storage,
    download: bool,
) -> int:
    """Run a file of requests, one per line.

    Results go to OUT/results-RANK.jsonl, pictures to OUT/pictures. Run it again to resume. Under torchrun, every process takes a share of
    the lines. Exit code 1 if any line failed. - as REQUESTS reads stdin; - as OUT prints the results, with pictures as data URLs.

    \b
    Examples:
      unmask batch requests.jsonl answers
      unmask batch requests.jsonl answers --retry-failed
      cat requests.jsonl | unmask batch - -
      torchrun --nproc-per-node 2 -m unmask.cli.main batch requests.jsonl answers
    """
    from unmask.serving.batch import Share, hold, needs, plan, run_batch

    if out == STDOUT and as_json:
        raise click.UsageError("- as OUT prints one JSON object per line; leave out --json")
    share = Share(rank=number_in_environment("RANK", 0), world=number_in_environment("WORLD_SIZE", 1))
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as held:
        folder = Path(scratch) / "out" if out == STDOUT else out
        known = _fingerprint(model, lora, storage, quirks)
        planned = functools.partial(
            plan, share=share, retry=retry, model=known, lock=lambda r: held.enter_context(hold(r))
        )
        work = _planned(planned, manifest, folder, Path(scratch))
        printed = _Printed(results=work.results) if out == STDOUT else None
        place = found_device(device)
        if place == "cuda" and share.world > 1:
            place = f"cuda:{number_in_environment('LOCAL_RANK', 0)}"
        opened = None
        if work.todo:
            opened = _opened(model, lora, speed, quirks, place, threads, storage, download, needs(work))
        with Lines() as lines:

            def progress(done: int, of: int) -> None:
                lines("batch", done, of)
                if printed:
                    printed.more()

            done = run_batch(opened, work, live=live, on_progress=progress)
        first = f"; {_first_error(work.results)}" if done.failed else ""
    if as_json:
        print_json({"done": done.done, "passed": done.passed, "failed": done.failed, "results": str(work.results)})
    elif out != STDOUT:
        click.echo(work.results)
    again = f"; {work.changed} had a result of another request with their id" if work.changed else ""
    news(f"{done.done} done, {done.passed} done before, {done.failed} failed{again}{first}")
    return int(done.failed > 0)


def _first_error(results: Path) -> str:
    """The first failed line of a results file, for the terminal."""
    from unmask.serving.batch import records

    for record in records(results):
        if not record["ok"]:
            return f"line {record['line']}: {' '.join(str(record.get('error')).split())[:200]}"
    return "see the results of the other processes"


def _fingerprint(model: str, lora: tuple[str, ...], storage: Storage, quirks: str) -> str:
    """Of the model and its adapters; "" where there is none, which opening it reports."""
    from unmask.checkpoints.adapters import adapter_place
    from unmask.pipeline.loading import resolve
    from unmask.serving.batch import fingerprint

    with warnings.catch_warnings(), contextlib.suppress(ValueError, OSError):
        warnings.simplefilter("ignore")  # opening it warns
        changed = quirks if quirks != "usual" else ""
        held = (storage, lora, *filter(None, (changed, storage.context)))
        return fingerprint([resolve(model), *(adapter_place(one)[0] for one in lora)], held)
    return ""


def _planned(plan: Callable[[Path, Path], BatchPlan], manifest: Path, out: Path, scratch: Path) -> BatchPlan:
    """The plan of a manifest; one on stdin is copied to a file first, and its pictures are relative to the working folder."""
    if manifest != STDOUT:
        return plan(manifest, out)
    copy = scratch / "stdin.jsonl"
    copy.write_bytes(sys.stdin.buffer.read())
    return dataclasses.replace(plan(copy, out), folder=Path())


@dataclasses.dataclass(kw_only=True)
class _Printed:
    """Prints the lines of a results file as they are written; pictures as data URLs in place of their files."""

    results: Path
    _bytes: int = 0

    def more(self) -> None:
        from unmask.serving.batch import json_line

        whole = self.results.read_bytes() if self.results.exists() else b""
        for raw in whole[self._bytes :].splitlines():
            record = json.loads(raw)
            if (result := record.get("result")) and "file" in result:
                png = (self.results.parent / result.pop("file")).read_bytes()
                result["image"] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            click.echo(json_line(record))
        self._bytes = len(whole)


def _opened(
    model: str,
    lora: tuple[str, ...],
    speed: str,
    quirks: str,
    device: str,
    threads: int | None,
    storage: Storage,
    download: bool,
    needs: frozenset[str],
) -> Model | TextModel:
    import unmask

    use_threads(threads)
    return unmask.load(
        model,
        device=device,
        needs=needs,
        storage=storage.value(),
        lora=lora,
        speed=speed,
        quirks=quirks,
        context=storage.longest(),
        download=download,
        on_bytes=opening(model),
        verify=storage.verify,
        graphs=storage.graphs,
    )


def number_in_environment(name: str, otherwise: int) -> int:
    """An environment variable that torchrun sets for this process."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r} in the environment; set an integer, or unset it")
    return int(text)
