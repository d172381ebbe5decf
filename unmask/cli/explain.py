"""The command explain: what the words of a prompt tell a model about a picture."""

from __future__ import annotations

from pathlib import Path

import click

from unmask.cli.inputs import pictures_and_text, read_picture
from unmask.cli.options import Run, model_options, path_option
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import STDOUT, news, print_json, table, write_picture
from unmask.cli.progress import Bar, silent, steps

_MASKS = 64


@click.command(cls=OrderedHelp, first=("pair", "masks", "out", "seed", "model"))
@click.argument("words", metavar="[IMAGE] PROMPT", nargs=-1, required=True)
@click.option(
    "--words",
    "pair",
    metavar="A,B",
    default="",
    help="Two words or phrases of the prompt: split what both tell into redundant, unique and synergistic parts.",
)
@click.option(
    "--masks",
    type=click.IntRange(2, 100_000),
    default=_MASKS,
    show_default=True,
    metavar="N",
    help="Random masks for each prompt; the error falls with the root of their number.",
)
@path_option("--out", (".png", ".jpg", ".webp"), "Save the picture with its maps.")
@model_options
def explain(run: Run, words: tuple[str, ...], pair: str, masks: int, out: Path | None) -> None:
    """Show what the words of a prompt tell about a picture.

    Prints for each word how many nats it adds to the log-probability of the picture, given the other words, with a standard error;
    --out saves a map over the picture: red where the word makes it more probable, blue where less. Without IMAGE, the model first
    generates the picture. --words splits what two words tell: what either says, what one alone says, and what only both together say.

    \b
    Examples:
      unmask explain "a red apple left of a cat" --out words.png
      unmask explain apple.png "a red apple left of a cat"
      unmask explain apple.png "a red apple left of a cat" --words red,apple --out pair.png
      unmask explain "two yellow cups" --masks 256 --json
    """
    from unmask.analysis import explain as analysis

    names, prompt = pictures_and_text(words, "prompt", "unmask explain")
    if len(names) > 1:
        raise ValueError(f"one picture is explained at a time, got {len(names)}; name one picture, then the prompt")
    chosen = _two(pair)
    if chosen is not None:
        analysis.without(prompt, chosen)  # an error before the model is opened
    else:
        analysis.content_words(prompt)
    picture = read_picture(names[0]) if names else None
    model = run.open("generate")
    if picture is None:
        picture = model.generate(prompt, seed=run.seed, settings=run.settings)[0].image
    shown = silent if run.quiet or run.json else Bar(what="forwards", words=steps)
    given = {"masks": masks, "seed": run.seed, "on_progress": shown}
    if chosen is None:
        found = analysis.contributions(model, picture, prompt, **given)
    else:
        found = analysis.explain(model, picture, prompt, chosen, **given)
    saved = write_picture(found.sheet(), out) if out is not None else None
    if run.json:
        print_json({**found.to_json(), "file": str(saved) if saved else None})
        return
    rows = [[name, f"{nats:+.2f}", _error(found.errors.get(name))] for name, nats in found.totals.items()]
    click.echo(table(("word" if chosen is None else "part", "nats", "standard error"), rows), err=saved == STDOUT)
    if saved is not None and saved != STDOUT:
        news(f"maps: {saved}")


def _two(pair: str) -> tuple[str, str] | None:
    """The two words of --words. UsageError for another number."""
    words = [word.strip() for word in pair.split(",") if word.strip()]
    if not pair:
        return None
    if len(words) != 2:
        raise click.UsageError(
            f"--words takes two words with a comma between them, got {pair!r}; e.g. --words red,apple"
        )
    return words[0], words[1]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
