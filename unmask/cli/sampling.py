"""The options of commands that say how a model samples. Public ideas: ``sampler_option``, ``guide_option``, ``schedule_option``,
``cache_option``, ``speed_option``, ``quirks_option``, ``context_option``.
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
energy_option = click.option(
    "--energy",
    metavar="FOLDER",
    help="The network whose energy --sampler edlm picks candidates by (docs/decoding/edlm.md).",
)


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """N or N:TRAINED. BadParameter for anything else."""
    if text is None:
        return None
    numbers = text.split(":")
    if len(numbers) > 2 or not all(n.isascii() and n.isdecimal() and 0 < int(n) <= 2**24 for n in numbers):
        raise click.BadParameter(
            f"{text[:50]!r} is not N or N:TRAINED, numbers of tokens; for example 8192 or 8192:4096", context, option
        )
    return int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0


context_option = click.option(
    "--context",
    metavar="N[:TRAINED]",
    callback=_lengths,
    help="Longest sequence in tokens; scales the rotary positions of a model trained with fewer.",
)
guide_option = click.option(
    "--guide-model",
    "guide",
    metavar="FOLDER",
    default="",
    help="A small causal model with the same tokenizer that accepts drafts of a text model; -o k=2, ratio=0.5, chunk=32.",
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


def guide_settings(settings: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The settings of --guide-model, and all others, which are fields of the sampler and have a dot."""
    own = tuple(setting for setting in settings if "." not in setting.partition("=")[0])
    return own, tuple(setting for setting in settings if setting not in own)


def named_sampler(
    name: str | None, settings: tuple[str, ...]
) -> tuple[Callable[[Sampler], Sampler] | None, tuple[str, ...]]:
    """The change that --sampler stands for, and the settings that are not its arguments. ValueError for an unknown name."""
    if name is None:
        return None, settings
    from unmask.pipeline.catalogue import find_sampler

    change, rest = find_sampler(name, settings)
    return change, tuple(rest)


def with_energy(name: str | None, energy: str | None, settings: tuple[str, ...]) -> tuple[str, ...]:
    """The settings with --energy, an argument of --sampler. UsageError without a sampler that has it."""
    if energy is None:
        return settings
    from unmask.pipeline.catalogue import samplers

    known = [name for name, entry in samplers().items() if "energy" in entry.arguments]
    if name not in known:
        raise click.UsageError(f"--energy is for --sampler {' or '.join(known)}; add it, or leave --energy out")
    return (*settings, f"energy={energy}")


def changed_sampler(
    name: str | None, schedule: str | None, cache: str | None, settings: tuple[str, ...]
) -> tuple[Callable[[Sampler], Sampler] | None, tuple[str, ...]]:
    """As ``named_sampler``, with --schedule and --cache, which apply after it. ValueError for an unknown name."""
    if schedule is None and cache is None:
        return named_sampler(name, settings)
    from unmask.evaluation.sampler_axes import sampler_change

    change, rest = sampler_change(name, schedule, cache, settings)
    return change, tuple(rest)
