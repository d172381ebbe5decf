"""The public benchmark ImgEdit (basic, single turn), from its own edits. Public idea: ``PublicImgEdit(edits=…, folder=…)``, a part.

This part edits only: ``images/<key>.png``, the layout of the benchmark's scripts, which score the images with a vision-language model.
A source image is cropped to its central square (spec 5.1). All images of a run have the run's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unmask.data.imgedit import EditRequest
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row
from unmask.evaluation.strategies import EditGenerator, GenerationStrategy
from unmask.pipeline.model import Model
from unmask.rng import key
from unmask.tokens.pictures import read_image


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """An edit of ``folder / request.source``."""

    request: EditRequest
    folder: Path
    seed: int

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def text(self) -> str:
        return self.request.prompt

    def picture(self, side: int) -> Image.Image:
        return middle(read_image(self.folder / self.request.source), side)


@dataclass(frozen=True, kw_only=True)
class PublicImgEdit:
    """The first ``plan.n`` edits, with source images below ``folder``."""

    edits: tuple[EditRequest, ...]
    folder: Path
    draw: GenerationStrategy = EditGenerator()
    name: str = "imgedit"

    def items(self, plan: EvalPlan) -> list[Instruction]:
        return [Instruction(request=r, folder=self.folder, seed=plan.seed) for r in self.edits[: plan.n]]

    def settings(self, model: Model) -> object:
        return [self.draw.settings(model), key(*((r.key, r.source, r.prompt) for r in self.edits))]

    def find(self, model: Model, items: Sequence[Instruction]) -> list[Finding]:
        return [
            Finding(row={"kind": item.request.kind, "right": None}, pictures={"drawn": picture})
            for item, picture in zip(items, self.draw(model, items), strict=True)
        ]

    def figures(self, plan: EvalPlan, items: Sequence[Instruction], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """The number of edits of each kind. They are not scored here."""
        counts = Counter(row["kind"] for row in rows)
        return {
            "edits": len(self.edits),
            "edits_made": len(rows),
            "edits_not_judged": len(rows),
            **{f"made_{kind}": counts[kind] for kind in sorted(counts)},
        }


def middle(image: Image.Image, side: int) -> Image.Image:
    """The largest central square of an image, resized to ``side`` pixels (bicubic)."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square if short == side else square.resize((side, side), Image.Resampling.BICUBIC)
