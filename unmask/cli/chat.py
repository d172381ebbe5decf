"""The command chat: a conversation in the terminal, in words and pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from unmask.cli.options import Run, model_options
from unmask.cli.output import news
from unmask.tokens.pictures import ImageError, read_image, save_image

_HELP = """/image FILE  show a picture, with what you say next
/new         begin anew
/quit        leave (so does the end of input)"""


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="chat",
    show_default=True,
    help="Where pictures are saved: 1.png, 2.png …",
)
@model_options
def chat(run: Run, out: Path) -> None:
    """Talk with a model in words and pictures.

    Reads a line at a time. Words are printed, pictures are saved and their paths printed. Lines that begin with / are commands: /help.

    \b
    Examples:
      unmask chat
      unmask chat --out holiday --seed 3
      printf 'draw a red apple\\nwhat colour is the apple?\\n' | unmask chat
    """
    from unmask.tasks.conversing import Message

    if run.settings:
        raise click.UsageError("chat takes no -o settings: words and pictures have samplers of their own")
    model, messages, shown, saved = run.open("converse"), [], [], 0
    if sys.stdin.isatty():
        news("Say something; /help for help.")
    for line in sys.stdin:
        words = line.strip()
        if words in ("/quit", "/new"):
            if words == "/quit":
                break
            messages, shown = [], []
        elif words.startswith("/"):
            shown += _command(words)
        elif words:
            asked = Message(role="user", text=words, images=tuple(shown))
            try:
                turn = model.converse([*messages, asked], seed=run.seed + len(messages) // 2)
            except ValueError as error:  # what was said before stays
                news(f"error: {error}")
                continue
            messages, shown = [*messages, asked, turn.message()], []
            saved += _deliver(turn, out, saved, run)


def _command(words: str) -> list[Any]:
    """The picture that a command shows, if it does."""
    name, _, argument = words.partition(" ")
    if name != "/image":
        news(_HELP)
        return []
    try:
        return [read_image(Path(argument.strip()))]
    except ImageError as error:
        news(f"error: {error}")
        return []


def _deliver(turn: Any, out: Path, saved: int, run: Run) -> int:
    """Print words and paths, or one line of JSON; how many pictures were saved."""
    files = []
    for image in turn.images:
        out.mkdir(parents=True, exist_ok=True)
        files.append(str(save_image(image, out / f"{saved + len(files) + 1}.png")))
    left = iter(files)
    if run.json:
        import json

        click.echo(json.dumps({**turn.to_json(), "files": files}, ensure_ascii=False))
    else:
        for part in turn.parts:
            click.echo(part if isinstance(part, str) else next(left))
    sys.stdout.flush()
    return len(files)
