"""The options of commands that say how a model samples. Public ideas: ``sampler_option``, ``schedule_option``,
``cache_option``, ``speed_option``, ``quirks_option``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from unmask.cli import completion

if TYPE_CHECKING:
    from unmask.sampling.sampler import Sampler

sampler_option = click.option(
    "--sampler",
    metavar="NAME",
    shell_complete=completion.samplers,
    help="Sample with this method; -o NAME=VALUE sets its arguments. `unmask methods` lists them.",
)
schedule_option = click.option(
    "--schedule",
    metavar="NAME",
    shell_complete=completion.schedules,
    help=f"How many tokens each step unmasks: {', '.join(completion.SCHEDULES)}; shift:shift=0.33 unmasks many early.",
)
cache_option = click.option(
    "--cache",
    metavar="NAME",
    shell_complete=completion.caches,
    help=f"Which keys and values are kept between steps: {', '.join(completion.CACHES)}.",
)
quirks_option = click.option(
    "--quirks",
    default="usual",
    type=click.Choice(["usual", "released", "none"]),
    help="Deviations of a family's released scripts (docs/models.md).",
)
speed_option = click.option(
    "--speed",
    metavar="SPEED",
    default="exact",
    show_default=True,
    shell_complete=completion.speeds,
    help=f"exact, fast (approximate), or parts of fast: {', '.join(completion.SPEED_PARTS)}; PART=VALUE sets one.",
)


def named_sampler(
    name: str | None, settings: tuple[str, ...]
) -> tuple[Callable[[Sampler], Sampler] | None, tuple[str, ...]]:
    """The change that --sampler stands for, and the settings that are not its arguments. ValueError for an unknown name."""
    if name is None:
        return None, settings
    from unmask.pipeline.catalogue import find_sampler

    change, rest = find_sampler(name, settings)
    return change, tuple(rest)


def changed_sampler(
    name: str | None, schedule: str | None, cache: str | None, settings: tuple[str, ...]
) -> tuple[Callable[[Sampler], Sampler] | None, tuple[str, ...]]:
    """As ``named_sampler``, with --schedule and --cache, which apply after it. ValueError for an unknown name."""
    change, settings = named_sampler(name, settings)
    if schedule is None and cache is None:
        return change, settings
    from unmask.evaluation.sampler_axes import named_change
    from unmask.pipeline.catalogue import Changes

    more = named_change(schedule, cache)
    return Changes(parts=(change, more) if change else (more,)), settings
