"""Commands that look at a picture: ask and ground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.options import (
    OrderedHelp,
    Run,
    guidance_option,
    max_tokens_option,
    model_options,
    path_option,
    steps_option,
    stop_option,
    temperature_option,
    top_p_option,
)
from unmask.cli.output import news, print_json, save_text, warn
from unmask.json_types import Json
from unmask.tokens.pictures import WRITABLE, draw_boxes, read_image, save_image

if TYPE_CHECKING:
    from unmask.grammars.answer_format import AnswerFormat


@click.command(cls=OrderedHelp, first=("max_tokens", "steps", "guidance", "temperature", "seed", "model"))
@click.argument("words", metavar="[IMAGE] QUESTION", nargs=-1)
@max_tokens_option
@steps_option
@guidance_option
@temperature_option
@top_p_option
@stop_option
@click.option(
    "--length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that are decoded at a time; changes the answer.  [default: the model's preset]",
)
@click.option("--plain", is_flag=True, help="Text models: continue the text without a chat template (for Base models).")
@click.option("--schema", metavar="FILE|JSON", help="Constrain the answer to JSON that matches this schema.")
@click.option("--regex", metavar="PATTERN", help="Constrain the answer to a full match of this regex.")
@path_option("--trace", (".txt",), "Also save the answer after each step (.txt).")
@model_options
def ask(
    run: Run,
    words: tuple[str, ...],
    max_tokens: int | None,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    top_p: float | None,
    stop: tuple[str, ...],
    length: int | None,
    plain: bool,
    schema: str | None,
    regex: str | None,
    trace: Path | None,
) -> None:
    """Answer a question about a picture.

    Prints the answer. A text model (LLaDA) takes a QUESTION without IMAGE. --steps counts per block of the answer.

    \b
    Examples:
      unmask ask apples.png "how many apples are there?"
      unmask ask apples.png "what is left of the cat?" --json
      unmask ask apples.png "what colour is the apple?" --schema '{"enum": ["red", "green"]}'
      unmask ask "Why is the sky blue?" --model LLaDA-8B-Instruct --max-tokens 64 --temperature 0.5
      unmask ask "The sky is" --plain --max-tokens 32 --model LLaDA-8B-Base
    """
    if len(words) not in (1, 2) or (len(words) == 1 and os.path.isfile(words[0])):
        raise click.UsageError("expected IMAGE and QUESTION, or only QUESTION for a text model")
    form = _form(schema, regex)
    if form and plain:
        raise click.UsageError("--plain cannot be combined with --schema or --regex")
    picture = read_image(Path(words[0])) if len(words) == 2 else None
    model = run.open_any("ask")
    from unmask.pipeline.text_model import TextModel

    options: Json = {"seed": run.seed, "trace": trace is not None, "settings": run.settings}
    options |= {"steps": steps, "guidance_scale": guidance, "temperature": temperature, "top_p": top_p, "stop": stop}
    options |= {"max_tokens": max_tokens, "length": length, **({"form": form} if form else {})}
    if isinstance(model, TextModel):
        if picture is not None:
            raise click.UsageError(f"{run.model} is a text model and cannot read pictures; leave out IMAGE")
        answer = (model.complete if plain else model.ask)(words[-1], **options)
    elif picture is None or plain:
        raise click.UsageError(f"{run.model} is not a text model; give IMAGE and QUESTION, without --plain")
    else:
        answer = model.ask(picture, words[-1], **options)
    if trace is not None:
        saved = save_text(trace, "\n".join(answer.trace) + "\n")
        news(f"trace: {saved}")
    warn(answer.warnings)
    print_json(answer.to_json()) if run.json else click.echo(answer.text)


def _form(schema: str | None, regex: str | None) -> AnswerFormat | None:
    """The format that the answer is constrained to; None: free text."""
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise click.UsageError("give either --schema or --regex")
    from unmask.grammars.answer_format import of_regex, of_schema

    if schema is None:
        return of_regex(regex or "")
    return of_schema(schema if schema.lstrip()[:1] in ("{", "") else Path(schema).read_text(encoding="utf-8"))


@click.command(cls=OrderedHelp, first=("out", "steps", "seed", "model"))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("phrases", nargs=-1, required=True)
@click.option(
    "--steps",
    type=click.IntRange(1, 4),
    metavar="N",
    help="Steps for the four coordinates of a box, 1 to 4.  [default: 1]",
)
@path_option("--out", tuple(WRITABLE), "Save the picture with the boxes drawn in.")
@model_options
def ground(run: Run, image: Path, phrases: tuple[str, ...], steps: int | None, out: Path | None) -> None:
    """Find objects in a picture and draw boxes around them.

    Prints one line per phrase: x1, y1, x2, y2 in pixels of the picture, and the phrase.

    \b
    Examples:
      unmask ground apples.png "the cat"
      unmask ground apples.png "the red apple" "the cat" --out boxes.png
      unmask ground apples.png "the cat" --steps 4 --json
    """
    picture = read_image(image)
    found = run.open("ground").ground(picture, list(phrases), steps=steps, seed=run.seed, settings=run.settings)
    warn(found.warnings)
    if out is not None:
        saved = save_image(draw_boxes(picture, [(b.phrase, b.corners) for b in found.boxes]), out)
        news(f"boxes drawn: {saved}")
    if run.json:
        print_json({**found.to_json(), "file": str(out) if out else None})
        return
    for b in found.boxes:
        click.echo(f"{b.x1:.1f}\t{b.y1:.1f}\t{b.x2:.1f}\t{b.y2:.1f}\t{b.phrase}")
