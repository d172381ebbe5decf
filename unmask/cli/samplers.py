"""The command bench samplers: compare samplers of one model on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.options import (
    Run,
    guidance_option,
    model_options,
    path_option,
    steps_option,
    temperature_option,
    top_p_option,
)
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import news, print_json, table
from unmask.cli.progress import Bar, silent

if TYPE_CHECKING:
    from unmask.evaluation.sampler_prompts import Metric, Prompt
    from unmask.evaluation.sampler_report import SamplerReport
    from unmask.evaluation.sampler_requests import Requests
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.sampling.sampler import Sampler

# As in evaluation/sampler_axes.py, which needs torch.
ORDERS = ("own", "confidence", "random", "left_to_right", "halton", "stratified")
SCHEDULES = ("own", *completion.SCHEDULES)
CACHES = ("own", *completion.CACHES)
METRICS = ("match", "contains", "judge", "clip:FOLDER")
TASKS = ("generate", "ask", "complete")
_SIDE = 128  # pixels of the world's pictures
_ALL = "all"  # orders and samplers by name


Options = tuple[tuple[str, ...], int | None, float | None, float | None, float | None]  # as of ``with_options``


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The four lists of names whose product is compared."""

    orders: tuple[str, ...]
    schedules: tuple[str, ...]
    caches: tuple[str, ...]
    thresholds: tuple[str, ...]


DRAWING = Axes(
    orders=("own", "confidence", "random", "halton"),
    schedules=("own", "equal:steps=0.5"),
    caches=("own",),
    thresholds=("none",),
)
WRITING = Axes(
    orders=("own", "random", "left_to_right"),
    schedules=("own", "equal:steps=0.5"),
    caches=("own", "block:refresh=4"),
    thresholds=("none", "0.9"),
)


def _list_option(
    flag: str, names: tuple[str, ...], more: str
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def split(context: click.Context, option: click.Parameter, given: str | None) -> tuple[str, ...] | None:
        if given is None:
            return None
        words = tuple(word.strip() for word in given.split(",") if word.strip())
        if not words:
            raise click.BadParameter(f"no name in {given!r}; choose from {', '.join(names)}", context, option)
        return words

    return click.option(flag, metavar="A,B", callback=split, help=f"{', '.join(names)}{more}")


@click.command(
    "samplers",
    cls=OrderedHelp,
    first=("given", "prompts", "orders", "schedules", "caches", "thresholds", "metric", "model"),
)
@click.option("--prompt", "given", metavar="TEXT", multiple=True, help="A prompt or question; repeatable.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Prompts: .txt, one on each line, or .jsonl with prompt, image and answer.",
)
@click.option(
    "--world",
    type=click.IntRange(min=1),
    metavar="N",
    help="N validation prompts of the synthetic world, with their metric.",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="The picture that the questions of --prompt are about.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="What to do with the prompts; complete: continue a text.  [default: generate, else ask]",
)
@_list_option("--orders", ORDERS, ", or a sampler of `unmask methods`, such as remdm:eta=0.2; all: every one.")
@_list_option("--schedules", SCHEDULES, "; NAME:steps=N, below 1 a share of the steps.")
@_list_option("--caches", CACHES, "; block:refresh=N.")
@_list_option("--thresholds", ("none",), ", or probabilities; a threshold takes the place of order and schedule.")
@click.option("--metric", metavar="NAME", help=f"Quality: {', '.join(METRICS)}.  [default: none; that of --world]")
@click.option(
    "--length", type=click.IntRange(min=1), metavar="N", help="Tokens of an answer.  [default: the model's preset]"
)
@steps_option
@guidance_option
@temperature_option
@top_p_option
@path_option("--plot", (".png",), "Also draw quality or agreement against forwards and seconds.")
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append a row per sampler to this file.",
)
@click.option("--label", metavar="NAME", help="The model's name in the results.  [default: its folder's]")
@model_options
def samplers(
    run: Run,
    given: tuple[str, ...],
    prompts: Path | None,
    world: int | None,
    image: Path | None,
    task: str | None,
    orders: tuple[str, ...] | None,
    schedules: tuple[str, ...] | None,
    caches: tuple[str, ...] | None,
    thresholds: tuple[str, ...] | None,
    metric: str | None,
    length: int | None,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    top_p: float | None,
    plot: Path | None,
    history: Path | None,
    label: str | None,
) -> None:
    """Compare samplers of a model on the same prompts and seeds.

    Runs every combination of orders, schedules, caches and thresholds beside the reference, the model's own sampler with the options that
    you give (--steps, --temperature, --sampler, -o …), and reports forwards, tokens a forward, seconds and the share of tokens that
    agree with the reference. The row `reference, other seeds` shows how much two seeds of the reference agree. Equal samplers run once; a
    combination that the model does not allow says why.

    \b
    Examples:
      unmask bench samplers --prompt "a red apple" --prompt "two dogs" --orders own,random
      unmask bench samplers --world 60 --orders own,remdm:eta=0.2 --schedules own,cosine:steps=8 --plot samplers.png
      unmask bench samplers --world 24 --orders all --plot samplers.png
      unmask bench samplers --task ask --world 60 --thresholds none,0.9,0.7
      unmask bench samplers --model FOLDER --prompts questions.jsonl --caches own,block:refresh=4 --metric match --json
    """
    from unmask.evaluation.sampler_axes import check_names, every_order, variants
    from unmask.evaluation.sampler_report import SamplerReport
    from unmask.evaluation.sampler_runs import compare

    orders = every_order() if orders == (_ALL,) else orders
    check_names(orders or (), schedules or (), caches or (), thresholds or ())
    source = _Source(given=given, file=prompts, world=world, image=image)
    source.check()
    model = run.load()
    task = task or _first_task(model)
    usual = DRAWING if task == "generate" else WRITING
    chosen = (
        orders or usual.orders,
        schedules or usual.schedules,
        caches or usual.caches,
        thresholds or usual.thresholds,
    )
    found = source.read(task, run.seed)
    judged = _metric(metric or ("" if not world else "judge" if task == "generate" else "match"), found, run.device)
    options = (run.settings, steps, guidance, temperature, top_p)
    requests = _requests(model, task, found, run.seed, options, length)
    bar = Bar(what="comparing", words=lambda done, of: f"run {done} of {of}", lines=not run.json)
    try:
        progress = silent if run.quiet else bar
        rows = compare(requests, variants(*chosen, net=requests.net), metric=judged[1], progress=progress)
    finally:
        bar.close()
    report = SamplerReport(
        label=label or Path(run.model).name,
        task=task,
        prompts=len(found),
        seed=run.seed,
        device=str(requests.device),
        metric=judged[0],
        rows=tuple(rows),
    )
    _show(report, run, plot, history)


