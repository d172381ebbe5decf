"""Luminance and contrast conditioning: are the requested values met (spec 2.4)? Public idea: ``Conditioned()``, a part of the suite.

The prompts are those of GenEval that leave the background open, so that the model can comply. The requested pairs occur in rendered
training scenes and are spread evenly over their range. Results are measured on the pixels, without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from unmask.data.sources import luminance_stats, pixels_of
from unmask.data.world.scenes import Draft, sample
from unmask.evaluation import scoring
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, in_turns, weights_digest
from unmask.evaluation.judge import Judge, load_judge
from unmask.evaluation.metrics import average, correlation, share
from unmask.evaluation.world_geneval import Prompt, prompts
from unmask.pipeline.model import Model, describe
from unmask.rng import key
from unmask.tasks.generate import Generate
from unmask.tasks.running import perform
from unmask.tokens.prompts import Conditions

KINDS = ("single", "colors")  # one object leaves the most background
LEVELS = 5  # luminance values, and contrast values for each
_SCENES, _SIDE = 500, 128


@dataclass(frozen=True, kw_only=True)
class ConditionedPrompt:
    """A prompt with the requested luminance and contrast."""

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
    """Pairs that occur in training scenes with one object: five luminance values with five contrast values each."""
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
    """Generated with the model's own preset."""

    judge: Callable[[], Judge] = load_judge
    name: str = "conditions"

    def items(self, plan: EvalPlan) -> list[ConditionedPrompt]:
        each = plan.each(len(KINDS))
        lists = [prompts(k, each, level=plan.level, split=plan.split, seed=plan.seed) for k in KINDS]
        asked = grid(plan.level)
        # 7 is coprime to 25, so that even a few items cover the whole grid.
        return [ConditionedPrompt(prompt=p, asked=asked[i * 7 % len(asked)]) for i, p in enumerate(in_turns(lists))]

    def settings(self, model: Model) -> object:
        Generate(prompt="a cat", conditions=Conditions()).build(model.parts)  # a model that takes no conditions says so
        return [describe(model.presets.generate(model.parts)), weights_digest(self.judge()).hex()]

    def find(self, model: Model, items: Sequence[ConditionedPrompt]) -> list[Finding]:
        model.parts.require(Generate.needs)
        tasks = [Generate(prompt=item.prompt.text, conditions=item.asked) for item in items]
        made = perform(model, tasks, [item.prompt.seed for item in items], model.presets.generate(model.parts))
        pictures = np.stack([np.asarray(image) for image in made])
        findings = []
        for item, seen, picture in zip(items, self.judge().look(pictures), pictures, strict=True):
            measured = luminance_stats(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
            row = {
                "kind": item.prompt.kind,
                "right": scoring.verdict(seen, item.prompt.want),
                "asked": _plain(item.asked),
                "obtained": _plain(measured),
            }
            findings.append(Finding(row=row, pictures={"drawn": picture}))
        return findings

    def figures(
        self, plan: EvalPlan, items: Sequence[ConditionedPrompt], rows: Sequence[Row], pictures: Pictures
    ) -> Figures:
        """Pearson's correlation and mean distance of requested and measured values; the share of images that match their prompt."""
        out: Figures = {}
        for name in ("luminance", "contrast"):
            pairs = [(row["asked"][name], row["obtained"][name]) for row in rows]
            out[name] = correlation(pairs)
            out[f"{name}_distance"] = average([abs(a - b) for a, b in pairs])
        return out | {"prompt_met": share(row["right"] for row in rows)}


def _plain(values: Conditions) -> dict[str, float]:
    assert values.luminance is not None and values.contrast is not None
    return {"luminance": round(values.luminance, 4), "contrast": round(values.contrast, 4)}
