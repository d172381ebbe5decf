"""The command chat: a conversation in the terminal, in words and pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from PIL import Image

from unmask.cli.options import (
    Run,
    guidance_option,
    max_tokens_option,
    model_options,
    steps_option,
    stop_option,
    temperature_option,
    top_p_option,
)
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import news, tell_approximate, warn
from unmask.tokens.pictures import ImageError, read_image, save_image

if TYPE_CHECKING:
    from unmask.tasks.conversing import Turn

_HELP = """/image FILE  attach a picture to your next message
/new         start a new conversation
/quit        exit (so does end of input)"""


@click.command(cls=OrderedHelp, first=("out", "max_tokens", "temperature", "steps", "guidance", "model"))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="chat",
    show_default=True,
    help="Folder for pictures: 1.png, 2.png …",
)
@max_tokens_option
@steps_option
@guidance_option
@temperature_option
@top_p_option
@stop_option
@model_options
def chat(
    run: Run,
    out: Path,
    max_tokens: int | None,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    top_p: float | None,
    stop: tuple[str, ...],
) -> None:
    """Chat with a model in words and pictures.

    Reads one message per line. Prints words; saves pictures and prints their paths. Lines that start with / are commands: /help.
    --max-tokens, --temperature, --top-p and --stop apply to words, --steps and --guidance to pictures (of a text model: to words).

    \b
    Examples:
      unmask chat
      unmask chat --out holiday --seed 3
      printf 'draw a red apple\\nwhat colour is the apple?\\n' | unmask chat
    """
    from unmask.tasks.conversing import Message

    if run.settings:
        raise click.UsageError(
            "chat takes no -o: words and pictures use different samplers; use --steps, --guidance or --temperature"
        )
    model, messages, shown, saved = run.open_any("converse"), [], [], 0
    if sys.stdin.isatty():
        news("Type a message, or /help.")
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
                turn = model.converse(
                    [*messages, asked],
                    seed=run.seed + len(messages) // 2,
                    max_tokens=max_tokens,
                    stop=stop,
                    steps=steps,
                    guidance_scale=guidance,
                    temperature=temperature,
                    top_p=top_p,
                )
            except ValueError as error:  # the conversation so far is kept
                news(f"error: {error}")
                continue
            messages, shown = [*messages, asked, turn.message()], []
            warn(turn.warnings)
            tell_approximate(turn.approximate)
            saved += _deliver(turn, out, saved, run)


def _command(words: str) -> list[Image.Image]:
    """The picture that a command attaches, if any."""
    name, _, argument = words.partition(" ")
    if name != "/image":
        news(_HELP)
        return []
    try:
        return [read_image(Path(argument.strip()))]
    except ImageError as error:
        news(f"error: {error}")
        return []


def _deliver(turn: Turn, out: Path, saved: int, run: Run) -> int:
    """Print words and paths, or one line of JSON. Returns the number of pictures saved."""
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
