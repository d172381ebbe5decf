"""Editing scenes of the world by instruction, in seven kinds. Public idea: ``Edits()``, a part of the suite.

An edit succeeds if the instruction is met *and* everything else is unchanged: the same background, the same objects in
the same places and colours, no further objects. If several free places fit an instruction (add, move), each is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from unmask.data.world import edits
from unmask.data.world.edits import EDIT_KINDS, SceneEdit
from unmask.data.world.language import position_word
from unmask.data.world.render import render
from unmask.data.world.scenes import SceneObject, only_in, sample, shows_held_out
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, in_turns, weights_digest
from unmask.evaluation.judge import Box, Found, Judge, Seen, load_judge, shared
from unmask.evaluation.metrics import by_combination, by_kind, share
from unmask.evaluation.scoring import iou, matches, right
from unmask.evaluation.strategies import EditGenerator, GenerationStrategy
from unmask.evaluation.world_geneval import seen_json
from unmask.pipeline.model import Model
from unmask.rng import key

_ATTEMPTS = 200  # scenes sampled per requested edit
_TOUCH = (
    0.1  # largest shared part of the smaller box without an overlap (the judge's boxes are off by one or two pixels)
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A requested edit."""

    index: int
    seed: int
    edit: SceneEdit

    @property
    def key(self) -> str:
        return f"{self.edit.kind}-{self.index:04d}"

    @property
    def text(self) -> str:
        return self.edit.instruction

    def picture(self, side: int) -> Image.Image:
        return Image.fromarray(render(self.edit.source, side))


def wishes(kind: str, count: int, plan: EvalPlan) -> list[Wish]:
    """The first ``count`` edits of a kind, each of a different scene. ValueError if too few scenes allow one."""
    made: list[Wish] = []
    stream = key("edits", kind, plan.seed)
    for number in range(_ATTEMPTS * count):
        scene = sample(plan.level, plan.split, stream, number)
        found = edits.edit(scene, plan.split, Random(f"edits/{kind}/{plan.seed}/{number}"), kind)
        if found:
            made.append(Wish(index=len(made), seed=plan.seed * 100_000 + len(made), edit=found))
        if len(made) == count:
            return made
    raise ValueError(f"only {len(made)} of {count} {kind} edits found for {plan.split} scenes of level {plan.level!r}")


@dataclass(frozen=True, kw_only=True)
class Edits:
    """``draw``: generates the edited images."""

    draw: GenerationStrategy = EditGenerator()
    judge: Callable[[], Judge] = load_judge
    name: str = "edit"

    def items(self, plan: EvalPlan) -> list[Wish]:
        lists = [wishes(kind, plan.each(len(EDIT_KINDS)), plan) for kind in EDIT_KINDS]
        return in_turns(lists)

    def settings(self, model: Model) -> object:
        return [self.draw.settings(model), weights_digest(self.judge()).hex()]

    def find(self, model: Model, items: Sequence[Wish]) -> list[Finding]:
        pictures = self.draw(model, items)
        before = np.stack([render(item.edit.source, model.parts.side) for item in items])
        looks = zip(items, self.judge().look(pictures), self.judge().look(before), strict=True)
        rows = [_row(item.edit, seen, source) for item, seen, source in looks]
        return [
            Finding(row=row, pictures={"before": b, "drawn": picture})
            for row, b, picture in zip(rows, before, pictures, strict=True)
        ]

    def figures(self, plan: EvalPlan, items: Sequence[Wish], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """Success; separately, instruction met and rest unchanged. The baseline returns the source unchanged."""
        out: Figures = by_kind(rows, EDIT_KINDS)
        out["copy_source"] = share(r["copied"] for r in rows)
        out["instruction_met"] = share(r["met"] for r in rows)
        out["rest_kept"] = share(r["kept"] for r in rows)
        return out | by_combination(rows)


def _row(made: SceneEdit, seen: Seen, source: Seen) -> Row:
    return {
        "kind": made.kind,
        "right": success(made, seen),
        "met": met(made, seen),
        "kept": kept(made, seen),
        "copied": success(made, source),
        "unseen": shows_held_out(made.source) or shows_held_out(made.target),
        "seen": seen_json(seen),
    }


def success(made: SceneEdit, seen: Seen) -> bool:
    """Whether the image is a correct result of the edit."""
    if made.kind not in ("add", "move"):
        return matches(seen, made.target)
    count = len(seen.objects) == len(made.target.objects)
    return count and seen.background == made.target.background and kept(made, seen) and met(made, seen)


def met(made: SceneEdit, seen: Seen) -> bool:
    """Whether the instruction is met, regardless of the rest."""
    if made.kind == "background":
        return seen.background == made.target.background
    if made.kind == "remove":
        (gone,) = only_in(made.source, made.target)
        return not any(right(found, gone) for found in seen.objects)
    (new,) = only_in(made.target, made.source)
    if made.kind in ("add", "move"):
        return any(_placed(made, new, found, seen) for found in seen.objects)
    return any(right(found, new) for found in seen.objects)


def kept(made: SceneEdit, seen: Seen) -> bool:
    """Whether everything that the instruction does not mention is unchanged; additional objects are ignored."""
    same = [obj for obj in made.source.objects if obj in made.target.objects]
    background = made.kind == "background" or seen.background == made.source.background
    return background and all(any(right(found, obj) for found in seen.objects) for obj in same)


def _placed(made: SceneEdit, new: SceneObject, found: Found, seen: Seen) -> bool:
    """Whether a detected object is the added or moved one: as described, at the requested position, in a free place."""
    if (found.name, found.colour) != (new.name, new.colour):
        return False
    if any(right(found, obj) for obj in made.source.objects if obj in made.target.objects):
        return False  # already in the source
    x, y = found.centre
    if made.kind == "move" and iou(found.box, _about(x, y, new.size)) < 0.5:
        return False  # moved objects keep their size
    where = position_word(SceneObject(name=new.name, colour=new.colour, x=x, y=y, size=0.0))
    free = all(other is found or shared(found.box, other.box) <= _TOUCH for other in seen.objects)
    return free and where == position_word(new)


def _about(x: float, y: float, size: float) -> Box:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
