"""The demonstration of ReflectDrive: plans on small roads with obstacles, raw, best of K, clamped and repaired at equal numbers of passes.

    unmask methods run reflectdrive
    unmask train reflectdrive.planner --out runs/planner      the network alone

A road is a band on a grid of 48 x 48 cells with one to three discs in it; a plan has eight waypoints from the left edge to the right. A
quarter of the demonstrations that the network learns from touch one of the discs. The network sees start, goal column, road and discs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.reflectdrive import Discs, Repair, Score, goals
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical, OnlyIds
from unmask.sequence import Batch, Kind, Sequence, Span, collate

SIDE, POINTS, DISCS, KNOTS = 48, 8, 3, 6  # cells an axis · waypoints · most discs · road heights that the network sees
HALF = 9.0  # half the width of a road
NONE, MASK = SIDE, SIDE + 1  # ids after the coordinates: no disc here, masked
_CONTEXT = 2 + KNOTS + 3 * DISCS  # start, road, discs
_STEPS = 5  # of an inpainting, as in the paper
_WORLDS, _TRAINED, _SHOWN = 160, 2500, 4
SIZE = text_config(vocab_size=64, width=96, heads=4, layers=4, mlp=256, rope_theta=1000.0)


@dataclass(frozen=True, kw_only=True)
class Road:
    """``middle`` [SIDE]: height of the road's middle in every column · ``discs`` [D, 3]: x, y, radius · ``start``: x, y."""

    middle: Tensor
    discs: Tensor
    start: tuple[int, int]

    def clearance(self, points: Tensor) -> Tensor:
        """Cells to the nearest disc or edge of the road, below 0 inside a disc or off the road."""
        column = points[..., 0].long().clamp(0, SIDE - 1)
        edge = HALF - (points[..., 1].double() - self.middle[column]).abs()
        return torch.minimum(Discs(discs=self.discs)(points), edge)


def road(rng: Generator) -> Road:
    """A random road with one to three discs on it, none at its ends."""
    a, b, c = torch.rand(3, generator=rng).tolist()
    line = torch.arange(SIDE, dtype=torch.float64)
    middle = SIDE / 2 + 6 * math.sin(6 * a) * torch.sin(2 * math.pi * (line / SIDE * (0.5 + b) + c))
    count = int(torch.randint(1, DISCS + 1, (1,), generator=rng))
    discs = []
    for i in range(count):
        u, v, w = torch.rand(3, generator=rng).tolist()
        x = 10 + (SIDE - 20) * (i + u) / count
        discs.append((round(x), round(float(middle[round(x)]) + 8 * (v - 0.5)), 2 + round(2 * w)))
    return Road(middle=middle, discs=torch.tensor(discs, dtype=torch.float64), start=(1, round(float(middle[1]))))


def drive(one: Road, rng: Generator, *, careless: bool) -> Tensor:
    """A smooth plan [POINTS, 2] around the discs; a careless one ignores one of them."""
    discs = one.discs
    if careless:
        ignored = int(torch.randint(0, len(discs), (1,), generator=rng))
        discs = torch.cat((discs[:ignored], discs[ignored + 1 :]))
    x = torch.linspace(1 + (SIDE - 4) / POINTS, SIDE - 3, POINTS).round()
    y = one.middle[x.long()] + 1.5 * torch.randn(1, generator=rng).double()
    for cx, cy, radius in discs.tolist():
        near = (1 - (x - cx).abs() / (radius + 7)).clamp(min=0)
        middle = float(one.middle[round(cx)])
        up = cy < middle if abs(cy - middle) > 0.5 else bool(torch.rand(1, generator=rng) < 0.5)
        wanted = cy + (1 if up else -1) * (radius + 2.0)
        y = y + near.clamp(max=0.7) / 0.7 * (wanted - y)
    return torch.stack((x, y.round().clamp(0, SIDE - 1)), 1).long()


@lru_cache(maxsize=1)
def _spans() -> tuple[Span, ...]:
    length = _CONTEXT + 2 * POINTS
    return (
        Span(name="road", kind=Kind.TEXT, start=0, stop=_CONTEXT),
        Span(name="plan", kind=Kind.TEXT, start=_CONTEXT, stop=length, writable=True),
    )


