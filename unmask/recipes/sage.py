"""Failure search over prompts of the grid world, and its demonstration: how many failures of the embedded model each search finds.

    unmask probe mini --calls 200
    unmask methods run sage

A prompt has a form (one coloured object, a count, two objects, a relation, two coloured objects) and words that fill it. A picture fails
where two independent judges agree that it does not show what the prompt says: the trained judge of the evaluation, and a reader that
compares the picture with renderings, which is lenient where two objects stand on a diagonal. Every failure is a prompt and a seed, so it
can be drawn again.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

import unmask
from unmask.analysis.search import (
    CrossEntropy,
    Fails,
    Point,
    Random,
    Space,
    Strategy,
    Thompson,
    Trial,
    agreed,
    around,
    search,
)
from unmask.data.world.language import amount, article
from unmask.data.world.reading import read
from unmask.data.world.scenes import RELATIONS, Scene
from unmask.data.world.vocabulary import CLASSES, LEVELS
from unmask.evaluation import scoring
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Plot, Table, Work
from unmask.evaluation.demonstration_page import said
from unmask.evaluation.judge import Found, Judge, Seen, load_judge
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.evaluation.scoring import Want, Wanted, verdict
from unmask.evaluation.strategies import PromptGenerator
from unmask.json_types import Json
from unmask.pipeline.model import Model

LEVEL = LEVELS["grid"]
COUNTS = (2, 3, 4)
FORMS = ("colour", "count", "two objects", "relation", "two colours")
STRATEGIES: Mapping[str, Strategy] = {"random": Random(), "cross-entropy": CrossEntropy(), "thompson": Thompson()}
_AXES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}  # of first to second
_CALLS, _AROUND, _SHOWN = 120, 8, 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of one ``form``, and what its picture has to show."""

    form: str
    text: str
    want: Want


def request(point: Point) -> Request:
    """The prompt of a point of ``space()``."""
    form, count, how, colours, names = _fields(point)
    (a, b), (red, blue) = names, colours
    if form == "colour":
        return Request(form=form, text=article(f"{red} {a}"), want=scoring.colors(a, red))
    if form == "count":
        return Request(form=form, text=amount(count, a, CLASSES[a][0]), want=scoring.counting(a, count))
    if form == "two objects":
        return Request(form=form, text=f"{article(a)} and {article(b)}", want=scoring.two(a, b))
    if form == "relation":
        want = scoring.position(Wanted(name=a), how, Wanted(name=b))
        return Request(form=form, text=f"{article(a)} {how} {article(b)}", want=want)
    text = f"{article(f'{red} {a}')} and {article(f'{blue} {b}')}"
    return Request(form=form, text=text, want=scoring.color_attr(a, red, b, blue))


def space() -> Space:
    """Form, first class, second class, first colour, second colour, relation, count; a form ignores what it does not name."""
    classes, colours = len(LEVEL.classes), len(LEVEL.colours)
    sizes = (len(FORMS), classes, classes, colours, colours, len(RELATIONS), len(COUNTS))
    return Space(sizes=sizes, allowed=lambda point: point[1] != point[2] and point[3] != point[4])


def _fields(point: Point) -> tuple[str, int, str, tuple[str, str], tuple[str, str]]:
    form, a, b, red, blue, how, count = point
    names, colours = (LEVEL.classes[a], LEVEL.classes[b]), (LEVEL.colours[red], LEVEL.colours[blue])
    return FORMS[form], COUNTS[count], RELATIONS[how], colours, names


