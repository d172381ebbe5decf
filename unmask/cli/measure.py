"""Commands that measure: evaluate (how good) and bench (the scripts of ``bench/``)."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from unmask.cli.options import (
    Storage,
    check_device,
    device_option,
    seed_option,
    setting_option,
    storage_options,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, save_text
from unmask.cli.suites import SUITES, Asked, check
from unmask.data.world.vocabulary import LEVELS

_BENCH = Path(__file__).parents[2] / "bench"


@click.command()
@click.argument("model", default="mini")
@click.option("--suite", type=click.Choice(list(SUITES)), default="world", show_default=True, help="What is measured.")
@click.option("--level", type=click.Choice(sorted(LEVELS)), default="grid", show_default=True, help="world: which one.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A benchmark's own file (dpg: or a folder of .txt).")
@click.option("--images", type=click.Path(path_type=Path), help="imgedit, refcoco: the folder of their pictures.")
@click.option(
    "--only", metavar="A,B", default="", help="Parts of the world, tags, edit types or splits of a benchmark."
)
@click.option("--limit", type=click.IntRange(min=1), help="Items a part, for a quick look.  [default: the full suite]")
@click.option(
    "-n", "each", type=click.IntRange(1, 256), default=4, show_default=True, help="geneval, dpg: pictures a prompt."
)
@click.option("--all", "everything", is_flag=True, help="geneval: also draw what the judge cannot judge.")
@click.option("--plan", is_flag=True, help="geneval, dpg, imgedit: think of a layout before every picture.")
@click.option(
    "--reflect", type=int, default=1, show_default=True, metavar="N", help="geneval, dpg: up to N tries a picture."
)
@setting_option("Benchmarks: change a field of the sampler; may be repeated.")
@click.option(
    "--clip", type=click.Path(path_type=Path), help="geneval, dpg: CLIP score, by the CLIP model in this folder."
)
@click.option(
    "--real", type=click.Path(path_type=Path), help="With --clip: Frechet distance from the pictures in this folder."
)
@click.option("--json", "into", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for pictures, verdicts and an HTML report.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Items at once.")
@seed_option
@device_option
@threads_option
@storage_options
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    model: str,
    suite: str,
    into: Path | None,
    only: str,
    threads: int | None,
    storage: Storage,
    **asked: Any,
) -> None:
    """Measure how good a model is.

    MODEL is the name of a shipped model, or a folder. Prints a table with 95 % intervals. The suite world needs nothing; the others read
    a public benchmark's own files and write pictures in its own layout. A run that was stopped goes on where it was, if --out is the same.

    \b
    Examples:
      unmask evaluate mini --suite world --json mini.json --out report
      unmask evaluate mini --only grounding,questions --limit 50
      unmask evaluate mini --quantise und=int8 --json int8.json
      unmask evaluate mini --suite geneval --prompts evaluation_metadata.jsonl --out drawn
      unmask evaluate FOLDER --suite geneval --prompts evaluation_metadata.jsonl --all --out drawn
      unmask evaluate FOLDER --suite dpg --prompts prompts --out dpg --batch 8 --device cuda
      unmask evaluate FOLDER --suite imgedit --prompts basic_edit.json --images originals --out edited
      unmask evaluate FOLDER --suite refcoco --prompts refs.json --images train2014 --only val
    """
    check(context, suite)
    use_threads(threads)
    check_device(asked["device"])
    parts = tuple(p.strip() for p in only.split(",") if p.strip())
    measured = SUITES[suite].open(Asked(only=parts, **asked))
    import unmask
    from unmask.pipeline.text_model import TextModel

    opened = unmask.load(model, device=asked["device"], storage=storage.keep())
    if isinstance(opened, TextModel):
        raise ValueError(
            f"{model} is a text model, and this suite looks or draws; its likelihood: unmask.evaluation.likelihood"
        )
    report = measured(opened)
    if into is not None:
        news(f"figures: {save_text(into, json.dumps(report.to_json(), indent=2))}")
    if asked["out"] is not None:
        news(f"report: {asked['out']}")
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
