"""Commands that measure: evaluate (how good) and bench (the scripts of ``bench/``)."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import click

from unmask.cli.options import (
    Storage,
    check_device,
    device_option,
    seed_option,
    storage_options,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, save_text
from unmask.data.world.vocabulary import LEVELS

_BENCH = Path(__file__).parents[2] / "bench"


@click.command()
@click.argument("model", default="mini")
@click.option("--suite", type=click.Choice(["world"]), default="world", show_default=True, help="What is measured.")
@click.option("--level", type=click.Choice(sorted(LEVELS)), default="grid", show_default=True, help="Which world.")
@click.option("--only", metavar="A,B", default="", help="Some parts: geneval, grounding, questions, edit, vq …")
@click.option("--limit", type=click.IntRange(min=1), help="Scenes a part, for a quick look.  [default: the full suite]")
@click.option("--json", "into", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write an HTML report with pictures to this folder.")
@seed_option
@device_option
@threads_option
@storage_options
def evaluate(
    model: str,
    suite: str,
    level: str,
    only: str,
    limit: int | None,
    into: Path | None,
    out: Path | None,
    seed: int,
    device: str,
    threads: int | None,
    storage: Storage,
) -> None:
    """Measure how good a model is.

    MODEL is the name of a shipped model, or a folder. Prints a table with 95 % intervals.

    \b
    Examples:
      unmask evaluate mini --suite world --json mini.json --out report
      unmask evaluate mini --only grounding,questions --limit 50
      unmask evaluate mini --level free --out report-free
      unmask evaluate mini --quantise und=int8 --json int8.json
    """
    use_threads(threads)
    check_device(device)
    import unmask
    from unmask.evaluation import world_suite
    from unmask.tasks.text import TextModel

    parts = tuple(p.strip() for p in only.split(",") if p.strip())
    opened = unmask.load(model, device=device, keep=storage.keep())
    if isinstance(opened, TextModel):
        raise ValueError(
            f"{model} is a text model, and this suite looks and draws; its likelihood: unmask.evaluation.likelihood"
        )
    report = world_suite.run(opened, level=level, only=parts, limit=limit, seed=seed, out=out)
    if into is not None:
        news(f"figures: {save_text(into, json.dumps(report.to_json(), indent=2))}")
    if out is not None:
        news(f"report: {out}")
    click.echo(report.table())


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str, arguments: tuple[str, ...]) -> None:
    """Run one of the benchmarks of the source tree.

    NAME is a script of bench/; what follows is its own.

    \b
    Examples:
      unmask bench speed
      unmask bench quality --help
    """
    scripts = {p.stem: p for p in sorted(_BENCH.glob("*.py"))}
    if not scripts:
        raise ValueError("there is no folder bench/ beside the package; run this from a source tree (git clone)")
    if name not in scripts:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(scripts)}")
    sys.argv = [str(scripts[name]), *arguments]
    runpy.run_path(str(scripts[name]), run_name="__main__")
