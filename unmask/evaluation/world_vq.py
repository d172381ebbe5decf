"""The image tokenizer on scenes of the world, and the judge on them before and after. Public idea: ``Rebuilds()``.

Reports the tokenizer's reconstruction error and the judge's accuracy on renderings. Both limit the scores of the other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unmask.data.sources import pixels_of
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, sample
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, weights_digest
from unmask.evaluation.judge import Judge, Seen, load_judge
from unmask.evaluation.metrics import average, psnr, psnr_of_mean, share
from unmask.evaluation.scoring import matches, right
from unmask.pipeline.model import Model
from unmask.rng import key


@dataclass(frozen=True, kw_only=True)
class VQItem:
    """A scene to encode and decode."""

    index: int
    scene: Scene

    @property
    def key(self) -> str:
        return f"vq-{self.index:04d}"

    @property
    def text(self) -> str:
        return self.scene.signature


@dataclass(frozen=True, kw_only=True)
class Rebuilds:
    """``plan.n`` images, encoded and decoded."""

    judge: Callable[[], Judge] = load_judge
    name: str = "vq"

    def items(self, plan: EvalPlan) -> list[VQItem]:
        stream = key("vq", plan.seed)
        return [VQItem(index=i, scene=sample(plan.level, plan.split, stream, i)) for i in range(plan.n)]

    def settings(self, model: Model) -> object:
        if not model.parts.side:
            raise ValueError("the model draws no pictures, so it has no image tokenizer; measure another part")
        return weights_digest(self.judge()).hex()

    def find(self, model: Model, items: Sequence[VQItem]) -> list[Finding]:
        side = model.parts.side
        before = np.stack([render(item.scene, side) for item in items])
        with torch.no_grad():
            codes = model.parts.vq.encode(pixels_of([item.scene for item in items], side).to(model.device))
        after = np.stack([np.asarray(image) for image in model.parts.decode(codes)])
        errors = ((after.astype(np.float64) - before) ** 2).mean((1, 2, 3)) / 255**2
        looks = zip(items, self.judge().look(before), self.judge().look(after), strict=True)
        rows = [{"real": _read(real, i.scene), "rebuilt": _read(rebuilt, i.scene)} for i, real, rebuilt in looks]
        return [
            Finding(row={**row, "error": float(e), "codes": c}, pictures={"before": b, "drawn": a})
            for row, e, c, b, a in zip(rows, errors, codes.flatten(1).tolist(), before, after, strict=True)
        ]

    def figures(self, plan: EvalPlan, items: Sequence[VQItem], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """``psnr`` is the PSNR of the mean error over all images, which is at most the mean PSNR."""
        errors = [row["error"] for row in rows]
        used = np.bincount([c for row in rows for c in row["codes"]])
        p = used[used > 0] / max(1, used.sum())
        codes = {"used": int((used > 0).sum()), "perplexity": float(np.exp(-(p * np.log(p)).sum())), "n": len(rows)}
        out: Figures = {"psnr": psnr_of_mean(errors), "psnr_mean_of_pictures": average([psnr(e) for e in errors])}
        out["codes"] = codes
        for name in ("real", "rebuilt"):
            out[f"judge_scenes_{name}"] = share(row[name]["exact"] for row in rows)
            out[f"judge_things_{name}"] = share(found for row in rows for found in row[name]["things"])
        return out


def _read(seen: Seen, scene: Scene) -> Row:
    """Whether the judge recognises the whole scene correctly, and each of its objects."""
    found = [any(right(one, obj) for one in seen.objects) for obj in scene.objects]
    return {"exact": matches(seen, scene), "things": found}
