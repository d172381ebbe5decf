"""The command ``train`` for a chain of recipes, such as ``small.all``: how long, where, and what is said of a chain that was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import use_threads
from unmask.cli.output import news

if TYPE_CHECKING:
    from unmask.training.chain import Chain

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

    others = [setting for setting in settings if not setting.startswith(_DEVICE)]
    if others:
        raise ValueError(
            f"setting {others[0]!r}: {chain.name} is a chain and has no such argument; see the file of its recipe"
        )
    if processes > 1:
        raise ValueError(f"{chain.name} trains in one process, got --processes {processes}; leave the option out")
    if not seconds:
        raise ValueError(f"{chain.name} is trained for a time; give --minutes or --hours, for example --minutes 13")
    device = [setting.removeprefix(_DEVICE) for setting in settings] or ["auto"]
    use_threads(threads)
    try:
        run_chain(chain, folder, seconds=seconds, device=device[-1], logs=[TensorBoard] if log else [])
    except Stopped as error:
        news(f"{error}; continue with: unmask train {shlex.join(words)}")
        raise
