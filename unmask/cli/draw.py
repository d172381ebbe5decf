"""Commands that make a picture, or complete a text: generate, edit, infill."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click
from PIL import Image

from unmask.cli.delivery import deliver, refuse_clashes
from unmask.cli.inputs import expand, pictures_and_text, read_picture, read_pictures, read_text
from unmask.cli.options import (
    Command,
    Run,
    guidance_option,
    model_options,
    path_option,
    steps_option,
    temperature_option,
)
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import print_json, tell_approximate, warn
from unmask.tokens.pictures import TRACES, WRITABLE

if TYPE_CHECKING:
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
@path_option(
    "--out",
    tuple(WRITABLE),
    "Output file, which is replaced; several pictures are numbered; - is stdout.",
    "drawing.png",
)
@click.option(
    "--size", metavar="WIDTHxHEIGHT", help="Size in pixels, for models that draw any shape.  [default: the model's]"
)
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
    size: str | None,
    trace: Path | None,
    plan: bool | None,
    boxes: str | None,
    attempts: int | None,
    thoughts: Path | None,
    conditions: _Conditions,
) -> None:
    """Generate pictures from a prompt.

    PROMPT is a text in quotes, or - to read it from stdin. Prints the path of every picture. With --attempts N it is the first attempt
    that the model's own critique accepts, otherwise the one with the highest acceptance score.

    \b
    Examples:
      unmask generate "a dog left of a cat"
      unmask generate "a blue bus" -n 4 --seed 1 --out bus.png
      unmask generate "a dog above a car" --trace dog.gif
      unmask generate "a clock" --steps 8 --guidance 2 --json
      unmask generate "a clock" --luminance 0.6 --contrast 0.05
      unmask generate "a dog above a car" --plan --thoughts plan.png
      unmask generate "a blue bus" --no-plan
      unmask generate "a red cat" --size 64x32 --model models/Lumina-DiMOO
      unmask generate "two cats" --boxes "cat: 0,0,0.5,0.5; cat: 0.5,0.5,1,1"
      unmask generate "a red apple left of a blue cup" --plan --attempts 8 --thoughts attempts.png
    """
    if plan and boxes:
        raise click.UsageError("--boxes and --plan both give a layout; leave out one of them")
    refuse_clashes(run, out, count, trace, thoughts)
    prompt = read_text(prompt, "prompt")
    layout = _layout(boxes) if boxes else plan
    model = run.open("reflect" if (attempts or 1) > 1 else "plan" if plan else "generate")
    drawn = model.generate(
        prompt,
        n=count,
        steps=steps,
        guidance_scale=guidance,
        temperature=temperature,
        seed=run.seed,
        size=_size(size) if size else None,
        conditions=model.parts.conditions(**conditions),
        plan=layout,
        attempts=attempts,
        trace=trace is not None,
        settings=run.settings,
    )
    deliver([("", drawing) for drawing in drawn], count, out, trace, run, thoughts)


@click.command(cls=OrderedHelp, first=("out", "count", "steps", "guidance", "seed", "model"))
@click.argument("words", metavar="IMAGE... INSTRUCTION", nargs=-1, required=True)
@_count
@steps_option
@guidance_option
@temperature_option
@path_option(
    "--out",
    tuple(WRITABLE),
    "Output file, which is replaced; several pictures are numbered; - is stdout.",
    "edited.png",
)
@click.option("--kind", default="", help="Kind of edit, for models with several, such as canny_control.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="A second picture, for kinds that read one (image_ref_transfer).",
)
@_trace
@_plan
@_attempts
@_thoughts
@model_options
def edit(
    run: Run,
    words: tuple[str, ...],
    count: int,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    out: Path,
    kind: str,
    reference: Path | None,
    trace: Path | None,
    plan: bool,
    attempts: int,
    thoughts: Path | None,
) -> None:
    """Edit pictures by an instruction.

    IMAGE is a file, a pattern such as '*.png', or - for stdin. Prints the path of every picture. With --attempts N it is the first
    attempt that the model's own critique accepts, otherwise the one with the highest acceptance score.

    \b
    Examples:
      unmask edit apple.png "make the apple green"
      unmask edit apple.png "make the cat blue" --out blue.png
      unmask edit apple.png "remove the cat" -n 2 --seed 3 --trace gone.gif
      unmask edit apple.png "make the background sand" --plan --thoughts plan.png
      unmask edit apple.png "remove the cat" --attempts 4 --thoughts attempts.png
      unmask edit apple.png "a green apple" --kind depth_control --model models/Lumina-DiMOO
      unmask edit *.png "make the background sand" --out sand/edited.png
    """
    names, instruction = pictures_and_text(words, "instruction", "unmask edit")
    if not names:
        raise ValueError(f'the picture is missing; for example: unmask edit dog.png "{instruction}"')
    instruction = read_text(instruction, "instruction")
    refuse_clashes(run, out, count * len(names), trace, thoughts)
    pictures = read_pictures(names)
    model = run.open("edit-reflect" if attempts > 1 else "edit-plan" if plan else "edit")
    change = functools.partial(
        model.edit,
        instruction=instruction,
        n=count,
        steps=steps,
        guidance_scale=guidance,
        temperature=temperature,
        seed=run.seed,
        kind=kind,
        reference=None if reference is None else read_picture(reference),
        plan=plan,
        attempts=attempts,
        trace=trace is not None,
        settings=run.settings,
    )
    drawn = ((name if len(names) > 1 else "", drawing) for name, picture in pictures for drawing in change(picture))
    deliver(drawn, count * len(names), out, trace, run, thoughts)


@click.command(cls=OrderedHelp, first=("region", "out", "steps", "guidance", "seed", "model"))
@click.argument("target")
@steps_option
@guidance_option
@temperature_option
@click.option("--region", type=click.Path(path_type=Path), help="Mask picture: white where TARGET is filled.")
@click.option("--box", metavar="X1,Y1,X2,Y2", help="Fill this box, in pixels of TARGET.")
@click.option("--prompt", default="", help="Description of the whole picture.")
@path_option("--out", tuple(WRITABLE), "Output file, which is replaced; - is stdout.", "filled.png")
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

    TARGET is a picture file, or a text in which [mask] is one missing token, [mask:N] are N, and [slot:N] up to N of models with slots.
    A picture needs --region or --box. - reads TARGET from stdin.

    \b
    Examples:
      unmask infill "a [mask] apple left of a cat"
      unmask infill apple.png --box 0,0,64,64 --prompt "a red apple left of a cat"
      unmask infill apple.png --region painted.png --out filled.png
    """
    if region is None and box is None:
        target = read_text(target, "text")
    if _GAP in target or re.search(r"\[(mask|slot):[0-9]", target):
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
        tell_approximate(answer.approximate)
        print_json(answer.to_json()) if run.json else click.echo(answer.text)
        return
    if (region is None) == (box is None):
        raise click.UsageError(f"a picture needs either --region or --box; a text needs at least one {_GAP}")
    refuse_clashes(run, out, 1, trace)
    picture = read_picture(*expand([target]))
    painted = read_picture(region) if region else _box_region(box or "", picture.size)
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
    deliver([("", drawn)], 1, out, trace, run)


def _size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` in pixels."""
    if not (found := re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)):
        raise click.UsageError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, such as 1536x768")
    return int(found[1]), int(found[2])


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
    from unmask.tokens.layouts import layout_in, layout_of

    path = Path(text)
    try:
        if path.suffix == ".json":
            return layout_of(
                [(str(t["phrase"]), [float(v) for v in t["box"]]) for t in json.loads(path.read_text(encoding="utf-8"))]
            )
        return layout_in(text)
    except OSError as error:
        raise click.UsageError(f"--boxes {text}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if "; give" in str(error) or "; say" in str(error):
            raise
        raise click.UsageError(
            f"--boxes {text!r} is not a layout; write 'red apple: 0,0,0.5,0.5; cat: 0.5,0.5,1,1' or give a .json file"
        ) from error
