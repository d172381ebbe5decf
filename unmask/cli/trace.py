"""The command trace: how a sample came about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from unmask.cli.inputs import pictures_and_text, read_picture
from unmask.cli.options import Run, model_options, steps_option
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import news, print_json, table

_TASKS = ("generate", "ask", "edit", "infill")
_WITH_PICTURE = ("ask", "edit")


@click.command(cls=OrderedHelp, first=("out", "steps", "seed", "model"))
@click.argument("task", type=click.Choice(_TASKS))
@click.argument("words", metavar="[IMAGE] TEXT", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/trace"),
    show_default=True,
    metavar="DIR",
    help="Folder of trace.html and trace.json.",
)
@steps_option
@model_options
def trace(run: Run, task: str, words: tuple[str, ...], out: Path, steps: int | None) -> None:
    """Show how a sample came about: order, entropies and rewrites.

    Runs a task and writes trace.html, which shows every step, and trace.json with all numbers: when each token was unmasked, the entropy of
    the prediction that it was drawn from, how probable it was, and which tokens were written again. The sample is that of the same command
    without a trace, in one attempt. TASK is generate, ask, edit, or infill for the gaps [mask] in a text.

    \b
    Examples:
      unmask trace generate "two apples" --out runs/apples
      unmask trace ask apple.png "what colour is the apple?"
      unmask trace edit apple.png "make the background sand"
      unmask trace infill "a [mask] apple and a cat"
      unmask trace ask "Why is the sky blue?" --model LLaDA-8B-Instruct
    """
    from unmask.analysis import trace as analysis
    from unmask.analysis.trace_page import FIGURES, PAGE, write

    names, text = pictures_and_text(words, "prompt", "unmask trace")
    if len(names) > (task in _WITH_PICTURE):
        raise click.UsageError(
            f"{task} takes {'one picture' if task in _WITH_PICTURE else 'no picture'} here, got {len(names)}"
        )
    if task == "edit" and not names:
        raise click.UsageError("edit takes a picture and an instruction; name the picture first")
    picture = read_picture(names[0]) if names else None
    model = run.open_any("infill-text" if task == "infill" else task)
    found = analysis.trace(
        model, _call(task, picture, text, steps, run, reads=hasattr(model, "presets")), f"unmask trace {task}: {text}"
    )
    write(found, out)
    figures = found.to_json()
    if run.json:
        print_json({**figures, "page": str(out / PAGE), "figures": str(out / FIGURES)})
        return
    rows = [
        [str(number), part["kind"], str(len(part["steps"])), str(len(part["tokens"])), str(_rewritten(part))]
        for number, part in enumerate(figures["runs"], 1)
    ]
    click.echo(table(("run", "kind", "steps", "tokens", "written again"), rows))
    news(f"page: {out / PAGE}")


def _call(task: str, picture: Any, text: str, steps: int | None, run: Run, *, reads: bool) -> Callable[[Any], Any]:
    """The call of a model. ``reads``: it takes a picture with its question, which may be None."""
    more: dict[str, Any] = {"seed": run.seed, "settings": run.settings, "steps": steps}
    given = {name: value for name, value in more.items() if value}
    if task == "generate":
        return lambda model: model.generate(text, attempts=1, **given)
    if task == "edit":
        return lambda model: model.edit(picture, text, **given)
    if task == "infill":
        return lambda model: model.infill_text(text, **given)
    about = (picture, text) if reads else (text,)
    return lambda model: model.ask(*about, **given)


def _rewritten(part: Any) -> int:
    return sum(token["rewrites"] for token in part["tokens"])
