"""Several runs one after the other, within a given time. Public idea: ``run_chain(chain, folder, seconds=…, device=…)``.

Every stage gets a share of the time that is left. It saves its averaged weights in bfloat16 as it goes, in shards, and chain.json records
how far it is: the folder stays small enough to be carried away from a machine that is lent for minutes, and the chain continues elsewhere.
A finished chain that is given more time trains its last stage further.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.store import save_tensors
from unmask.recipe import Recipe
from unmask.training.clock import Clock
from unmask.training.device import choose
from unmask.training.meters import Log
from unmask.training.saving import lock
from unmask.training.states import CHAIN as FILE
from unmask.training.states import remove_leftovers
from unmask.training.train import train
from unmask.writing import write_text


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``share``: of the chain's time, relative to the other stages · ``file``: name of its checkpoints in the folder ·
    ``recipe(folder, resumed)``: the run; ``resumed``: its first weights are those of the checkpoint. The recipe's export writes into the
    folder that it was made for.
    """

    name: str
    share: float
    file: str
    recipe: Callable[[Path, bool], Recipe]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """``finish(folder, device, seconds)``: what is done when all stages are finished, in about that time · ``reserve``: the share of
    the time that is kept for it.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    finish: Callable[[Path, str, float], None]
    reserve: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Done:
    """How far a stage is: ``step``, ``seconds`` of all its parts, and ``share`` of its time, 1 when it is finished."""

    step: int = 0
    seconds: float = 0.0
    share: float = 0.0


def run_chain(
    chain: Chain,
    folder: Path,
    *,
    seconds: float,
    device: str = "auto",
    logs: Sequence[Callable[[Path, int], Log]] = (),
) -> None:
    """Run or continue a chain in ``folder`` for about ``seconds``. Its stages have metrics.jsonl in folders of their names.

    DeviceUnavailable for a device that is not there. RunInUse where another process trains in the folder. ValueError where it holds
    another chain or seed, or for a time that is not above 0. Stopped after Ctrl-C or SIGTERM, when the current step is finished and saved.
    """
    if not seconds > 0:
        raise ValueError(f"a chain needs a time above 0, got {seconds:g} seconds; give --minutes or --hours")
    choose(device)  # refuses one that is not there, before anything is made
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        remove_leftovers(folder)
        done = read(chain, folder)
        stages = [s for s in chain.stages if done[s.name].share < 1] or [chain.stages[-1]]
        for number, stage in enumerate(stages):
            left = begun + seconds * (1 - chain.reserve) - time.monotonic()
            own, *later = (max(s.share * (1 - done[s.name].share), 1e-6) for s in stages[number:])
            done[stage.name] = _run(chain, stage, folder, done, max(left * own / (own + sum(later)), 1.0), device, logs)
            _write(chain, folder, done)
        chain.finish(folder, device, begun + seconds - time.monotonic())


def _run(
    chain: Chain,
    stage: Stage,
    folder: Path,
    done: dict[str, Done],
    seconds: float,
    device: str,
    logs: Sequence[Callable[[Path, int], Log]],
) -> Done:
    """One stage for ``seconds``; returns how far it is then, which is finished."""
    before, began = done[stage.name], time.monotonic()

    def so_far(step: int, share: float) -> Done:
        return Done(step=step, seconds=round(before.seconds + time.monotonic() - began, 1), share=round(share, 4))

    def save(averaged: dict[str, Tensor], step: int, share: float) -> None:
        save_tensors(averaged, folder, name=stage.file, dtype=torch.bfloat16)
        _write(chain, folder, {**done, stage.name: so_far(step, min(share, 0.999))})
        last.append(step)

    last = [before.step]
    share = before.share if before.share < 1 else before.seconds / (before.seconds + seconds)
    clock = Clock(seconds=seconds, share=share, step=before.step, save=save)
    recipe = stage.recipe(folder, before.step > 0)
    settings = dataclasses.replace(recipe.training, device=device)
    train(dataclasses.replace(recipe, training=settings), folder / stage.name, clock=clock, logs=logs)
    return so_far(last[-1], 1.0)


def read(chain: Chain, folder: Path) -> dict[str, Done]:
    """How far every stage is. ValueError for a folder of another chain or seed, or a file that is damaged."""
    path = folder / FILE
    fresh = {stage.name: Done() for stage in chain.stages}
    if not path.exists():
        return fresh
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = {name: Done(**fields) for name, fields in raw["stages"].items()}
        about = raw["chain"], raw["seed"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}; choose another --out") from error
    if about != (chain.name, chain.seed) or set(found) != set(fresh):
        raise ValueError(
            f"{folder} holds a run of {about[0]!r} (seed {about[1]}), not of {chain.name!r} (seed {chain.seed}); "
            "choose another --out"
        )
    return found


def _write(chain: Chain, folder: Path, done: dict[str, Done]) -> None:
    """Record how far the stages are; after their weights are written."""
    stages = {name: dataclasses.asdict(fields) for name, fields in done.items()}
    value = {"chain": chain.name, "seed": chain.seed, "stages": stages}
    write_text(folder / FILE, json.dumps(value, indent=1) + "\n")
