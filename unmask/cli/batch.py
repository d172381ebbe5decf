"""The command batch: run a file of requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.options import (
    Storage,
    check_device,
    device_option,
    download_option,
    json_option,
    storage_options,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, print_json

if TYPE_CHECKING:
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--model", default="mini", show_default=True, help="A shipped model, a model folder, or owner/name on the hub."
)
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
@storage_options
@download_option
def batch(
    manifest: Path,
    out: Path,
    model: str,
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
    the lines. Exit code 1 if any line failed.

    \b
    Examples:
      unmask batch requests.jsonl answers
      unmask batch requests.jsonl answers --retry-failed
      torchrun --nproc-per-node 2 -m unmask.cli.main batch requests.jsonl answers
    """
    from unmask.evaluation.progress import Lines
    from unmask.serving.batch import Share, needs, plan, run_batch

    share = Share(rank=_number("RANK", 0), world=_number("WORLD_SIZE", 1))
    work = plan(manifest, out, share, retry=retry)
    opened = _opened(model, device, threads, storage, download, needs(work)) if work.todo else None
    with Lines() as lines:
        done = run_batch(opened, work, live=live, on_progress=lambda done, of: lines("batch", done, of))
    if as_json:
        print_json({"done": done.done, "passed": done.passed, "failed": done.failed, "results": str(work.results)})
    else:
        click.echo(work.results)
    news(f"{done.done} done, {done.passed} done before, {done.failed} failed")
    return int(done.failed > 0)


def _opened(
    model: str, device: str, threads: int | None, storage: Storage, download: bool, needs: frozenset[str]
) -> Model | TextModel:
    import unmask

    use_threads(threads)
    check_device(device)
    return unmask.load(model, device=device, needs=needs, storage=storage.value(), download=download)


def _number(name: str, otherwise: int) -> int:
    """An environment variable that torchrun sets for this process."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r} in the environment; set an integer, or unset it")
    return int(text)
