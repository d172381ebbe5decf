"""The program ``unmask``: the table of commands, and error messages.

Public idea: ``main(arguments) -> exit code``. Only the chosen command is imported, and torch only when it runs. Data goes to stdout,
messages to stderr. A user error prints two lines, ``error:`` and ``hint:``, and exits with code 2.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import click

from unmask import __version__
from unmask.cli.completion import completion_option, words_to_complete

# name -> (module with a click command of this name, first line of its help)
TABLE: dict[str, tuple[str, str]] = {
    "generate": ("unmask.cli.draw", "Generate pictures from a prompt."),
    "ask": ("unmask.cli.look", "Answer a question about pictures."),
    "ground": ("unmask.cli.look", "Find objects in pictures and draw boxes around them."),
    "edit": ("unmask.cli.draw", "Edit pictures by an instruction."),
    "chat": ("unmask.cli.chat", "Chat with a model in words and pictures."),
    "infill": ("unmask.cli.draw", "Fill a region of a picture, or the gaps in a text."),
    "batch": ("unmask.cli.batch", "Run a file of requests, one per line."),
    "serve": ("unmask.cli.serve", "Serve a model over HTTP, with a web page."),
    "mcp": ("unmask.cli.mcp", "Serve a model to assistants over the Model Context Protocol."),
    "data": ("unmask.cli.data", "Check your own data, and encode its pictures for training."),
    "train": ("unmask.cli.train", "Train with a recipe, or resume a run."),
    "rollout": ("unmask.cli.rollout", "Sample groups of answers to the prompts of a file, for reinforcement."),
    "methods": ("unmask.cli.methods", "List the published methods, show one, or run its demonstration."),
    "explain": ("unmask.cli.explain", "Show what the words of a prompt tell about a picture."),
    "trace": ("unmask.cli.trace", "Show how a sample came about: order, entropies and rewrites."),
    "probe": ("unmask.cli.probe", "Search for prompts on which a model fails."),
    "evaluate": ("unmask.cli.measure", "Measure the quality of a model."),
    "bench": ("unmask.cli.measure", "Compare samplers, or run a benchmark script of the source tree."),
    "inspect": ("unmask.cli.parts", "List a model's parts, parameters and bytes, or the memory that training needs."),
    "convert": (
        "unmask.cli.weights",
        "Convert a model to the released layout, or back; or pickles of weights to safetensors.",
    ),
    "quantise": ("unmask.cli.quantise", "Write a model with its transformer's matrices in 2 to 8 bits."),
    "merge": ("unmask.cli.weights", "Write a model with LoRA adapters merged into its weights."),
    "verify": ("unmask.cli.weights", "Recompute measured values and report the differences."),
    "doctor": ("unmask.cli.doctor", "Show versions and devices, and test the embedded model."),
    "world": ("unmask.cli.world", "Show the synthetic world that models are trained on."),
    "demo": ("unmask.cli.demo", "Show everything a model can do on one sheet."),
}

_NOT_ON_DEVICE = re.compile(
    r"\bMPS\b|CUDA error|NVIDIA driver|CUDA driver"
)  # what torch says of a device that cannot do it
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
    settings = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
    group = click.Group("unmask", help=_HELP, invoke_without_command=True, context_settings=settings, callback=_greet)
    click.version_option(__version__, "-V", "--version", prog_name="unmask")(group)
    group.params.append(click.Option(["--traceback"], is_flag=True, help="Show the traceback of an error."))
    group.params.append(completion_option)
    words = [*arguments, *words_to_complete()]
    for name, (module, summary) in TABLE.items():
        chosen = name in words
        group.add_command(getattr(import_module(module), name) if chosen else click.Command(name, help=summary))
    return group


def _greet(traceback: bool) -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Exit codes: 0 success, 1 a check failed, 2 user error, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"  # one line, without our source
    # Read when torch is imported, which comes later. Threads that spin while they wait cost much on a busy machine (docs/operate.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    loud, given = "--traceback" in given, _without_traceback(given)
    try:
        code = program(given).main(given, prog_name="unmask", standalone_mode=False)
        if sys.stdout is not None:  # closed: unmask … >&-
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout is gone (``| head``); without this Python prints another error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _message(error, given)
        if message is None or loud:
            raise
        print(f"error: {message[0]}\nhint: {message[1]}", file=sys.stderr)
        return 2


def _without_traceback(given: list[str]) -> list[str]:
    """The arguments without --traceback, which may stand anywhere before ``--``."""
    end = given.index("--") if "--" in given else len(given)
    return [word for i, word in enumerate(given) if word != "--traceback" or i > end]


def _message(error: Exception, given: Sequence[str]) -> tuple[str, str] | None:
    """(error, hint), one line each; None for a bug in unmask, which shows its traceback."""
    command = next((f"unmask {a}" for a in given if a in TABLE), "unmask")
    if isinstance(error, click.UsageError):
        return _usage_message(error, given)
    if isinstance(error, click.ClickException):
        return _split(error.format_message(), f"see `{command} --help`")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "unmask").startswith("unmask"):
        return f"the package {error.name!r} is not installed", f"pip install {error.name}"
    if isinstance(error, OSError):
        return _file_message(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "out of memory", "use a smaller n, --max-tokens or model, or --dtype, --quantise or --offload"
    if isinstance(error, RuntimeError | TypeError) and _NOT_ON_DEVICE.search(str(error)):
        return _line(str(error))[:200], "use --device cpu, or update PyTorch and the driver of the device"
    if isinstance(error, ValueError):
        return _split(str(error), f"see `{command} --help`")
    return None


def _usage_message(error: click.UsageError, given: Sequence[str]) -> tuple[str, str]:
    """The hint for a word that has no quotes, or that starts with a dash; otherwise an example of the command."""
    said, place = _line(error.format_message()), error.ctx.command_path if error.ctx else "unmask"
    example = _example(error.ctx.command) if error.ctx else ""
    if isinstance(error, click.exceptions.NoSuchCommand):
        return _line(error.message), _instead_of(error, place)
    dashed = next((word for word in given if word.startswith("-") and " " in word), "")
    if isinstance(error, click.NoSuchOption) and dashed.startswith(error.option_name):
        return said, f'put -- before a text that starts with a dash: {place} -- "{dashed}"'
    if said.startswith("Got unexpected extra argument"):
        return said, f"put a text with spaces in quotes, for example: {example or place}"
    if isinstance(error, click.MissingParameter) and example:
        return said, f"for example: {example}; see `{place} --help`"
    return said, f"see `{place} --help`"


def _example(command: click.Command) -> str:
    """The first example of a command's help."""
    _, _, after = (command.help or "").partition("Examples:\n")
    return after.strip().partition("\n")[0]


def _instead_of(error: click.exceptions.NoSuchCommand, place: str) -> str:
    """What somebody may have wanted who typed ``unmask dog.png``, ``unmask "a red apple"``, ``unmask gen`` or ``unmask generat``."""
    name = error.command_name
    if place == "unmask" and os.path.isfile(name):
        return f'name a command first, for example: unmask ask {shlex.quote(name)} "what is it?"'
    if place == "unmask" and " " in name:
        return f'name a command first, for example: unmask generate "{name}"'
    begun = [known for known in TABLE if name and known.startswith(name.lower())] if place == "unmask" else []
    near = begun or error.possibilities or []
    return f"did you mean {' or '.join(near)}?" if near else f"see `{place} --help`"


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
