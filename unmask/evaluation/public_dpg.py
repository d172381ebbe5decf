"""The public benchmark DPG-Bench, from its own prompts. Public idea: ``PublicDPG(prompts=read_dpg(path))``, a part.

This part generates only: ``images/<item_id>.png``, one image or a 2 x 2 grid of four, in the layout of the benchmark's scripts. Those
scripts score the images with a question-answering model. Spec 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unmask.data.dpg import DpgPrompt
from unmask.evaluation.encoders import Comparison
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row
from unmask.evaluation.strategies import GenerationStrategy, PromptGenerator
from unmask.pipeline.model import Model
from unmask.rng import key

_SIDES = {1: 1, 4: 2}  # images per prompt -> images along one side of the grid


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A prompt. Image i of its grid has the seed ``seed + i``."""

    prompt: DpgPrompt
    seed: int

    @property
    def key(self) -> str:
        return self.prompt.key

    @property
    def text(self) -> str:
        return self.prompt.text


@dataclass(frozen=True, kw_only=True)
class PublicDPG:
    """The first ``plan.n`` prompts, ``each`` (1 or 4) images per prompt. ``compare``: also compute the similarity of image and prompt."""

    prompts: tuple[DpgPrompt, ...]
    each: int = 4
    draw: GenerationStrategy = PromptGenerator()
    compare: Comparison | None = None
    name: str = "dpg"

    def __post_init__(self) -> None:
        if self.each not in _SIDES:
            raise ValueError(
                f"DPG-Bench reads one image or a 2 x 2 grid per prompt, got {self.each} images; give -n 1 or -n 4"
            )

    def items(self, plan: EvalPlan) -> list[Dense]:
        return [Dense(prompt=prompt, seed=plan.seed) for prompt in self.prompts[: plan.n]]

    def settings(self, model: Model) -> object:
        return [self.draw.settings(model), self.each, key(*((p.key, p.text) for p in self.prompts))]

    def find(self, model: Model, items: Sequence[Dense]) -> list[Finding]:
        """All items at once: first image 0 of every item, then image 1, and so on."""
        shots = [self.draw(model, [replace(item, seed=item.seed + i) for item in items]) for i in range(self.each)]
        grids = [gridded([shot[i] for shot in shots]) for i in range(len(items))]
        return [Finding(row={"kind": "prompt", "right": None}, pictures={"drawn": grid}) for grid in grids]

    def figures(self, plan: EvalPlan, items: Sequence[Dense], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """The number of generated items. They are not scored here."""
        out: Figures = {
            "prompts": len(self.prompts),
            "prompts_drawn": len(rows),
            "prompts_not_judged": len(rows),
        }
        if self.compare is not None:
            single = (part for item in items for part in self._parts(pictures(item.key, "drawn")))
            out |= self.compare.figures(single, [item.text for item in items for _ in range(self.each)])
        return out

    def _parts(self, grid: np.ndarray) -> Iterator[np.ndarray]:
        side = _SIDES[self.each]
        for row in np.split(grid, side):
            yield from np.split(row, side, axis=1)


def gridded(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One image, or four in rows of two."""
    side = _SIDES[len(pictures)]
    return np.concatenate([np.concatenate(pictures[i : i + side], 1) for i in range(0, len(pictures), side)])