@dataclass(frozen=True, kw_only=True)
class _Item:
    text: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Prober:
    """A model and its judges. ``draw``: how the pictures are made · ``judge``: loads the trained judge."""

    model: Model
    draw: PromptGenerator = PromptGenerator()
    judge: Callable[[], Judge] = load_judge
    _last: dict[tuple[Point, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def picture(self, point: Point, seed: int) -> np.ndarray:
        """The drawing, uint8 [S, S, 3]; that of the last call is kept."""
        if (point, seed) not in self._last:
            drawn = self.draw(self.model, [_Item(text=request(point).text, seed=seed)])[0]
            self._last.clear()
            self._last[point, seed] = drawn
        return self._last[point, seed]

    @property
    def fails(self) -> Fails:
        """Whether both judges say that a drawing does not show its prompt; the reader looks only where the judge says so."""
        return agreed(self._judge_says, self._reader_says)

    def _judge_says(self, point: Point, seed: int) -> bool:
        return not verdict(self.judge().look([self.picture(point, seed)])[0], request(point).want)

    def _reader_says(self, point: Point, seed: int) -> bool:
        return not shown(as_seen(read(self.picture(point, seed)).scene), request(point).want)


def shown(seen: Seen, want: Want) -> bool:
    """As ``verdict``, but a relation holds where it does along its own axis: a diagonal is not a failure of either relation."""
    if want.related is None or not verdict(seen, replace(want, related=None)):
        return want.related is None and verdict(seen, want)
    first, second = (
        [t.centre for t in seen.objects if t.name == one.name] for one in (want.related.first, want.related.second)
    )
    axis, sign = _AXES[want.related.relation]
    return any(sign * (b[axis] - a[axis]) > 0 for a in first for b in second)


def as_seen(scene: Scene) -> Seen:
    """A scene as a judge reports it, every object with full confidence."""
    found = tuple(Found(name=t.name, colour=t.colour, box=t.box, score=1.0) for t in scene.objects)
    return Seen(objects=found, background=scene.background)


def kinds(trials: Sequence[Trial]) -> list[tuple[str, int, int]]:
    """(form, calls, failures) of every form."""
    calls = Counter(request(t.point).form for t in trials)
    failed = Counter(request(t.point).form for t in trials if t.failed)
    return [(form, calls[form], failed[form]) for form in FORMS]


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The first failure of each prompt."""
    return list({request(t.point).text: t for t in reversed(trials) if t.failed}.values())[::-1]


def regressions(trials: Sequence[Trial]) -> Json:
    """Every failing prompt with its seed: what a later model should be tried on."""
    found = [(request(t.point), t) for t in distinct(trials)]
    return {"failures": [{"form": r.form, "prompt": r.text, "seed": t.seed, "point": list(t.point)} for r, t in found]}


def pictures(prober: Prober, trials: Sequence[Trial], most: int = _SHOWN) -> Media:
    """Failures drawn again from their seeds."""
    shown = distinct(trials)[:most]
    items = [(request(t.point).text, Image.fromarray(prober.picture(t.point, t.seed))) for t in shown]
    return Media(title="Failures", items=tuple(items), note="Drawn again from their prompts and seeds.")


def demo(work: Work) -> Findings:
    """Each strategy with as many calls, for every seed."""
    model = unmask.load("mini")
    assert isinstance(model, Model)
    prober = Prober(model=model)
    calls = work.steps(_CALLS, least=2)
    found: dict[str, list[list[Trial]]] = {
        name: [_trials(work.once(f"{name}/{s}", functools.partial(_run, prober, one, calls, s))) for s in work.seeds]
        for name, one in STRATEGIES.items()
    }
    rates = {
        name: over_seeds([100 * sum(t.failed for t in one) / calls for one in runs]) for name, runs in found.items()
    }
    different = {name: over_seeds([100 * len(distinct(one)) / calls for one in runs]) for name, runs in found.items()}
    gains = {name: _gain(found[name], found["random"], calls) for name in found if name != "random"}
    again = {
        name: over_seeds(work.once(f"around/{name}", functools.partial(_again, prober, runs, work)))
        for name, runs in found.items()
    }
    best = max(gains, key=lambda name: gains[name]["value"])
    rows = [(name, rates[name], different[name], again[name], gains.get(name, "")) for name in found]
    every = [t for runs in found.values() for one in runs for t in one]
    return Findings(
        about=f"{calls} prompts a search and seed, each drawn once by mini. A failure is a picture that two independent judges both call "
        "wrong; a failure is different if its prompt is. No search follows gradients: prompts are discrete.",
        verdict=f"In 100 calls {best} search finds {said(gains[best])} failures more than random prompts, which find "
        f"{said(rates['random'])}.",
        seen=gains[best]["low"] is not None and gains[best]["low"] > 0,
        figures={f"gain.{name}": figure for name, figure in gains.items()} | {"random": rates["random"]},
        shown=(
            Table(
                title="Failures in 100 calls",
                head=("search", "failures", "different ones", "share that fails again", "gain over random"),
                rows=tuple(rows),
                note=f"Again: {_AROUND} other seeds of the same prompt, for up to three failures of every run.",
            ),
            Plot(title="Failures found", across="calls", up="failures", lines=_curves(found)),
            Table(title="By form", head=("form", "calls", "failures"), rows=tuple(kinds(every))),
            pictures(prober, every),
        ),
    )


def _run(prober: Prober, strategy: Strategy, calls: int, seed: int) -> Json:
    found = search(space(), strategy, prober.fails, budget=calls, seed=seed)
    return {"trials": [[list(t.point), t.seed, t.failed] for t in found]}


def _trials(kept: Json) -> list[Trial]:
    return [Trial(point=tuple(point), seed=seed, failed=failed) for point, seed, failed in kept["trials"]]


def _again(prober: Prober, runs: Sequence[Sequence[Trial]], work: Work) -> list[float]:
    """For every run, how often its failures fail under other seeds."""
    count = work.steps(_AROUND, least=1)
    each = [[around(prober.fails, t, count) for t in distinct(one)[:3]] for one in runs]
    return [sum(rates) / len(rates) if rates else 0.0 for rates in each]


def _gain(runs: Sequence[Sequence[Trial]], others: Sequence[Sequence[Trial]], calls: int) -> Figure:
    """Failures in 100 calls beyond those of the other search, paired by seed."""
    pairs = zip(runs, others, strict=True)
    return over_seeds([100 * (sum(t.failed for t in a) - sum(t.failed for t in b)) / calls for a, b in pairs])


def _curves(found: Mapping[str, Sequence[Sequence[Trial]]]) -> dict[str, list[tuple[float, float]]]:
    """Failures found by each call, the mean over seeds."""
    return {
        name: [
            (n + 1, sum(sum(t.failed for t in one[: n + 1]) for one in runs) / len(runs)) for n in range(len(runs[0]))
        ]
        for name, runs in found.items()
    }


DEMO = Demonstration(minutes=10, run=demo)
