"""Commands that make a picture, or complete a text: generate, edit, infill."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click
from PIL import Image

from unmask.cli.options import (
    Command,
    OrderedHelp,
    Run,
    guidance_option,
    model_options,
    path_option,
    steps_option,
    temperature_option,
)
from unmask.cli.output import news, numbered, print_json, warn
from unmask.tokens.pictures import TRACES, WRITABLE, read_image, save_image, save_trace

if TYPE_CHECKING:
    from unmask.tasks.results import Drawing
    from unmask.tokens.layouts import Layout

_GAP = "[mask]"

_plan = click.option("--plan", is_flag=True, help="Generate a layout first, then the picture.")
_plan_or_not = click.option(
    "--plan/--no-plan",
    default=None,
    help="Generate a layout first, then the picture; or only the picture.  [default: the model's preset]",
)
_best_of = click.option(
    "--attempts",
    type=int,
    metavar="N",
    help="Best of N, stopping at the first that the model accepts.  [default: the model's preset; 1 with --plan or --no-plan]",
)
_attempts = click.option(
    "--attempts",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Best of N, stopping at the first that the model accepts.",
)
_thoughts = path_option("--thoughts", tuple(WRITABLE), "Also save layouts and critiques as a sheet.")
_trace = path_option("--trace", TRACES, "Also save the picture after each step: .gif or .png strip.")
_count = click.option(
    "-n", "count", type=click.IntRange(1, 256), metavar="N", default=1, show_default=True, help="Number of pictures."
)


class _Conditions(TypedDict):
    luminance: float | None
    contrast: float | None
    score: float | None
    crop: tuple[int, int] | None


def _conditions(command: Command) -> Command:
    """Add --luminance, --contrast, --score and --crop, passed together as ``conditions``: the arguments of ``Parts.conditions``."""

    @functools.wraps(command)
    def wrapped(
        luminance: float | None,
        contrast: float | None,
        score: float | None,
        crop: tuple[int, int] | None,
        **own: object,
    ) -> None:
        command(conditions={"luminance": luminance, "contrast": contrast, "score": score, "crop": crop}, **own)

    options = (
        click.option(
            "--luminance", type=click.FloatRange(0, 1), metavar="0..1", help="Condition on this mean luminance."
        ),
        click.option(
            "--contrast",
            type=click.FloatRange(0, 0.5),
            metavar="0..0.5",
            help="Condition on this standard deviation of luminance.",
        ),
        click.option(
            "--score", type=click.FloatRange(0, 10), metavar="0..10", help="Condition on this aesthetic score."
        ),
        click.option(
            "--crop",
            type=(click.IntRange(min=0), click.IntRange(min=0)),
            metavar="TOP LEFT",
            help="Condition on a crop of so many pixels at the top and left.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@click.command(cls=OrderedHelp, first=("out", "count", "steps", "guidance", "seed", "model"))
@click.argument("prompt")
@_count
@steps_option
@guidance_option
@temperature_option
@path_option("--out", tuple(WRITABLE), "Output file; several pictures are numbered.", "drawing.png")
@_trace
@_conditions
@_plan_or_not
@click.option(
    "--boxes",
    metavar="LAYOUT",
    help="Use this layout: 'name: x1,y1,x2,y2; …' in fractions of the picture, or a JSON file.",
)
@_best_of
@_thoughts
@model_options
def generate(
    run: Run,
    prompt: str,
    count: int,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    out: Path,
    trace: Path | None,
    plan: bool | None,
    boxes: str | None,
    attempts: int | None,
    thoughts: Path | None,
    conditions: _Conditions,
) -> None:
    """Generate pictures from a prompt.

    Prints the path of every picture. With --attempts N it is the first attempt that the model's own critique accepts, otherwise the one
    with the highest acceptance score.

    \b
    Examples:
      unmask generate "a dog left of a cat"
      unmask generate "a blue bus" -n 4 --seed 1 --out bus.png
      unmask generate "a dog above a car" --trace dog.gif
      unmask generate "a clock" --steps 8 --guidance 2 --json
      unmask generate "a clock" --luminance 0.6 --contrast 0.05
      unmask generate "a dog above a car" --plan --thoughts plan.png
      unmask generate "two cats" --boxes "cat: 0,0,0.5,0.5; cat: 0.5,0.5,1,1"
      unmask generate "a red apple left of a blue cup" --plan --attempts 8 --thoughts attempts.png
    """
    if plan and boxes:
        raise click.UsageError("--boxes and --plan both give a layout; leave out one of them")
    _apart(out, trace, thoughts)
    layout = _layout(boxes) if boxes else plan
    model = run.open("reflect" if (attempts or 1) > 1 else "plan" if plan else "generate")
    drawn = model.generate(
        prompt,
        n=count,
        steps=steps,
        guidance_scale=guidance,
        temperature=temperature,
        seed=run.seed,
        conditions=model.parts.conditions(**conditions),
        plan=layout,
        attempts=attempts,
        trace=trace is not None,
        settings=run.settings,
    )
    _deliver(drawn, out, trace, run, thoughts)


@click.command(cls=OrderedHelp, first=("out", "count", "steps", "guidance", "seed", "model"))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@_count
@steps_option
@guidance_option
@temperature_option
@path_option("--out", tuple(WRITABLE), "Output file; several pictures are numbered.", "edited.png")
@_trace
@_plan
@_attempts
@_thoughts
@model_options
def edit(
    run: Run,
    image: Path,
    instruction: str,
    count: int,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    out: Path,
    trace: Path | None,
    plan: bool,
    attempts: int,
    thoughts: Path | None,
) -> None:
    """Edit a picture by an instruction.

    Prints the path of every picture. With --attempts N it is the first attempt that the model's own critique accepts, otherwise the one
    with the highest acceptance score.

    \b
    Examples:
      unmask edit apples.png "make the apple blue"
      unmask edit apples.png "add a cat at the top left" --out cat.png
      unmask edit apples.png "remove the cat" -n 2 --seed 3 --trace gone.gif
      unmask edit apples.png "move the cat to the top left" --plan --thoughts plan.png
      unmask edit apples.png "remove the cat" --attempts 4 --thoughts attempts.png
    """
    _apart(out, trace, thoughts)
    picture = read_image(image)
    model = run.open("edit-reflect" if attempts > 1 else "edit-plan" if plan else "edit")
    drawn = model.edit(
        picture,
        instruction,
        n=count,
        steps=steps,
        guidance_scale=guidance,
        temperature=temperature,
        seed=run.seed,
        plan=plan,
        attempts=attempts,
        trace=trace is not None,
        settings=run.settings,
    )
    _deliver(drawn, out, trace, run, thoughts)


@click.command(cls=OrderedHelp, first=("region", "out", "steps", "guidance", "seed", "model"))
@click.argument("target")
@steps_option
@guidance_option
@temperature_option
@click.option("--region", type=click.Path(path_type=Path), help="Mask picture: white where TARGET is filled.")
@click.option("--box", metavar="X1,Y1,X2,Y2", help="Fill this box, in pixels of TARGET.")
@click.option("--prompt", default="", help="Description of the whole picture.")
@path_option("--out", tuple(WRITABLE), "Output file.", "filled.png")
@_trace
@model_options
def infill(
    run: Run,
    target: str,
    region: Path | None,
    box: str | None,
    prompt: str,
    out: Path,
    trace: Path | None,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
) -> None:
    """Fill a region of a picture, or the gaps in a text.

    TARGET is a picture file, or a text in which every [mask] is a gap. A picture needs --region or --box.

    \b
    Examples:
      unmask infill "a [mask] apple left of a [mask]"
      unmask infill apples.png --box 0,0,64,64 --prompt "a cat and two red apples"
      unmask infill apples.png --region painted.png --out filled.png
    """
    if _GAP in target:
        if region or box:
            raise click.UsageError(f"a text with {_GAP} takes no --region and no --box")
        answer = run.open_any("infill-text").infill_text(
            target,
            seed=run.seed,
            steps=steps,
            guidance_scale=guidance,
            temperature=temperature,
            settings=run.settings,
        )
        warn(answer.warnings)
        print_json(answer.to_json()) if run.json else click.echo(answer.text)
        return
    if (region is None) == (box is None):
        raise click.UsageError(f"a picture needs either --region or --box; a text needs at least one {_GAP}")
    _apart(out, trace)
    picture = read_image(target)
    painted = read_image(region) if region else _box_region(box or "", picture.size)
    drawn = run.open("infill").infill(
        picture,
        region=painted,
        prompt=prompt,
        seed=run.seed,
        trace=trace is not None,
        steps=steps,
        guidance_scale=guidance,
        temperature=temperature,
        settings=run.settings,
    )
    _deliver([drawn], out, trace, run)


def _box_region(text: str, size: tuple[int, int]) -> Image.Image:
    """``x1,y1,x2,y2`` -> a mask picture that is white inside the box."""
    try:
        x1, y1, x2, y2 = (round(float(v)) for v in text.split(","))
    except (ValueError, OverflowError):
        raise click.UsageError(f"--box {text!r} must be four numbers x1,y1,x2,y2") from None
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
        raise click.UsageError(f"--box {text} must lie inside the {size[0]} x {size[1]} picture, x1 < x2 and y1 < y2")
    region = Image.new("RGB", size, "black")
    region.paste((255, 255, 255), (x1, y1, x2, y2))
    return region


def _layout(text: str) -> Layout:
    """``name: x1,y1,x2,y2; …``, or a JSON file: [{"phrase": …, "box": [x1, y1, x2, y2]}, …]."""
    from unmask.tokens.layouts import layout_of

    path = Path(text)
    try:
        if path.suffix == ".json":
            return layout_of([(str(t["phrase"]), [float(v) for v in t["box"]]) for t in json.loads(path.read_text())])
        pairs = [part.rsplit(":", 1) for part in text.split(";") if part.strip()]
        return layout_of([(name, [float(v) for v in box.split(",")]) for name, box in pairs])
    except OSError as error:
        raise click.UsageError(f"--boxes {text}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if "; give" in str(error) or "; say" in str(error):
            raise
        raise click.UsageError(
            f"--boxes {text!r} is not a layout; write 'red apple: 0,0,0.5,0.5; cat: 0.5,0.5,1,1' or give a .json file"
        ) from error


def _apart(out: Path, trace: Path | None, thoughts: Path | None = None) -> None:
    named = [(flag, path) for flag, path in (("--out", out), ("--trace", trace), ("--thoughts", thoughts)) if path]
    for (flag, path), (other, same) in itertools.combinations(named, 2):
        if path == same:
            raise click.UsageError(f"{flag} and {other} are both {path}")


def _deliver(drawn: Sequence[Drawing], out: Path, trace: Path | None, run: Run, thoughts: Path | None = None) -> None:
    """Save pictures, traces and thoughts, and print their paths."""
    records = []
    warn([line for drawing in drawn for line in drawing.warnings])
    for i, drawing in enumerate(drawn):
        saved = save_image(drawing.image, numbered(out, i, len(drawn)))
        if trace is not None:
            news(f"trace: {save_trace(drawing.trace, numbered(trace, i, len(drawn)))}")
        if thoughts is not None:
            from unmask.cli.thoughts import sheet_of

            news(f"thoughts: {save_image(sheet_of(drawing), numbered(thoughts, i, len(drawn)))}")
        records.append({**drawing.to_json(), "file": str(saved)})
        if not run.json:
            click.echo(saved)
    if run.json:
        print_json(records)
