"""Do pictures come out as light and as contrasty as the text asks (spec 2.4)? Public idea: ``Conditioned()``, a part of the suite.

The prompts are GenEval's that leave the background open, so that the model has means to obey; what is asked for are pairs that rendered
training scenes have, even over their range. What came of it is measured from the pixels, with no model in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from unmask.data.sources import luminance_stats, pixels_of
from unmask.data.world.scenes import Draft, sample
from unmask.evaluation import scoring
from unmask.evaluation.evaluate import Figures, Finding, Pictures, Plan, Row, in_turns, weights_digest
from unmask.evaluation.judge import Judge, load_judge
from unmask.evaluation.metrics import average, correlation, share
from unmask.evaluation.world_geneval import Prompt, prompts
from unmask.pipeline.model import Model, describe
from unmask.rng import key
from unmask.tasks.generate import Generate
from unmask.tasks.running import perform
from unmask.tokens.prompts import Conditions

KINDS = ("single", "colors")  # one object: two of them leave the background less room
LEVELS = 5  # of luminance, and of contrast at each of these
_SCENES, _SIDE = 500, 128


@dataclass(frozen=True, kw_only=True)
class Lit:
    """A prompt, and the light that its picture shall have."""

    prompt: Prompt
    asked: Conditions

    @property
    def key(self) -> str:
        return self.prompt.key

    @property
    def text(self) -> str:
        return f"{self.prompt.text} {self.asked.text()}"


@cache
def grid(level: str) -> tuple[Conditions, ...]:
    """Light that the world can show: of training scenes of one object, five luminances and at each of them five contrasts."""
    draft = Draft(counts=((1, 1.0),))
    scenes = [sample(level, "train", key("conditions"), i, draft) for i in range(_SCENES)]
    there = [luminance_stats(pixels) for pixels in pixels_of(scenes, _SIDE)]
    there.sort(key=lambda c: c.luminance or 0.0)
    found = []
    for part in np.array_split(np.arange(_SCENES), LEVELS):
        some = sorted((there[i] for i in part), key=lambda c: c.contrast or 0.0)
        found += [some[int((k + 0.5) * len(some) / LEVELS)] for k in range(LEVELS)]
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Drawn as the model's own preset has it."""

    judge: Callable[[], Judge] = load_judge
    name: str = "conditions"

    def items(self, plan: Plan) -> list[Lit]:
        each = plan.each(len(KINDS))
        lists = [prompts(k, each, level=plan.level, split=plan.split, seed=plan.seed) for k in KINDS]
        asked = grid(plan.level)
        # Seven has nothing in common with 25: few items, too, are spread over the whole grid.
        return [Lit(prompt=p, asked=asked[i * 7 % len(asked)]) for i, p in enumerate(in_turns(lists))]

    def settings(self, model: Model) -> Any:
        return [describe(model.presets.generate(model.parts)), weights_digest(self.judge()).hex()]

    def find(self, model: Model, items: Sequence[Lit]) -> list[Finding]:
        model.parts.require(Generate.needs)
        tasks = [Generate(prompt=item.prompt.text, conditions=item.asked) for item in items]
        made = perform(model, tasks, [item.prompt.seed for item in items], model.presets.generate(model.parts))
        pictures = np.stack([np.asarray(image) for image in made])
        findings = []
        for item, seen, picture in zip(items, self.judge().look(pictures), pictures, strict=True):
            light = luminance_stats(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
            row = {
                "kind": item.prompt.kind,
                "right": scoring.verdict(seen, item.prompt.want),
                "asked": _plain(item.asked),
                "obtained": _plain(light),
            }
            findings.append(Finding(row=row, pictures={"drawn": picture}))
        return findings

    def figures(self, plan: Plan, items: Sequence[Lit], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """Asked against obtained: Pearson's correlation and the mean distance; whether the picture still is of its prompt."""
        out: Figures = {}
        for name in ("luminance", "contrast"):
            pairs = [(row["asked"][name], row["obtained"][name]) for row in rows]
            out[name] = correlation(pairs)
            out[f"{name}_distance"] = average([abs(a - b) for a, b in pairs])
        return out | {"prompt_met": share(row["right"] for row in rows)}


def _plain(light: Conditions) -> dict[str, float]:
    assert light.luminance is not None and light.contrast is not None
    return {"luminance": round(light.luminance, 4), "contrast": round(light.contrast, 4)}
