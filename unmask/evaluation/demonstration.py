"""The demonstration of a published method: its own job on a small scale, beside a baseline at equal compute.

Public ideas: a recipe file has ``DEMO = Demonstration(minutes=4, run=function)`` with ``function(work: Work) -> Findings``;
``demonstrate(name, demonstration, work)`` runs it and writes report.html and figures.json.

A demonstration that was stopped goes on: ``work.once`` keeps what was measured, ``work.train`` continues a training run.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.evaluation.history import Line, commit
from unmask.evaluation.metrics import Figure
from unmask.json_types import Json
from unmask.writing import write_text

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from unmask.recipe import Recipe

SEEDS = (0, 1, 2)
_SETTINGS, FIGURES, PAGE = "settings.json", "figures.json", "report.html"
Cell = str | int | float | Figure


@dataclass(frozen=True, kw_only=True)
class Table:
    """``rows``: under ``head``, of text, numbers and figures, which show their interval."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.head)]:
            raise ValueError(f"{self.title}: a row has {len(wrong[0])} cells under {len(self.head)} headings")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """``lines``: name -> (x, y) in order of x; a y that is a figure shows its interval. ``log``: x on a logarithmic axis."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float | Figure]]]
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Media:
    """Pictures, animations and sound with captions. An item is a PIL image, or a GIF, PNG, SVG, WAV or MP4 file."""

    title: str
    items: tuple[tuple[str, Image.Image | Path], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a demonstration found.

    ``about``: what was compared, in a few sentences · ``verdict``: the result in one sentence · ``seen``: whether the method's effect lies
    outside the interval of the honest baseline · ``figures``: name -> figure, for figures.json and the history · ``shown``: tables, plots
    and media of the page, in order.
    """

    about: str
    verdict: str
    seen: bool
    figures: Mapping[str, Figure]
    shown: tuple[Table | Plot | Media, ...] = ()

    def __post_init__(self) -> None:
        for name in ("about", "verdict"):
            if not getattr(self, name).strip():
                raise ValueError(f"findings need a text {name!r}, got an empty one")
        if not self.figures:
            raise ValueError("findings need figures, got none; a demonstration measures something")
        for name, figure in self.figures.items():
            if "value" not in figure:
                raise ValueError(f'the figure {name!r} has no "value"; make it with a function of evaluation.metrics')


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where and how large a demonstration runs.

    ``share``: of the usual amount of work, which ``steps`` follows · ``seeds``: one run of everything that is trained for each ·
    ``on_progress(part, done, of)``: of loops that take long.
    """

    out: Path
    share: float = 1.0
    seeds: tuple[int, ...] = SEEDS
    on_progress: Callable[[str, int, int], None] = field(default=lambda part, done, of: None, compare=False)

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ValueError(f"the share of the work must be above 0, got {self.share}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {self.seeds}")

    def steps(self, usual: int, least: int = 1) -> int:
        """``usual`` times the share, at least ``least``: for steps, items, anything that costs time."""
        return max(least, round(usual * self.share))

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of ``measure()``, JSON, kept in the folder under ``name``: a continued run does not measure it again."""
        path = self.out / "measured" / f"{_file_name(name)}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        found = json.loads(json.dumps(measure()))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found, indent=1) + "\n")
        return found

    def each(self, arms: Iterable[str], measure: Callable[[str, int], Any], label: str) -> dict[str, list[Any]]:
        """For every arm, the results of ``measure(arm, seed)`` in the order of the seeds, kept as by ``once`` under ``place(arm, seed)``.

        All arms of a seed come before the next seed. ``label``: of the progress.
        """
        names = list(arms)
        found: dict[str, list[Any]] = {name: [] for name in names}
        for n, seed in enumerate(self.seeds):
            for k, name in enumerate(names):
                found[name].append(self.once(place(name, seed), functools.partial(measure, name, seed)))
                self.on_progress(label, n * len(names) + k + 1, len(names) * len(self.seeds))
        return found

    def train(self, name: str, recipe: Recipe[Any, Any]) -> nn.Module:
        """The module that the recipe trains, in eval mode with averaged weights; a stopped or finished run of this name continues."""
        from unmask.training.states import saved_step
        from unmask.training.train import train

        folder = self.out / "trained" / _file_name(name)
        if (saved_step(folder) or 0) < recipe.training.steps:  # several networks follow each other, all in steps from 1
            print(f"training {name}", file=sys.stderr, flush=True)
        return train(recipe, folder).eval()


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """``minutes``: that ``run`` takes on two cores at its usual amount of work (``Work.share`` 1)."""

    minutes: float
    run: Callable[[Work], Findings]