def _show(report: SamplerReport, run: Run, plot: Path | None, history: Path | None) -> None:
    from unmask.evaluation.history import append
    from unmask.evaluation.sampler_report import HEAD
    from unmask.evaluation.sampler_report import plot as drawn
    from unmask.tokens.pictures import save_image

    print_json(report.to_json()) if run.json else click.echo(table(HEAD, report.cells()))
    if report.refusals() and not run.json:
        click.echo("\n" + table(("not possible", "why"), report.refusals()))
    if report.repeated and not run.json:
        news(f"{report.repeated} more combinations have the sampler of a row above; --json lists them")
    if plot is not None:
        news(f"plot: {save_image(drawn(report), plot)}")
    if history is not None:
        append(history, report.lines(), device=report.device)
        news(f"history: {history}")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the prompts come from, as typed."""

    given: tuple[str, ...]
    file: Path | None
    world: int | None
    image: Path | None

    def check(self) -> None:
        """UsageError unless exactly one source is given; ValueError for an empty prompt."""
        if sum((bool(self.given), self.file is not None, self.world is not None)) != 1:
            raise click.UsageError("give prompts in one way: --prompt TEXT (repeatable), --prompts FILE or --world N")
        if self.image is not None and not self.given:
            raise click.UsageError("--image is the picture of --prompt; in a file, each line has its own field image")
        if any(not text.strip() for text in self.given):
            raise ValueError('a prompt is empty; give a text, for example --prompt "a red apple"')

    def read(self, task: str, seed: int) -> list[Prompt]:
        """The prompts. FormatError (a ValueError) for a file that has none, or is in no format that is read."""
        from unmask.evaluation.sampler_prompts import Prompt, read_prompts, world_drawings, world_questions

        if self.file is not None:
            return read_prompts(self.file)
        if self.world is not None:
            return world_drawings(self.world, seed) if task == "generate" else world_questions(self.world, seed, _SIDE)
        return [Prompt(text=text, image=self.image) for text in self.given]


def _first_task(model: Model | TextModel) -> str:
    """``generate`` for a model that draws, else ``ask``."""
    from unmask.pipeline.model import Model

    if not isinstance(model, Model):
        return "ask"
    try:
        model.presets.generate(model.parts)
    except ValueError:
        return "ask"
    return "generate"


def _requests(
    model: Model | TextModel, task: str, prompts: list[Prompt], seed: int, options: Options, length: int | None
) -> Requests:
    from unmask.evaluation.sampler_requests import answering, drawing, writing
    from unmask.pipeline.text_model import TextModel
    from unmask.tasks.sampler_options import with_options

    def change(sampler: Sampler) -> Sampler:
        return with_options(sampler, *options)

    if isinstance(model, TextModel):
        if task == "generate":
            raise ValueError("this is a text model, which cannot generate pictures; use --task ask or --task complete")
        return writing(model, prompts, seed=seed, change=change, length=length, plain=task == "complete")
    if task == "complete":
        raise ValueError("--task complete is for text models, and this one reads pictures; use --task ask")
    if task == "ask":
        return answering(model, prompts, seed=seed, change=change, length=length)
    if length is not None:
        raise ValueError("--length is of answers, and the task draws pictures; leave it out")
    if pictured := next((prompt for prompt in prompts if prompt.image is not None), None):
        raise ValueError(f"{pictured.text!r} has a picture, and --task generate draws from words alone; use --task ask")
    return drawing(model, prompts, seed=seed, change=change)


def _metric(name: str, prompts: list[Prompt], device: str) -> tuple[str, Metric | None]:
    """The name of a metric in results, and its function. ValueError for an unknown one and for prompts that it cannot judge."""
    from unmask.evaluation import sampler_prompts as known

    if not name:
        return "", None
    kind, _, folder = name.partition(":")
    if kind in ("match", "contains") and not folder:
        known.refuse_unanswered(prompts, kind)
        return kind, known.matches if kind == "match" else known.contains
    if kind == "judge" and not folder:
        from unmask.evaluation.judge import load_judge

        known.refuse_unseen(prompts)
        return kind, known.Judged(judge=load_judge())
    if kind == "clip" and folder:
        from unmask.evaluation.encoders import read_clip

        return kind, known.Clip(encoder=read_clip(Path(folder), device))
    raise ValueError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")
