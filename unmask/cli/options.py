"""Options that many commands share, as one value.

Public idea: a command decorated with ``model_options`` receives a ``Run``, which opens the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]  # what it returns, if anything, is the program's exit code
DTYPES = ("float32", "bfloat16", "float16")  # as torch calls them


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How weights shall be kept: the command line's words for ``checkpoints.elastic.WeightStorage``."""

    dtype: str | None
    quantise: tuple[str, ...]
    offload: tuple[str, ...]

    def keep(self) -> Any:
        """The value. ValueError for words that mean nothing."""
        import torch

        from unmask.checkpoints.elastic import WeightStorage

        bits = {}
        for word in self.quantise:
            branch, _, kind = word.partition("=")
            if kind not in ("int8", "int4"):
                raise ValueError(
                    f"--quantise {word!r} is not understood; write und=int8, gen=int8, und=int4 or gen=int4"
                )
            bits[branch] = int(kind[3:])
        return WeightStorage(
            dtype=getattr(torch, self.dtype) if self.dtype else None, bits=bits, offload=frozenset(self.offload)
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked for: which model, where, with which seed and sampler settings, and whether to answer in JSON."""

    model: str
    device: str
    threads: int | None
    seed: int
    settings: tuple[str, ...]
    json: bool
    storage: Storage
    download: bool

    def open(self, task: str) -> Any:
        """The model with what a task needs, ready to be asked (``unmask.load``)."""
        import unmask
        from unmask.pipeline.loading import needs_of

        use_threads(self.threads)
        check_device(self.device)
        return unmask.load(
            self.model,
            device=self.device,
            needs=needs_of(task),
            storage=self.storage.keep(),
            download=self.download,
        )


def model_options(command: Command) -> Command:
    """Add the options of ``Run`` and hand it over as the first argument."""

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
        **own: Any,
    ) -> None:
        run = Run(
            model=model,
            device=device,
            threads=threads,
            seed=seed,
            settings=settings,
            json=as_json,
            storage=storage,
            download=download,
        )
        command(run, **own)

    options = (
        click.option(
            "--model", default="mini", show_default=True, help="A shipped model, a folder, or owner/name of the hub."
        ),
        seed_option,
        setting_option("Change a field of the sampler; may be repeated."),
        json_option,
        device_option,
        threads_option,
        storage_options,
        download_option,
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def storage_options(command: Command) -> Command:
    """Add --dtype, --quantise and --offload, handed over together as ``storage``."""

    @functools.wraps(command)
    def wrapped(dtype: str | None, quantise: tuple[str, ...], offload: tuple[str, ...], **own: Any) -> Any:
        return command(storage=Storage(dtype=dtype, quantise=quantise, offload=offload), **own)

    branch = click.Choice(("und", "gen"))
    options = (
        click.option(
            "--dtype",
            metavar="TYPE",
            type=click.Choice(DTYPES),
            help="Keep the network as float32, bfloat16 or float16.",
        ),
        click.option("--quantise", metavar="BRANCH=BITS", multiple=True, help="und=int8, gen=int4 …; may be repeated."),
        click.option("--offload", type=branch, multiple=True, help="Keep this branch in the computer's memory."),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


download_option = click.option("--download", is_flag=True, help="Fetch a model of the hub that is not here yet.")
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed gives the same answer."
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:0.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="Processor threads to use.")


def setting_option(text: str) -> Callable[[Command], Command]:
    """``-o key=value``, any number of times."""
    return click.option("-o", "settings", metavar="KEY=VALUE", multiple=True, callback=_look_like_settings, help=text)


def _look_like_settings(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} must look like key=value", context, option)
    return values


def path_option(
    flag: str, endings: tuple[str, ...], text: str, default: str | None = None
) -> Callable[[Command], Command]:
    """A file to write, whose ending is checked before any work is done."""

    def check(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in endings:
            raise click.BadParameter(f"{str(value)!r} must end in {' or '.join(endings)}", context, option)
        return value

    return click.option(
        flag,
        type=click.Path(path_type=Path),
        default=default,
        show_default=default is not None,
        callback=check,
        help=text,
    )


def use_threads(threads: int | None) -> None:
    """Bound torch's threads, where a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def check_device(device: str) -> None:
    """ValueError for a device that is no device or is not there."""
    if device == "cpu":
        return
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"{device!r} is not a device; use cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found; use --device cpu")
