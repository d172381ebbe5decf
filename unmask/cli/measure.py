"""Commands that measure: evaluate (quality) and bench (the scripts in ``bench/``)."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from unmask.cli import completion
from unmask.cli.options import (
    Storage,
    device_option,
    found_device,
    loading_options,
    lora_option,
    seed_option,
    setting_option,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, print_json, save_text
from unmask.cli.progress import opening
from unmask.cli.samplers import samplers
from unmask.cli.sampling import named_sampler, sampler_option, speed_option
from unmask.cli.suites import SUITES, EvalOptions, check
from unmask.data.world.vocabulary import LEVELS

_BENCH = Path(__file__).parents[2] / "bench"


@click.command()
@click.argument("model", default="mini", shell_complete=completion.models)
@click.option("--suite", type=click.Choice(list(SUITES)), default="world", show_default=True, help="Benchmark to run.")
@click.option(
    "--level", type=click.Choice(sorted(LEVELS)), default="grid", show_default=True, help="world: difficulty."
)
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="The benchmark's prompt file (dpg: or a folder of .txt)."
)
@click.option("--images", type=click.Path(path_type=Path), help="imgedit, refcoco: folder of the pictures.")
@click.option("--only", metavar="A,B", default="", help="Only these parts, tags, edit types or splits.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Items per part, for a quick run.  [default: all]"
)
@click.option(
    "-n",
    "each",
    type=click.IntRange(1, 256),
    metavar="N",
    default=4,
    show_default=True,
    help="geneval, dpg: pictures per prompt.",
)
@click.option("--all", "everything", is_flag=True, help="geneval: also generate what the judge cannot score.")
@click.option("--plan", is_flag=True, help="geneval, dpg, imgedit: generate a layout first.")
@click.option(
    "--attempts",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="geneval, dpg, imgedit: best of N per picture.",
)
@speed_option
@sampler_option
@setting_option("Benchmarks: set a field of the sampler; repeatable.")
@click.option(
    "--clip", type=click.Path(path_type=Path), help="geneval, dpg: CLIP score with the CLIP model in this folder."
)
@click.option(
    "--real", type=click.Path(path_type=Path), help="With --clip: Fréchet distance to the pictures in this folder."
)
@click.option(
    "--json", "into", type=click.Path(path_type=Path), help="Also write the results to this file; - is stdout."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for pictures, verdicts and an HTML report."
)
@click.option("--batch", type=click.IntRange(min=1), metavar="N", default=32, show_default=True, help="Batch size.")
@seed_option
@device_option
@threads_option
@loading_options
@lora_option
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
    lora: tuple[str, ...],
    speed: str,
    sampler: str | None,
    **options: Any,
) -> None:
    """Measure the quality of a model.

    MODEL is a shipped model or a folder. Prints a table with 95 % confidence intervals. The suite world needs no files; the others read
    the files of a public benchmark and write pictures in its layout. Interrupted runs resume with the same --out.

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
    change, options["settings"] = named_sampler(sampler, options["settings"])
    check(context, suite, options["settings"])
    use_threads(threads)
    options["device"] = found_device(options["device"])
    parts = tuple(p.strip() for p in only.split(",") if p.strip())
    measured = SUITES[suite].open(EvalOptions(only=parts, **options))
    import unmask
    from unmask.pipeline.text_model import TextModel

    more = {
        "storage": storage.value(),
        "lora": lora,
        "speed": speed,
        "context": storage.longest(),
        "on_bytes": opening(model),
        "verify": storage.verify,
        "graphs": storage.graphs,
    }
    opened = unmask.load(model, device=options["device"], **more)
    opened = opened.with_sampler(change) if change else opened
    if isinstance(opened, TextModel):
        raise ValueError(
            f"{model} is a text model, and the suites need pictures; for its likelihood use unmask.evaluation.likelihood"
        )
    report = measured(opened)
    if into == Path("-"):
        print_json(report.to_json())
        return
    if into is not None:
        news(f"results: {save_text(into, json.dumps(report.to_json(), indent=2))}")
    if options["out"] is not None:
        news(f"report: {options['out']}")
    click.echo(report.table())


class Bench(click.Group):
    """A group whose other commands are the scripts of bench/, which read their own arguments."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """ValueError for a name that is neither a command nor a script."""
        own, scripts = super().get_command(ctx, cmd_name), {p.stem: p for p in sorted(_BENCH.glob("*.py"))}
        if own is not None:
            return own
        if cmd_name not in scripts:
            names = [*self.commands, *scripts]
            more = "" if scripts else "; the scripts of bench/ are in a source tree (git clone)"
            raise ValueError(f"no benchmark is called {cmd_name!r}{more}; choose from {', '.join(names)}")
        return _script(cmd_name, scripts[cmd_name])


def _script(name: str, path: Path) -> click.Command:
    def run(arguments: tuple[str, ...]) -> None:
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(_BENCH))  # as Python does for a script, so that it finds those beside it
        runpy.run_path(str(path), run_name="__main__")

    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    words = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    return click.Command(name, params=[words], callback=run, add_help_option=False, context_settings=settings)


@click.group(cls=Bench, subcommand_metavar="NAME [ARGUMENTS]...")
def bench() -> None:
    """Compare samplers, or run a benchmark script of the source tree.

    NAME is samplers or a script in bench/; all further arguments are passed to it.

    \b
    Examples:
      unmask bench samplers --world 60
      unmask bench speed
      unmask bench quality --help
    """


bench.add_command(samplers)