def demonstrate(
    name: str,
    demonstration: Demonstration,
    work: Work,
    *,
    title: str,
    paper: str,
    claim: str = "",
    paper_figure: str = "",
) -> Findings:
    """Run or continue it in ``work.out`` and write report.html and figures.json there.

    ``claim``, ``paper_figure``: of the paper, for the page. ValueError where the folder holds a demonstration with other settings, or
    something else.
    """
    from unmask.evaluation.demonstration_page import page

    _claim(name, work)
    findings = demonstration.run(work)
    about: Json = {
        "method": name,
        "title": title,
        "paper": paper,
        "claim": claim,
        "paper_figure": paper_figure,
        "share": work.share,
        "seeds": list(work.seeds),
    }
    about |= {"commit": commit(Path(__file__).parent)}
    write_text(work.out / FIGURES, json.dumps(to_json(findings, about), indent=1) + "\n")
    write_text(work.out / PAGE, page(findings, about))
    return findings


def to_json(findings: Findings, about: Json) -> Json:
    """figures.json: the settings, the verdict, the figures, and tables and plots as plain values."""
    shown = [_plain(part) for part in findings.shown if not isinstance(part, Media)]
    words: Json = {"about": findings.about, "verdict": findings.verdict, "seen": findings.seen}
    return {**about, **_known({**words, "figures": dict(findings.figures), "shown": shown})}


def _known(value: Any) -> Any:
    """A value of JSON, which has no NaN: null stands for what could not be measured."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines(name: str, findings: Findings, work: Work) -> list[Line]:
    """The rows for a history, one a figure."""
    more: Json = {"share": work.share, "seeds": len(work.seeds), "seen": findings.seen}
    return [
        Line(
            name=f"methods.{name}.{key}",
            value=figure["value"],
            unit=str(figure.get("unit", "share")),
            more={k: v for k, v in figure.items() if k not in ("value", "unit")} | more,
        )
        for key, figure in findings.figures.items()
        if _known(figure["value"]) is not None
    ]


def _plain(part: Table | Plot) -> Json:
    if isinstance(part, Table):
        return {"title": part.title, "head": list(part.head), "rows": [list(row) for row in part.rows]}
    return {
        "title": part.title,
        "across": part.across,
        "up": part.up,
        "lines": {k: list(v) for k, v in part.lines.items()},
    }


def _claim(name: str, work: Work) -> None:
    """Write down what runs in the folder, or check that it is the same."""
    path, wanted = work.out / _SETTINGS, {"method": name, "share": work.share, "seeds": list(work.seeds)}
    if not path.exists():
        if work.out.exists() and any(work.out.iterdir()):
            raise ValueError(f"{work.out} holds other files; name an empty or a new folder with --out")
        work.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != wanted:
        changed = ", ".join(
            f"{k} {_short(found.get(k))} instead of {_short(v)}" for k, v in wanted.items() if found.get(k) != v
        )
        raise ValueError(
            f"{work.out} holds a demonstration with {changed}; name another folder with --out, or give the same --minutes and --seeds"
        )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def place(arm: str, seed: int) -> str:
    """The name of what is kept of an arm and a seed: "codes, same places" and 1 are codes_same_places/1."""
    return f"{re.sub(r'[:,]? ', '_', arm)}/{seed}"


@functools.cache
def _file_name(name: str) -> str:
    if not re.fullmatch(r"[\w.,=+-]+(/[\w.,=+-]+)*", name) or ".." in name:
        raise ValueError(f"{name!r} cannot be the name of a result; use letters, digits, dots, = and /")
    return name
