"""Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg, from their own files. Public idea: ``PublicRefCOCO(expressions=…, folder=…)``.

P@0.5: a box is right if its IoU with the true box is at least 0.5, both as fractions of the image's padded square (spec 5.1). A box is
predicted in one step; ``changes=("schedule.steps=4",)`` sets four steps. Every expression is a request of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unmask.data.refcoco import Expression
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row
from unmask.evaluation.metrics import average, share
from unmask.evaluation.scoring import iou
from unmask.pipeline.model import Model, describe
from unmask.recipe import override
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.tasks.ground import Ground
from unmask.tasks.running import perform
from unmask.tokens.boxes import FractionBox
from unmask.tokens.pictures import ImageError, Placement, read_image

_LEAST = 0.5  # minimum IoU of a correct box


@dataclass(frozen=True, kw_only=True)
class Sought:
    """An expression to find in ``folder / expression.picture``."""

    expression: Expression
    folder: Path

    @property
    def key(self) -> str:
        return self.expression.key

    @property
    def text(self) -> str:
        return self.expression.phrase

    @property
    def box(self) -> FractionBox:
        """The true box as fractions of the padded square."""
        width, height = self.expression.size
        return Placement(width=width, height=height).to_fractions(self.expression.box)

    def picture(self) -> Image.Image:
        """The image. ImageError if its size differs from the size in instances.json."""
        found = read_image(self.folder / self.expression.picture)
        if found.size != self.expression.size:
            raise ImageError(
                f"{self.expression.picture} is {found.width} x {found.height}, but instances.json has "
                f"{self.expression.size[0]} x {self.expression.size[1]}; use the published images of COCO's train2014"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class PublicRefCOCO:
    """The first ``plan.n`` expressions, with images below ``folder``. ``changes``: fields of the sampler."""

    expressions: tuple[Expression, ...]
    folder: Path
    changes: tuple[str, ...] = ()
    name: str = "refcoco"

    def items(self, plan: EvalPlan) -> list[Sought]:
        return [Sought(expression=e, folder=self.folder) for e in self.expressions[: plan.n]]

    def settings(self, model: Model) -> object:
        return [describe(self._sampler(model)), key(*self.expressions)]

    def find(self, model: Model, items: Sequence[Sought]) -> list[Finding]:
        looks = {item.expression.picture: item for item in items}  # several expressions may share an image
        seen = {name: model.parts.image_views(item.picture()) for name, item in looks.items()}
        tasks = [Ground(pixels=seen[item.expression.picture], phrases=(item.text,)) for item in items]
        found = perform(
            model, tasks, [0] * len(items), self._sampler(model)
        )  # grounding is deterministic: seeds have no effect
        return [Finding(row=scored(item, box)) for item, (box,) in zip(items, found, strict=True)]

    def figures(self, plan: EvalPlan, items: Sequence[Sought], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """P@0.5 and the mean IoU of every split."""
        out: Figures = {}
        for split in sorted({row["kind"] for row in rows}):
            some = [row for row in rows if row["kind"] == split]
            out[split] = share((row["right"] for row in some), mean_iou=average([row["iou"] for row in some])["value"])
        return out | {"pictures": len({item.expression.picture for item in items})}

    def _sampler(self, model: Model) -> Sampler:
        return override(model.presets.ground(model.parts, 1), self.changes)


def scored(item: Sought, box: FractionBox) -> Row:
    """The verdict on a predicted box; boxes are fractions of the padded square."""
    overlap = iou(box, item.box)
    rounded = [round(v, 4) for v in box]
    return {"kind": item.expression.split, "right": overlap >= _LEAST, "iou": round(overlap, 4), "box": rounded}
