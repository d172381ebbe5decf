"""The options of commands that say how a model samples. Public ideas: ``sampler_option``, ``speed_option``, ``quirks_option``."""

from __future__ import annotations

import click

from unmask.cli import completion

sampler_option = click.option(
    "--sampler",
    metavar="NAME",
    shell_complete=completion.samplers,
    help="Sample with this method; -o NAME=VALUE sets its arguments. `unmask methods` lists them.",
)
quirks_option = click.option(
    "--quirks",
    default="usual",
    metavar="NAME",
    show_default=True,
    type=click.Choice(["usual", "released", "none"]),
    help="Deviations of a family's released scripts: usual, released or none (docs/models.md).",
)
speed_option = click.option(
    "--speed",
    metavar="SPEED",
    default="exact",
    show_default=True,
    shell_complete=completion.speeds,
    help=f"exact, fast (approximate), or parts of fast: {', '.join(completion.SPEED_PARTS)}; PART=VALUE sets one.",
)
