"""Finding objects by phrases in scenes of the world, in one step and in four. Public idea: ``Grounds()``.

All phrases of an image share one pass. A box is right if its IoU with the true box is at least 0.5 (P@0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from unmask.data.sources import pixels_of
from unmask.data.world.language import referring
from unmask.data.world.scenes import Scene, sample, shows_held_out
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row
from unmask.evaluation.metrics import Figure, average, share
from unmask.evaluation.scoring import iou
from unmask.pipeline.model import Model, describe
from unmask.rng import key
from unmask.tasks import ground
from unmask.tasks.running import perform

_LEAST = 0.5  # minimum IoU of a correct box
STEPS = (1, 4)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A scene with phrases for some of its objects: ``phrases`` of (words, index of the object)."""

    index: int
    seed: int
    scene: Scene
    phrases: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        return f"ground-{self.index:04d}"

    @property
    def text(self) -> str:
        return "; ".join(words for words, _ in self.phrases)


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """``plan.n`` images, with a phrase for every object that has an unambiguous one."""

    name: str = "grounding"

    def items(self, plan: EvalPlan) -> list[Picture]:
        made: list[Picture] = []
        stream, index = key("ground", plan.seed), 0
        while len(made) < plan.n:
            scene = sample(plan.level, plan.split, stream, index)
            phrases = tuple(referring(scene, Random(f"ground/{plan.seed}/{index}")))
            if phrases:
                seed = plan.seed * 100_000 + len(made)
                made.append(Picture(index=len(made), seed=seed, scene=scene, phrases=phrases))
            index += 1
        return made

    def settings(self, model: Model) -> object:
        return [describe(model.presets.ground(model.parts, steps)) for steps in STEPS]

    def find(self, model: Model, items: Sequence[Picture]) -> list[Finding]:
        pixels = pixels_of([p.scene for p in items], model.parts.side)
        tasks = [
            ground.Ground(pixels=image, phrases=tuple(words for words, _ in p.phrases))
            for p, image in zip(items, pixels, strict=True)
        ]
        rows: list[Row] = [{"unseen": shows_held_out(p.scene), "random": _random(p)} for p in items]
        built = [task.build(model.parts) for task in tasks]
        for steps in STEPS:
            found = perform(model, tasks, [p.seed for p in items], model.presets.ground(model.parts, steps), built)
            for row, p, boxes in zip(rows, items, found, strict=True):
                row[f"boxes_{steps}"] = [[round(v, 3) for v in box] for box in boxes]
                pairs = zip(boxes, p.phrases, strict=True)
                row[f"iou_{steps}"] = [round(iou(b, p.scene.objects[obj].box), 4) for b, (_, obj) in pairs]
        return [Finding(row=row) for row in rows]

    def figures(self, plan: EvalPlan, items: Sequence[Picture], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """P@0.5 over all phrases, and the mean IoU; the baseline returns the box of a random object of the image."""
        out: Figures = {f"p50_{steps}step": _found(rows, steps) for steps in STEPS}
        expected = [pair for row in rows for pair in row["random"]]
        overlap = average([mean for _, mean in expected])["value"]
        out["baseline_random_present"] = average([right for right, _ in expected], mean_iou=overlap)
        for name, unseen in (("seen_combinations", False), ("held_out_combinations", True)):
            out[name] = _found([row for row in rows if row["unseen"] == unseen], STEPS[0])
        return out | {"pictures": len(rows)}


def _found(rows: Sequence[Row], steps: int) -> Figure:
    overlaps = [value for row in rows for value in row[f"iou_{steps}"]]
    return share((value >= _LEAST for value in overlaps), mean_iou=average(overlaps)["value"])


def _random(picture: Picture) -> list[tuple[float, float]]:
    """For each phrase: the probability that the box of a random object of the image is right, and its expected IoU."""
    objects = picture.scene.objects
    expected = []
    for _, index in picture.phrases:
        overlaps = [iou(obj.box, objects[index].box) for obj in objects]
        right = sum(value >= _LEAST for value in overlaps) / len(objects)
        expected.append((right, sum(overlaps) / len(objects)))
    return expected
