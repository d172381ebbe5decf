"""Options that several commands share.

Public idea: a command decorated with ``model_options`` receives a ``Run``, which loads the model.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.opened import guided, refuse_settings
from unmask.cli.output import STDOUT, refuse_unwritable
from unmask.cli.progress import opening, watched
from unmask.cli.sampling import (
    cache_option,
    changed_sampler,
    context_option,
    energy_option,
    guide_option,
    guide_settings,
    quirks_option,
    sampler_option,
    schedule_option,
    speed_option,
    with_energy,
)

if TYPE_CHECKING:
    from unmask.checkpoints.elastic import WeightStorage
    from unmask.pipeline.context import Context
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.sampling.sampler import Sampler

Command = Callable[..., object]  # an int that it returns is the exit code
_SAID = {"plan": "generate", "reflect": "generate", "all": "draw and find objects"}  # tasks in an error
DTYPES = ("float32", "bfloat16", "float16")  # as torch calls them
_TYPES = "float32, bfloat16 or float16"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """--dtype, --quantise and --offload as typed; ``value`` makes a ``checkpoints.elastic.WeightStorage`` of them.

    ``verify``: without --no-checksums · ``graphs``: without --no-graphs; neither changes a result · ``context``: (tokens, those of the
    training or 0) of --context.
    """

    dtype: str | None
    quantise: tuple[str, ...]
    offload: tuple[str, ...]
    verify: bool = field(default=True, repr=False)
    graphs: bool = field(default=True, repr=False)
    context: tuple[int, int] | None = field(default=None, repr=False)

    def longest(self) -> Context | None:
        """--context as ``unmask.load`` takes it. ValueError for numbers that are out of range."""
        from unmask.pipeline.context import Context

        return None if self.context is None else Context(tokens=self.context[0], trained=self.context[1])

    def value(self) -> WeightStorage:
        """The storage. ValueError for a --quantise that is not BRANCH=int8, BRANCH=int4 or BRANCH=float8."""
        import torch

        from unmask.checkpoints.elastic import WeightStorage
        from unmask.checkpoints.float8 import Float8
        from unmask.checkpoints.quantise import Quantiser, RoundToNearest

        known: dict[str, Quantiser] = {"int8": RoundToNearest(bits=8), "int4": RoundToNearest(bits=4)}
        known["float8"] = Float8()
        quantise = {}
        for word in self.quantise:
            branch, _, kind = word.partition("=")
            if kind not in known:
                raise ValueError(
                    f"--quantise {word!r} is not BRANCH=BITS; use und or gen with int8, int4 or float8, for example und=int8"
                )
            quantise[branch] = known[kind]
        dtype = getattr(torch, self.dtype) if self.dtype else None
        return WeightStorage(dtype=dtype, quantise=quantise, offload=frozenset(self.offload))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which model with which adapters, on which device, with which seed and sampler settings, and whether to print JSON."""

    model: str
    device: str
    threads: int | None
    seed: int
    settings: tuple[str, ...]
    json: bool
    storage: Storage
    download: bool
    sampler: Callable[[Sampler], Sampler] | None
    quiet: bool
    lora: tuple[str, ...] = ()
    speed: str = "exact"
    quirks: str = "usual"
    guide: str = ""
    guide_settings: tuple[str, ...] = ()

    def reads_pictures(self) -> bool | None:
        """Whether the model answers questions about pictures alone, from its config.json; None where that does not say, or it answers both
        those and others.
        """
        from unmask.pipeline.loading import Format, format_in, resolve
        from unmask.pipeline.recipe_models import recipe_in

        folder = resolve(self.model, download=self.download)
        found = format_in(folder)
        return (
            None if recipe_in(folder) or found in (Format.MMADA, Format.DIMOO, Format.LLADA2_UNI) else not found.is_text
        )

    def open(self, task: str) -> Model:
        """The model, with the parts that a task needs loaded. UsageError for a text model."""
        model = self.open_any(task)
        from unmask.pipeline.model import Model

        if not isinstance(model, Model):
            what = _SAID.get(task, task.partition("-")[0])
            raise click.UsageError(f"{self.model} is a text model, which cannot {what}; see ask and infill")
        return model

    def open_any(self, task: str) -> Model | TextModel:
        """As ``open``, for tasks that text models have, too. The settings are checked before any weights are read."""
        from unmask.pipeline.loading import needs_of
        from unmask.pipeline.model import Model

        model = self.load()
        if isinstance(model, Model):
            refuse_settings(model, task, self.settings)
            model.parts.require(needs_of(task))
        shown = not self.quiet and (sys.stderr.isatty() or not self.json)
        return watched(model, lines=not self.json) if shown else model

    def load(self) -> Model | TextModel:
        """The model as ``unmask.load`` gives it, with --sampler and --speed. Its parts are loaded when a task needs them."""
        import unmask

        use_threads(self.threads)
        model = unmask.load(
            self.model,
            device=self.device,
            needs=(),
            storage=self.storage.value(),
            lora=self.lora,
            speed=self.speed,
            quirks=self.quirks,
            context=self.storage.longest(),
            download=self.download,
            on_bytes=opening(self.model, quiet=self.quiet, lines=not self.json),
            verify=self.storage.verify,
            graphs=self.storage.graphs,
        )
        model = model.with_sampler(self.sampler) if self.sampler else model
        return guided(model, self) if self.guide else model