def row(one: Road, plan: Tensor, masked: Tensor) -> Sequence:
    """Road and plan as tokens. ``masked`` [POINTS]: both coordinates of these waypoints."""
    knots = one.middle[torch.linspace(0, SIDE - 1, KNOTS).long()].round().long().clamp(0, SIDE - 1)
    places = torch.full((DISCS, 3), NONE)
    places[: len(one.discs)] = one.discs.long().clamp(0, SIDE - 1)
    ids = torch.cat((torch.tensor(one.start), knots, places.flatten(), plan.flatten()))
    hidden = torch.cat((torch.zeros(_CONTEXT, dtype=torch.bool), masked.repeat_interleave(2)))
    return Sequence(ids=ids, masked=hidden, spans=_spans())


@dataclass(frozen=True, kw_only=True)
class Drives:
    """Batches of roads with demonstrations. ``careless``: share that ignores a disc; about half of them touch it."""

    seed: int
    batch: int = 64
    careless: float = 0.4

    def __call__(self, step: int) -> Batch:
        rng = generator("reflectdrive", self.seed, step)
        rows = []
        for _ in range(self.batch):
            one = road(rng)
            plan = drive(one, rng, careless=bool(torch.rand(1, generator=rng) < self.careless))
            rows.append(row(one, plan, torch.ones(POINTS, dtype=torch.bool)))
        return collate(rows, range(self.batch))


def planner(seed: int = 0, steps: int = _TRAINED) -> Recipe:
    """A masked planner of 0.4 M parameters for small roads, in about a minute and a half."""

    def network() -> Elastic:
        made = Elastic(SIZE, mask_id=MASK)
        init(made, generator("reflectdrive network", seed))
        return made

    return Recipe(
        name="reflectdrive.planner",
        model=network,
        source=Drives(seed=seed),
        objective=Masked(),
        optim=Optim(lr=2e-3, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, save_every=500, bf16=False, device="cpu"),
    )


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """Fills masked waypoints by the network; every call is one pass of ``_STEPS`` steps. ``seed``: of the samples."""

    net: Elastic
    one: Road
    seed: int
    temperature: float = 1.0

    @property
    def sampler(self) -> Sampler:
        tokens = OnlyIds(low=0, high=SIDE, token_sampler=Categorical(temperature=self.temperature))
        return Sampler(schedule=Equal(steps=_STEPS), token_sampler=tokens, selection=Confident())

    def __call__(self, plan: Tensor, masked: Tensor) -> Tensor:
        done = self.sampler.sample(self.net, collate([row(self.one, plan, masked)], [self.seed]))
        return done.ids[0, _CONTEXT:].view(POINTS, 2)

    def many(self, plan: Tensor, masked: Tensor, count: int) -> Tensor:
        """[count, POINTS, 2]: the same with ``count`` seeds."""
        rows = [row(self.one, plan, masked)] * count
        done = self.sampler.sample(self.net, collate(rows, [self.seed + i for i in range(count)]))
        return done.ids[:, _CONTEXT:].reshape(count, POINTS, 2)

    def proposals(self) -> tuple[Tensor, ...]:
        """Plans for up to three goals, each inpainted; the goals come from one more forward."""
        masked = torch.ones(POINTS, dtype=torch.bool)
        batch = collate([row(self.one, torch.full((POINTS, 2), MASK), masked)], [self.seed])
        with torch.no_grad():
            prediction = self.net(batch)
        logits = prediction.logits(Kind.TEXT)[-2:, :SIDE].float().softmax(-1)
        cells, _ = goals(logits[0], logits[1], apart=3, most=3)
        masked = masked.clone()
        masked[-1] = False
        return tuple(self(torch.cat((torch.zeros(POINTS - 1, 2).long(), cell[None])), masked) for cell in cells)


def quality(one: Road, plan: Tensor) -> float:
    """What best of K and the choice of a goal maximise: the smallest clearance up to 1 cell, then smoothness and progress."""
    return min(float(one.clearance(plan).min()), 1.0) * 10 - 0.05 * jerk(one, plan) + 0.05 * float(plan[-1, 0])


