"""Completion in bash, zsh and fish. Public idea: ``completion_option`` prints the script that a shell reads.

Commands and options are completed by click; the functions here add the names of models, recipes, methods, speeds and devices. No torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import get_completion_class

VARIABLE = "_UNMASK_COMPLETE"  # the shell's script sets it, as click's completion wants
_ASSETS = Path(__file__).parents[1] / "assets"
SPEED_PARTS = (
    "interval",
    "refresh",
    "steps",
    "shift",
    "threshold",
    "cache",
)  # as tasks.speeds.parts(), which needs torch
SCHEDULES = ("equal", "cosine", "shift", "half_cosine", "logit_normal", "reverse_time")  # of evaluation.sampler_axes
CACHES = ("none", "prefix", "cropped", "block", "prompt", "free")  # as above


def words_to_complete() -> list[str]:
    """The words of the command line that a shell is completing; empty in any other call."""
    if VARIABLE not in os.environ:
        return []
    line = os.environ.get("COMP_WORDS", "")
    try:
        return shlex.split(line)
    except ValueError:  # an open quotation mark
        return line.split()


def _print_script(context: click.Context, option: click.Parameter, shell: str | None) -> None:
    if shell is None:
        return
    kind = get_completion_class(shell)
    assert kind is not None, "the choices of the option are shells that click has"
    click.echo(kind(context.command, {}, "unmask", VARIABLE).source())
    context.exit()


completion_option = click.Option(
    ["--completion"],
    type=click.Choice(("bash", "zsh", "fish")),
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help='Print a completion script: eval "$(unmask --completion bash)".',
)


def models(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """Shipped models, and folders that hold a config.json or lead to one."""
    shipped = (p.parent.name for p in _ASSETS.glob("*/config.json"))
    place, _, _ = begun.rpartition("/")
    try:
        folders = [f for f in Path(place or ("/" if begun.startswith("/") else ".")).iterdir() if f.is_dir()]
    except OSError:
        folders = []
    found = (f"{f}" if (f / "config.json").exists() else f"{f}/" for f in folders if not f.name.startswith("."))
    return _starting([*shipped, *found], begun)


def recipes(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The recipes of ``unmask train``."""
    from unmask.cli.recipe_files import recipes as known

    return _starting(known(), begun)


def samplers(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The samplers of --sampler."""
    from unmask.pipeline.catalogue import samplers as known

    return _starting(known(), begun)


def schedules(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The schedules of --schedule."""
    return _starting(SCHEDULES, begun)


def caches(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The caches of --cache."""
    return _starting(CACHES, begun)


def speeds(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The words of --speed, where the last of a list is begun."""
    before, comma, last = begun.rpartition(",")
    return [f"{before}{comma}{word}" for word in _starting(("exact", "fast", *SPEED_PARTS), last)]


def methods(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The methods of ``unmask methods``."""
    from unmask.pipeline.catalogue import methods as known

    return _starting(known(), begun)


def devices(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The kinds of devices; which of them are here is known only with torch, which takes too long for a keystroke."""
    return _starting(("auto", "cpu", "cuda", "mps"), begun)


def _starting(names: Iterable[str], begun: str) -> list[str]:
    return sorted(name for name in names if name.startswith(begun))
