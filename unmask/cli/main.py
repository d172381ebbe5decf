"""The program ``unmask``: the table of commands, and error messages.

Public idea: ``main(arguments) -> exit code``. Only the chosen command is imported, and torch only when it runs. Data goes to stdout,
messages to stderr. A user error prints two lines, ``error:`` and ``hint:``, and exits with code 2.
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

# name -> (module with a click command of this name, first line of its help)
TABLE: dict[str, tuple[str, str]] = {
    "generate": ("unmask.cli.draw", "Generate pictures from a prompt."),
    "ask": ("unmask.cli.look", "Answer a question about a picture."),
    "ground": ("unmask.cli.look", "Find objects in a picture and draw boxes around them."),
    "edit": ("unmask.cli.draw", "Edit a picture by an instruction."),
    "chat": ("unmask.cli.chat", "Chat with a model in words and pictures."),
    "infill": ("unmask.cli.draw", "Fill a region of a picture, or the gaps in a text."),
    "batch": ("unmask.cli.batch", "Run a file of requests, one per line."),
    "serve": ("unmask.cli.serve", "Serve a model over HTTP, with a web page."),
    "train": ("unmask.cli.train", "Train with a recipe, or resume a run."),
    "methods": ("unmask.cli.methods", "List the published methods and how to run them."),
    "evaluate": ("unmask.cli.measure", "Measure the quality of a model."),
    "bench": ("unmask.cli.measure", "Run a benchmark script of the source tree."),
    "inspect": ("unmask.cli.parts", "List a model's parts, parameters and bytes."),
    "convert": ("unmask.cli.weights", "Convert a model to the released layout, or back."),
    "verify": ("unmask.cli.weights", "Recompute measured values and report the differences."),
    "world": ("unmask.cli.world", "Show the synthetic world that models are trained on."),
    "demo": ("unmask.cli.demo", "Show everything a model can do on one sheet."),
}

_NO_MEMORY = re.compile("out of memory|not enough memory|allocate memory")  # what torch says on a GPU, and on a CPU
_HELP = """Unified multimodal masked diffusion: generate, answer, find and edit with one model.

\b
Examples:
  unmask generate "a red apple left of a cat" --out apple.png
  unmask ask apple.png "what is left of the cat?"
  unmask ground apple.png "the cat" --out boxes.png
  unmask edit apple.png "make the cat blue" --out edited.png
"""


def program(arguments: Sequence[str]) -> click.Group:
    """The group of all commands. Commands that no argument names are not imported; they have only their help line."""
    group = click.Group(
        "unmask", help=_HELP, invoke_without_command=True, context_settings={"max_content_width": 100}, callback=_greet
    )
    click.version_option(__version__, prog_name="unmask")(group)
    group.params.append(click.Option(["--traceback"], is_flag=True, help="Show the traceback of an error."))
    for name, (module, summary) in TABLE.items():
        chosen = name in arguments
        group.add_command(getattr(import_module(module), name) if chosen else click.Command(name, help=summary))
    return group


def _greet(traceback: bool) -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Exit codes: 0 success, 1 a check failed, 2 user error, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = program(given).main(given, prog_name="unmask", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout is gone (``| head``); without this Python prints another error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _message(error, next((f"unmask {a}" for a in given if a in TABLE), "unmask"))
        if message is None or "--traceback" in given:
            raise
        print(f"error: {message[0]}\nhint: {message[1]}", file=sys.stderr)
        return 2


def _message(error: Exception, command: str) -> tuple[str, str] | None:
    """(error, hint), one line each; None for a bug in unmask, which shows its traceback."""
    if isinstance(error, click.UsageError):
        place = error.ctx.command_path if error.ctx else "unmask"
        return _line(error.format_message()), f"see `{place} --help`"
    if isinstance(error, click.ClickException):
        return _split(error.format_message(), f"see `{command} --help`")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "unmask").startswith("unmask"):
        return f"the package {error.name!r} is not installed", f"pip install {error.name}"
    if isinstance(error, OSError):
        return _file_message(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "out of memory", "use a smaller n, --max-tokens or model, or --dtype, --quantise or --offload"
    if isinstance(error, ValueError):
        return _split(str(error), f"see `{command} --help`")
    return None


def _file_message(error: OSError) -> tuple[str, str]:
    if error.errno is None or not error.strerror:
        return _split(str(error), "check the path, its permissions and the free disk space")
    place = f": {error.filename}" if error.filename else ""
    hint = "free disk space and run it again" if error.errno == errno.ENOSPC else "check the path and its permissions"
    return f"{error.strerror.lower()}{place}", hint


def _split(message: str, otherwise: str) -> tuple[str, str]:
    """Our errors have the form ``error; hint``. Other messages get the hint ``otherwise``."""
    what, separator, hint = _line(message).rpartition("; ")
    return (what, hint) if separator else (hint, otherwise)


def _line(message: str) -> str:
    return " ".join(message.split()) or "unknown error"


if __name__ == "__main__":
    sys.exit(main())