def jerk(one: Road, plan: Tensor) -> float:
    """The mean squared second difference of the waypoints, in cells."""
    path = torch.cat((torch.tensor([one.start]), plan)).double()
    return float((path[2:] - 2 * path[1:-1] + path[:-2]).square().sum(1).mean())


Arm = Callable[[Road, Inpainting], tuple[Tensor, float]]  # -> plan, passes
_ALL = torch.ones(POINTS, dtype=torch.bool)
_BLANK = torch.full((POINTS, 2), MASK)


def _repair(one: Road, **changes: Any) -> Repair:
    score = Score(progress=0.1)
    return Repair(size=SIDE, clearance=one.clearance, start=one.start, velocity=(5, 0), score=score, **changes)


def _raw(one: Road, fill: Inpainting) -> tuple[Tensor, float]:
    return fill(_BLANK, _ALL), 1


def _best_of(count: int, one: Road, fill: Inpainting) -> tuple[Tensor, float]:
    plans = fill.many(_BLANK, _ALL, count)
    return max(plans, key=partial(quality, one)), count


def _clamped(one: Road, fill: Inpainting) -> tuple[Tensor, float]:
    repair = _repair(one, inpainting=False)
    return repair.best(repair(fill(_BLANK, _ALL), fill)), 1


def _repaired(one: Road, fill: Inpainting) -> tuple[Tensor, float]:
    repair = _repair(one)
    states = repair(fill(_BLANK, _ALL), fill)
    return repair.best(states), len(states)


def _whole(one: Road, fill: Inpainting) -> tuple[Tensor, float]:
    plans = fill.proposals()
    repair = _repair(one)
    states = repair(max(plans, key=partial(quality, one)), fill)
    return repair.best(states), len(plans) + len(states) - 1 + 1 / _STEPS


ARMS: dict[str, Arm] = {
    "raw": _raw,
    "best of 2": partial(_best_of, 2),
    "best of 4": partial(_best_of, 4),
    "clamped, not inpainted": _clamped,
    "repaired": _repaired,
    "three goals, repaired": _whole,
}
_MEASURES = ("unsafe", "collision", "off_road", "progress", "jerk", "passes")


def _outcome(net: Elastic, arm: Arm, worlds: int) -> Json:
    """Means over roads that no run has trained on."""
    rows = []
    for i in range(worlds):
        one = road(generator("reflectdrive test road", i))
        plan, passes = arm(one, Inpainting(net=net, one=one, seed=1000 * i))
        hit = bool((Discs(discs=one.discs)(plan) < 0).any())
        off = bool(((plan[:, 1] - one.middle[plan[:, 0].clamp(0, SIDE - 1)]).abs() > HALF).any())
        rows.append(
            (float(hit or off), float(hit), float(off), float(plan[-1, 0]) / (SIDE - 3), jerk(one, plan), passes)
        )
    return {name: sum(r[k] for r in rows) / len(rows) for k, name in enumerate(_MEASURES)}


