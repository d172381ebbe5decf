"""Several runs one after the other, in a given time of training over any number of sessions. Public idea: ``run_series(series, folder)``.

A run trains in the folder of its name for its share of the time, saves whole states, and continues from them at the same step; work between
the runs (drawing training data, an evaluation) is done by all processes and continues in its own way. chain.json records what is finished.
``chain`` is for one process on a machine that is lent for minutes: smaller checkpoints, and the time is that of one session.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from unmask.recipe import Recipe
from unmask.training.clock import Budget
from unmask.training.meters import Log
from unmask.training.parallel import Place
from unmask.training.saving import lock
from unmask.training.states import CHAIN as FILE
from unmask.training.train import train
from unmask.writing import write_text


@dataclass(frozen=True, kw_only=True)
class Run:
    """``share``: of the series' time, relative to the other runs · ``recipe(folder)``: with the folder of the series; what it exports lies
    in the folder of its name in there.
    """

    name: str
    share: float
    recipe: Callable[[Path], Recipe]


@dataclass(frozen=True, kw_only=True)
class Work:
    """``do(folder, place)``: by every process, with the folder of the series; it skips what it has done before. Its time is not counted."""

    name: str
    do: Callable[[Path, Place], None]


@dataclass(frozen=True, kw_only=True)
class Series:
    """``parts`` in order. ``hours``: of training, unless told otherwise."""

    name: str
    seed: int
    parts: tuple[Run | Work, ...]
    hours: float

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"the parts of a series must have different names, got {', '.join(names)}; rename one")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """``seconds``: the time of the whole series · ``done``: names of finished parts."""

    seconds: float
    done: tuple[str, ...] = ()


def run_series(
    series: Series,
    folder: Path,
    *,
    seconds: float = 0.0,
    device: str = "auto",
    place: Place = Place(),
    logs: Sequence[Callable[[Path, int], Log]] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run or continue a series in ``folder``. ``seconds``: of training in all, 0 for what was given before, or else ``series.hours``; runs
    that are finished stay as they are · ``say``: takes a line as each part begins.

    RunInUse where another process trains in the folder. ValueError where it holds another series or seed. Stopped after Ctrl-C or SIGTERM,
    when the current step is finished and saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) if place.rank == 0 else nullcontext():
        before = read(series, folder)
        place.gather([None])  # all have read before the first writes
        given = seconds or (before.seconds if before else 3600 * series.hours)
        progress = Progress(seconds=given, done=before.done if before else ())
        _write(series, folder, progress, place)
        whole = sum(part.share for part in series.parts if isinstance(part, Run))
        for number, part in enumerate(series.parts, 1):
            if part.name in progress.done:
                continue
            say(f"part {number} of {len(series.parts)}: {part.name}")
            if isinstance(part, Run):
                _train(part, folder, given * part.share / whole, device, place, logs)
            else:
                part.do(folder, place)
            place.gather([None])  # the first process has exported
            progress = dataclasses.replace(progress, done=(*progress.done, part.name))
            _write(series, folder, progress, place)


def _train(
    part: Run,
    folder: Path,
    seconds: float,
    device: str,
    place: Place,
    logs: Sequence[Callable[[Path, int], Log]],
) -> None:
    recipe = part.recipe(folder)
    settings = dataclasses.replace(recipe.training, device=device)
    recipe = dataclasses.replace(recipe, training=settings)
    train(recipe, folder / part.name, place=place, logs=logs, clock=Budget(seconds=seconds))


def read(series: Series, folder: Path) -> Progress | None:
    """What of the series is done; None for a new one. ValueError for a folder of another series or seed, or a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        about = raw["chain"], raw["seed"]
        found = Progress(seconds=float(raw["seconds"]), done=tuple(raw["done"])) if about[0] == series.name else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}; choose another --out") from error
    if found is None or about[1] != series.seed or not {*found.done} <= {part.name for part in series.parts}:
        raise ValueError(
            f"{folder} holds a run of {about[0]!r} (seed {about[1]}), not of {series.name!r} (seed {series.seed}); "
            "choose another --out"
        )
    return found


def _write(series: Series, folder: Path, progress: Progress, place: Place) -> None:
    if place.rank > 0:
        return
    fields = {"chain": series.name, "seed": series.seed, **dataclasses.asdict(progress)}
    text = json.dumps(fields, indent=1) + "\n"
    write_text(folder / FILE, text)