def model_options(command: Command) -> Command:
    """Add the options of ``Run`` and pass it as the first argument."""

    @functools.wraps(command)
    def wrapped(
        model: str,
        device: str,
        threads: int | None,
        seed: int,
        settings: tuple[str, ...],
        as_json: bool,
        storage: Storage,
        download: bool,
        sampler: str | None,
        schedule: str | None,
        cache: str | None,
        energy: str | None,
        quiet: bool,
        lora: tuple[str, ...],
        speed: str,
        quirks: str,
        guide: str,
        **own: object,
    ) -> object:
        if guide and sampler:
            raise click.UsageError("--guide-model unmasks in its own order; leave out --sampler")
        for_guide, settings = guide_settings(settings) if guide else ((), settings)
        change, settings = changed_sampler(sampler, schedule, cache, with_energy(sampler, energy, settings))
        run = Run(
            model=model,
            device=device,
            threads=threads,
            seed=seed,
            settings=settings,
            json=as_json,
            storage=storage,
            download=download,
            sampler=change,
            quiet=quiet,
            lora=lora,
            speed=speed,
            quirks=quirks,
            guide=guide,
            guide_settings=for_guide,
        )
        return command(run, **own)

    options = (
        model_option,
        lora_option,
        seed_option,
        speed_option,
        quirks_option,
        sampler_option,
        guide_option,
        schedule_option,
        cache_option,
        energy_option,
        setting_option("Set any other field of the sampler, such as schedule.shift=3; repeatable."),
        json_option,
        device_option,
        threads_option,
        loading_options,
        download_option,
        quiet_option,
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def storage_options(command: Command) -> Command:
    """Add --dtype, --quantise and --offload, passed together as ``storage``."""

    @functools.wraps(command)
    def wrapped(
        dtype: str | None,
        quantise: tuple[str, ...],
        offload: tuple[str, ...],
        unverified: bool = False,
        no_graphs: bool = False,
        context: tuple[int, int] | None = None,
        **own: object,
    ) -> object:
        given = {"dtype": dtype, "quantise": quantise, "offload": offload, "context": context}
        storage = Storage(**given, verify=not unverified, graphs=not no_graphs)
        return command(storage=storage, **own)

    branch = click.Choice(("und", "gen"))
    options = (
        click.option("--dtype", metavar="TYPE", type=click.Choice(DTYPES), help=f"Data type of the network: {_TYPES}."),
        click.option(
            "--quantise",
            metavar="BRANCH=BITS",
            multiple=True,
            help="Quantise a branch: und=int8, gen=int4 …; repeatable.",
        ),
        click.option("--offload", type=branch, multiple=True, help="Offload this branch to CPU memory; repeatable."),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def loading_options(command: Command) -> Command:
    """``storage_options``, --context, --no-checksums and --no-graphs, for commands that run a model."""
    text = "Do not compare weight files with their SHA-256 in config.json."
    unverified = click.option("--no-checksums", "unverified", is_flag=True, help=text)
    single = click.option("--no-graphs", is_flag=True, help="Do not run layers as CUDA graphs. Results are the same.")
    return context_option(single(unverified(storage_options(command))))


model_option = click.option(
    "--model",
    default="mini",
    show_default=True,
    shell_complete=completion.models,
    help="A shipped model, a model folder, or owner/name on the hub.",
)
lora_option = click.option(
    "--lora",
    metavar="FOLDER[:SCALE]",
    multiple=True,
    help="Apply the LoRA adapter in this folder; repeatable, several add up.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr.")
steps_option = click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Unmasking steps.  [default: the model's preset]"
)
guidance_option = click.option(
    "--guidance", type=float, metavar="SCALE", help="Guidance scale; 0 turns it off.  [default: the model's preset]"
)
temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    metavar="T",
    help="Sampling temperature; 0 is greedy.  [default: the model's preset]",
)
max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of tokens in the answer.  [default: the model's preset]",
)
top_p_option = click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Sample from the most probable tokens that have this probability together.  [default: 1, all tokens]",
)
stop_option = click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before this text; repeatable.")
download_option = click.option("--download", is_flag=True, help="Download a hub model that is not in the local cache.")
seed_option = click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Random seed; the same seed gives the same result.",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=completion.devices,
    help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps …",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads_option = click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")


def setting_option(text: str) -> Callable[[Command], Command]:
    """``-o key=value``, repeatable."""
    return click.option("-o", "settings", metavar="KEY=VALUE", multiple=True, callback=_look_like_settings, help=text)


def _look_like_settings(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", context, option)
    return values


def path_option(
    flag: str, endings: tuple[str, ...], text: str, default: str | None = None
) -> Callable[[Command], Command]:
    """An output file; its extension and its folder are checked before any work starts. A folder gets the default name.

    ``-`` is stdout, for options that take pictures.
    """

    def check(context: click.Context, option: click.Parameter, given: str | None) -> Path | None:
        if given is None or (given == str(STDOUT) and flag == "--out"):
            return None if given is None else STDOUT
        value = Path(given)
        if default and (value.is_dir() or given.endswith(("/", os.sep))):
            value = value / default
        if value.suffix.lower() not in endings:
            such = value.with_suffix(endings[0]) if value.name else endings[0]
            raise click.BadParameter(
                f"{given!r} must end in {' or '.join(endings)}, for example {such}", context, option
            )
        refuse_unwritable(value)
        return value

    return click.option(
        flag,
        type=click.Path(),
        default=default,
        show_default=default is not None,
        callback=check,
        help=text,
    )


def found_device(device: str) -> str:
    """The device that --device names, with ``auto`` resolved. DeviceUnavailable (a ValueError) for one that is not here."""
    from unmask.checkpoints.device import find_device

    return find_device(device)


def use_threads(threads: int | None) -> None:
    """Limit torch's threads, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