def demo(work: Work) -> Findings:
    """Every arm for every seed's network, on the same roads."""
    worlds = work.steps(_WORLDS, least=3)
    found: dict[str, list[Json]] = {name: [] for name in ARMS}
    nets = []
    for n, seed in enumerate(work.seeds):
        net = work.train(f"planner/{seed}", planner(seed, steps=work.steps(_TRAINED, least=2)))
        assert isinstance(net, Elastic)
        nets.append(net)
        for k, (name, arm) in enumerate(ARMS.items()):
            key = f"{seed}/{name.replace(' ', '_')}"
            found[name].append(work.once(key, partial(_outcome, net, arm, worlds)))
            work.on_progress("arms", n * len(ARMS) + k + 1, len(ARMS) * len(work.seeds))
    over = {name: {m: over_seeds([o[m] for o in outcomes]) for m in _MEASURES} for name, outcomes in found.items()}
    gains = {
        "best_of_4_minus_repaired.unsafe": _less(found, "best of 4", "three goals, repaired", "unsafe"),
        "clamped_minus_inpainted.unsafe": _less(found, "clamped, not inpainted", "repaired", "unsafe"),
        "clamped_minus_inpainted.jerk": _less(found, "clamped, not inpainted", "repaired", "jerk"),
    }
    safer = gains["best_of_4_minus_repaired.unsafe"]
    return Findings(
        about=f"{worlds} roads, {len(work.seeds)} networks. Unsafe: the plan touches a disc or leaves the road. Passes: inpaintings of "
        f"{_STEPS} steps each. All arms share the scorer; best of K is the baseline at equal passes, and clamping moves unsafe waypoints "
        "without a further pass. Jerk: mean squared second difference of the waypoints.",
        verdict=_verdict(over, gains),
        seen=safer["low"] is not None and safer["low"] > 0,
        figures=gains | _figures(over),
        shown=(
            Table(
                title="Plans",
                head=("arm", *(m.replace("_", " ") for m in _MEASURES)),
                rows=tuple((name, *(o[m] for m in _MEASURES)) for name, o in over.items()),
            ),
            Media(title="The same roads, raw, best of 4 and repaired", items=_drawn(nets[0])),
        ),
    )


def _less(found: dict[str, list[Json]], first: str, second: str, measure: str) -> Figure:
    """How much less of a measure the second arm has, over seeds."""
    pairs = zip(found[first], found[second], strict=True)
    return over_seeds([a[measure] - b[measure] for a, b in pairs], **_UNITS.get(measure, {}))


def _verdict(over: dict[str, dict[str, Figure]], gains: dict[str, Figure]) -> str:
    raw, four, clamped, whole = (
        over[name] for name in ("raw", "best of 4", "clamped, not inpainted", "three goals, repaired")
    )
    return (
        f"Unsafe plans: raw {raw['unsafe']['value']:.3f}, best of 4 {four['unsafe']['value']:.3f} at 4 passes, three goals with repair "
        f"{whole['unsafe']['value']:.3f} at {whole['passes']['value']:.1f} passes, and clamping alone {clamped['unsafe']['value']:.3f} at "
        f"one; inpainting after it lowers the jerk by {gains['clamped_minus_inpainted.jerk']['value']:.2f} of "
        f"{clamped['jerk']['value']:.1f} cells²."
    )


def _figures(over: dict[str, dict[str, Figure]]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, one in over.items():
        key = name.replace(",", "").replace(" ", "_")
        figures |= {f"{key}.{m}": {**one[m], **_UNITS.get(m, {})} for m in _MEASURES}
    return figures


_UNITS: dict[str, Json] = {"jerk": {"unit": "cells2"}, "passes": {"unit": "passes"}}


def _drawn(net: Elastic) -> tuple[tuple[str, Image.Image], ...]:
    items = []
    for i in range(_SHOWN):
        one = road(generator("reflectdrive test road", i))
        for name in ("raw", "best of 4", "three goals, repaired"):
            plan, _ = ARMS[name](one, Inpainting(net=net, one=one, seed=1000 * i))
            safe = float(one.clearance(plan).min()) >= 0
            items.append((f"road {i}, {name}: {'safe' if safe else 'unsafe'}", picture(one, plan)))
    return tuple(items)


def picture(one: Road, plan: Tensor, scale: int = 6) -> Image.Image:
    """The road in grey, discs in red, the plan in blue."""
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), "#dfe5da")
    pen = ImageDraw.Draw(image)
    for x in range(SIDE):
        low, high = (float(one.middle[x]) + side * HALF for side in (-1, 1))
        pen.rectangle((x * scale, low * scale, (x + 1) * scale, high * scale), "#c9c9cf")
    for x, y, r in one.discs.tolist():
        pen.ellipse(((x - r) * scale, (y - r) * scale, (x + r) * scale, (y + r) * scale), "#c8322b")
    path = [(x * scale, y * scale) for x, y in [one.start, *(tuple(p) for p in plan.tolist())]]
    pen.line(path, "#3568d4", 3)
    for x, y in path:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), "#3568d4")
    return image


DEMO = Demonstration(minutes=5, run=demo)
