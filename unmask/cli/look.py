"""Commands that look at a picture: ask and ground."""

from __future__ import annotations

from pathlib import Path

import click

from unmask.cli.options import Run, model_options, path_option
from unmask.cli.output import news, print_json, save_text
from unmask.tokens.pictures import WRITABLE, draw_boxes, read_image, save_image


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--length", type=click.IntRange(min=1), help="Longest answer in tokens (default: as the model's family has it)."
)
@path_option("--trace", (".txt",), "Also save the answer as it stood after every step (.txt).")
@model_options
def ask(run: Run, image: Path, question: str, length: int | None, trace: Path | None) -> None:
    """Answer a question about a picture.

    Prints the answer.

    \b
    Examples:
      unmask ask apples.png "how many apples are there?"
      unmask ask apples.png "what is left of the cat?" --json
    """
    picture = read_image(image)
    answer = run.open().ask(
        picture, question, seed=run.seed, trace=trace is not None, length=length, settings=run.settings
    )
    if trace is not None:
        saved = save_text(trace, "\n".join(answer.trace) + "\n")
        news(f"trace: {saved}")
    print_json(answer.to_json()) if run.json else click.echo(answer.text)


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
    found = run.open().ground(picture, list(phrases), steps=steps, seed=run.seed, settings=run.settings)
    if out is not None:
        saved = save_image(draw_boxes(picture, [(b.phrase, (b.x1, b.y1, b.x2, b.y2)) for b in found.boxes]), out)
        news(f"boxes drawn: {saved}")
    if run.json:
        print_json({**found.to_json(), "file": str(out) if out else None})
        return
    for b in found.boxes:
        click.echo(f"{b.x1:.1f}\t{b.y1:.1f}\t{b.x2:.1f}\t{b.y2:.1f}\t{b.phrase}")
