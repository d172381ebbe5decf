"""The command ``train`` for a chain or series of recipes, such as ``small.all`` and ``mini.all``: how long, where, how to continue."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import use_threads
from unmask.cli.output import news

if TYPE_CHECKING:
    from unmask.training.chain import Chain
    from unmask.training.series import Series

_DEVICE = "training.device="


def train_chain(
    chain: Chain,
    folder: Path,
    *,
    seconds: float,
    settings: Sequence[str],
    words: Sequence[str],
    processes: int,
    threads: int | None,
    log: str | None,
) -> None:
    """Run the chain. ``settings``: those that are no arguments of its function, of which only the device is known here · ``words``: of the
    command that continues it. ValueError for what a chain cannot do.
    """
    from unmask.training.chain import run_chain
    from unmask.training.stopping import Stopped
    from unmask.training.tensorboard import TensorBoard

    device = _device(chain.name, settings)
    if processes > 1:
        raise ValueError(f"{chain.name} trains in one process, got --processes {processes}; leave the option out")
    if not seconds:
        raise ValueError(f"{chain.name} is trained for a time; give --minutes or --hours, for example --minutes 13")
    use_threads(threads)
    try:
        run_chain(chain, folder, seconds=seconds, device=device, logs=[TensorBoard] if log else [])
    except Stopped as error:
        news(f"{error}; continue with: unmask train {shlex.join(words)}")
        raise


def train_series(
    series: Series,
    folder: Path,
    *,
    seconds: float,
    settings: Sequence[str],
    threads: int | None,
    log: str | None,
) -> bool:
    """Run or continue the series as this process, alone or one of several. Returns whether it prints the result. ValueError as of
    ``train_chain``.
    """
    device = _device(series.name, settings)
    from unmask.training.parallel import join
    from unmask.training.series import run_series
    from unmask.training.stopping import leaving, prints_result
    from unmask.training.tensorboard import TensorBoard

    use_threads(threads)
    place = join(device)
    logs = [TensorBoard] if log else []
    say = news if place.rank == 0 else lambda text: None
    with leaving(place):
        run_series(series, folder, seconds=seconds, device=device, place=place, logs=logs, say=say)
    return prints_result(place)


def _device(name: str, settings: Sequence[str]) -> str:
    """The device among settings of a chain or series; ValueError for any other setting."""
    others = [setting for setting in settings if not setting.startswith(_DEVICE)]
    if others:
        raise ValueError(
            f"setting {others[0]!r}: {name} is a chain and has no such argument; see the file of its recipe"
        )
    return [setting.removeprefix(_DEVICE) for setting in settings][-1] if settings else "auto"
