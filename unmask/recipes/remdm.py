"""The demonstration of ReMDM: drawings of the embedded model at few steps, with and without remasking, on the same prompts and seeds.

    unmask methods run remdm

Each arm makes the same number of model calls. Prompts are of the split "validation"; the judge is independent of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from PIL import Image

import unmask
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.evaluate import EvalPlan, Record, measure
from unmask.evaluation.metrics import paired, share
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_geneval import GenEval
from unmask.methods.remdm import remdm, remdm_conf
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.tasks.parts import Parts

STEPS = (8, 16)
CHANGES: Mapping[str, Callable[[Sampler], Sampler]] = {
    "own": lambda sampler: sampler,
    "remasking": lambda sampler: remdm(sampler, eta=0.3),
    "remasking by confidence": lambda sampler: remdm_conf(sampler, eta=0.3),
}
_ITEMS, _SHOWN = 198, 4


def demo(work: Work) -> Findings:
    """The model's own sampler against two kinds of remasking, at 8 and 16 steps."""
    model = unmask.load("mini")
    assert isinstance(model, Model)
    n = work.steps(_ITEMS, least=2)
    right: dict[tuple[int, str], list[bool]] = {
        (steps, name): work.once(f"{steps}/{name.replace(' ', '_')}", partial(_right, model, work, steps, name, n))
        for steps in STEPS
        for name in CHANGES
    }
    gains = {key: paired(found, right[key[0], "own"]) for key, found in right.items() if key[1] != "own"}
    rows = tuple((k[0], k[1], share(v), gains.get(k, "")) for k, v in right.items())
    best = gains[STEPS[0], "remasking by confidence"]
    return Findings(
        about=f"Drawings of mini for {n} prompts, judged by an independent reader of pictures. Arms of a row group make the same number "
        "of model calls from the same seeds; a gain is the mean difference to the model's own sampler, prompt by prompt.",
        verdict=f"At {STEPS[0]} steps remasking by confidence changes the share of right drawings by {best['value']:+.3f} "
        f"[{best['low']:+.3f}, {best['high']:+.3f}].",
        seen=best["low"] > 0,
        figures={f"gain.{k[0]}_steps.{k[1].replace(' ', '_')}": v for k, v in gains.items()},
        shown=(
            Table(title="Right drawings", head=("steps", "sampler", "right", "gain"), rows=rows),
            Media(title=f"Drawings at {STEPS[0]} steps", items=_drawings(model, work.steps(_SHOWN))),
        ),
    )


def _changed(model: Model, steps: int, name: str) -> Callable[[Parts], Sampler]:
    """The model's preset for drawings with this many steps and the change of an arm."""
    own = model.presets.generate

    def made(parts: Parts) -> Sampler:
        sampler = own(parts)
        schedule = dataclasses.replace(sampler.schedule, steps=steps)  # type: ignore[type-var, call-arg]
        return CHANGES[name](dataclasses.replace(sampler, schedule=schedule))

    return made


def _right(model: Model, work: Work, steps: int, name: str, n: int) -> list[bool]:
    """The judge's verdict on the drawing of every prompt."""
    part = GenEval(draw=PromptGenerator(sampler=_changed(model, steps, name)), distance=False)
    label = f"{steps} steps, {name}"
    plan = EvalPlan(split="validation", n=n)
    done = measure(model, part, plan, Record(), lambda part, at, of: work.on_progress(label, at, of))
    return [bool(row["right"]) for row in done.rows]


def _drawings(model: Model, n: int) -> tuple[tuple[str, Image.Image], ...]:
    items: list[tuple[str, Image.Image]] = []
    for name in ("own", "remasking by confidence"):
        presets = dataclasses.replace(model.presets, generate=_changed(model, STEPS[0], name))
        drawn = Model(model.parts, presets).generate("two cats and a red apple", n=n, seed=0, attempts=1)
        items += [(f"{name}, seed {i}", drawing.image) for i, drawing in enumerate(drawn)]
    return tuple(items)


DEMO = Demonstration(minutes=4, run=demo)
