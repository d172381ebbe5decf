"""The program ``unmask``: one table of commands, and how a mistake is told.

Public idea: ``main(arguments) -> exit code``. Only the command that is asked for is imported, torch only once it runs.
Data goes to stdout, the rest to stderr; a user's mistake is two lines, ``error:`` and ``hint:``, and exit code 2.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from unmask import __version__

# name -> (module that holds a click command of this name, what it does: the first line of the command's own help)
TABLE: dict[str, tuple[str, str]] = {
    "generate": ("unmask.cli.draw", "Draw pictures from a prompt."),
    "ask": ("unmask.cli.look", "Answer a question about a picture."),
    "ground": ("unmask.cli.look", "Find things in a picture and draw boxes round them."),
    "edit": ("unmask.cli.draw", "Change a picture as an instruction says."),
    "chat": ("unmask.cli.chat", "Talk with a model in words and pictures."),
    "infill": ("unmask.cli.draw", "Fill a region of a picture, or the gaps of a text."),
    "batch": ("unmask.cli.batch", "Work off a file of requests, one a line."),
    "serve": ("unmask.cli.serve", "Serve a model over HTTP, with a page to watch it at work."),
    "train": ("unmask.cli.train", "Train by a recipe, or go on with a run."),
    "evaluate": ("unmask.cli.measure", "Measure how good a model is."),
    "bench": ("unmask.cli.measure", "Run one of the benchmarks of the source tree."),
    "inspect": ("unmask.cli.parts", "List a model's parts, parameters and bytes."),
    "convert": ("unmask.cli.weights", "Bring a model into the released layout, or back into ours."),
    "verify": ("unmask.cli.weights", "Compute measured figures anew and print the differences."),
    "world": ("unmask.cli.world", "Look at the small world that models are trained on."),
    "demo": ("unmask.cli.demo", "Show on one sheet all that a model does."),
}

_NO_MEMORY = re.compile("out of memory|not enough memory|allocate memory")  # what torch says on a GPU, and on a CPU
_HELP = """Unified multimodal masked diffusion: draw, answer, find and edit with one model.

\b
Examples:
  unmask generate "two red apples left of a cat" --out apples.png
  unmask ask apples.png "how many apples are there?"
  unmask ground apples.png "the cat" --out boxes.png
  unmask edit apples.png "make the cat blue" --out edited.png
"""


def program(arguments: Sequence[str]) -> click.Group:
    """The group of all commands; those that no argument names are only their line in the help."""
    group = click.Group(
        "unmask", help=_HELP, invoke_without_command=True, context_settings={"max_content_width": 100}, callback=_greet
    )
    click.version_option(__version__, prog_name="unmask")(group)
    group.params.append(click.Option(["--traceback"], is_flag=True, help="Show where an error came from."))
    for name, (module, summary) in TABLE.items():
        wanted = name in arguments
        group.add_command(getattr(import_module(module), name) if wanted else click.Command(name, help=summary))
    return group


def _greet(traceback: bool) -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program: 0 all is well, 1 a check failed, 2 the user's mistake, 130 stopped by the user."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = program(given).main(given, prog_name="unmask", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read stdout has gone (``| head``); Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = _told(error, next((f"unmask {a}" for a in given if a in TABLE), "unmask"))
        if told is None or "--traceback" in given:
            raise
        print(f"error: {told[0]}\nhint: {told[1]}", file=sys.stderr)
        return 2


def _told(error: Exception, command: str) -> tuple[str, str] | None:
    """(what is wrong, what to do about it), a line each; None for a defect of ours, which shows its traceback."""
    if isinstance(error, click.UsageError):
        place = error.ctx.command_path if error.ctx else "unmask"
        return _line(error.format_message()), f"see `{place} --help`"
    if isinstance(error, click.ClickException):
        return _split(error.format_message(), f"see `{command} --help`")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "unmask").startswith("unmask"):
        return f"this needs the package {error.name!r}, which is not installed", f"pip install {error.name}"
    if isinstance(error, OSError):
        return _told_of_files(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "there is not enough memory for this", "ask for less at once, or take a smaller picture or model"
    if isinstance(error, ValueError):
        return _split(str(error), f"see `{command} --help`")
    return None


def _told_of_files(error: OSError) -> tuple[str, str]:
    if error.errno is None or not error.strerror:
        return _split(str(error), "check the path, its permissions and the space on the disk")
    place = f": {error.filename}" if error.filename else ""
    hint = "free some space and run it again" if error.errno == errno.ENOSPC else "check the path and its permissions"
    return f"{error.strerror.lower()}{place}", hint


def _split(message: str, otherwise: str) -> tuple[str, str]:
    """Our errors say ``what is wrong; what to do``. Messages of others get the hint ``otherwise``."""
    what, separator, hint = _line(message).rpartition("; ")
    return (what, hint) if separator else (hint, otherwise)


def _line(message: str) -> str:
    return " ".join(message.split()) or "something went wrong"


if __name__ == "__main__":
    sys.exit(main())
