"""Commands that look at a picture: ask and ground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from unmask.cli.options import Run, model_options, path_option
from unmask.cli.output import news, print_json, save_text
from unmask.tokens.pictures import WRITABLE, draw_boxes, read_image, save_image


@click.command()
@click.argument("words", metavar="[IMAGE] QUESTION", nargs=-1)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Longest answer in tokens (default: as the model's family has it)."
)
@click.option("--plain", is_flag=True, help="Text models: go on with the text, without a chat template (Base models).")
@click.option("--schema", metavar="FILE|JSON", help="Answer with JSON that is valid by this JSON schema.")
@click.option("--regex", metavar="PATTERN", help="Answer with a text that matches as a whole.")
@path_option("--trace", (".txt",), "Also save the answer as it stood after every step (.txt).")
@model_options
def ask(
    run: Run,
    words: tuple[str, ...],
    max_tokens: int | None,
    plain: bool,
    schema: str | None,
    regex: str | None,
    trace: Path | None,
) -> None:
    """Answer a question about a picture.

    Prints the answer. A text model (LLaDA) is given the QUESTION alone.

    \b
    Examples:
      unmask ask apples.png "how many apples are there?"
      unmask ask apples.png "what is left of the cat?" --json
      unmask ask apples.png "what colour is the apple?" --schema '{"enum": ["red", "green"]}'
      unmask ask "Why is the sky blue?" --model LLaDA-8B-Instruct -o blocks.length=64 -o schedule.steps=64
      unmask ask "The sky is" --plain --max-tokens 32 --model LLaDA-8B-Base
    """
    if len(words) not in (1, 2) or (len(words) == 1 and os.path.isfile(words[0])):
        raise click.UsageError("wanted a picture and a QUESTION, or for a text model a QUESTION alone")
    form = _form(schema, regex)
    if form and plain:
        raise click.UsageError("a text that goes on has no form; leave out --plain, or --schema and --regex")
    picture = read_image(Path(words[0])) if len(words) == 2 else None
    model = run.open("ask")
    from unmask.pipeline.text_model import TextModel

    options: dict[str, Any] = {"seed": run.seed, "trace": trace is not None, "settings": run.settings}
    options |= ({"max_tokens": max_tokens} if max_tokens else {}) | ({"form": form} if form else {})
    if isinstance(model, TextModel):
        if picture is not None:
            raise click.UsageError(f"{run.model} is a text model and looks at no picture; give it the question alone")
        answer = (model.complete if plain else model.ask)(words[-1], **options)
    elif picture is None or plain:
        raise click.UsageError(f"{run.model} is no text model: give it a picture and a QUESTION, without --plain")
    else:
        answer = model.ask(picture, words[-1], **options)
    if trace is not None:
        saved = save_text(trace, "\n".join(answer.trace) + "\n")
        news(f"trace: {saved}")
    print_json(answer.to_json()) if run.json else click.echo(answer.text)


def _form(schema: str | None, regex: str | None) -> Any:
    """What the answer has to look like; None: anything."""
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise click.UsageError("an answer has one form; give --schema or --regex")
    from unmask.grammars.answer_format import of_regex, of_schema

    if schema is None:
        return of_regex(regex or "")
    return of_schema(schema if schema.lstrip()[:1] in ("{", "") else Path(schema).read_text(encoding="utf-8"))


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("phrases", nargs=-1, required=True)
@click.option(
    "--steps", type=click.IntRange(1, 4), default=1, show_default=True, help="1: all at once · 4: one by one."
)
@path_option("--out", tuple(WRITABLE), "Where to save the picture with the boxes.")
@model_options
def ground(run: Run, image: Path, phrases: tuple[str, ...], steps: int, out: Path | None) -> None:
    """Find things in a picture and draw boxes round them.

    Prints a line for every phrase: x1, y1, x2, y2 in pixels of the picture, and the phrase.

    \b
    Examples:
      unmask ground apples.png "the cat"
      unmask ground apples.png "the red apple" "the cat" --out boxes.png
      unmask ground apples.png "the cat" --steps 4 --json
    """
    picture = read_image(image)
    found = run.open("ground").ground(picture, list(phrases), steps=steps, seed=run.seed, settings=run.settings)
    if out is not None:
        saved = save_image(draw_boxes(picture, [(b.phrase, b.corners) for b in found.boxes]), out)
        news(f"boxes drawn: {saved}")
    if run.json:
        print_json({**found.to_json(), "file": str(out) if out else None})
        return
    for b in found.boxes:
        click.echo(f"{b.x1:.1f}\t{b.y1:.1f}\t{b.x2:.1f}\t{b.y2:.1f}\t{b.phrase}")
