"""The effect of layouts and best-of-N in GenEval's categories, and the accuracy of critiques. Public ideas: ``Reflections()``
and ``Critiques()``, parts of the suite.

The independent judge scores the pictures. The model's own critique decides when to stop; its accuracy is measured, too.
Source: Lavida-O (arXiv 2509.19244), tables 13 and 15.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from unmask.data.world.critiques import make_negatives
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, sample, shows_held_out
from unmask.evaluation import scoring
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, weights_digest
from unmask.evaluation.judge import Judge, load_judge
from unmask.evaluation.metrics import average, balanced, by_combination, by_kind, calibration, share
from unmask.evaluation.strategies import GenerationStrategy, PromptGenerator
from unmask.evaluation.world_geneval import GENEVAL, Prompt, PromptKind, items_of
from unmask.pipeline.model import Model, describe
from unmask.rng import key
from unmask.tasks import reflecting
from unmask.tasks.reflecting import Thinking


@dataclass(frozen=True, kw_only=True)
class Reflections:
    """Prompts of ``kinds``: by ``plain``, with a layout (the first attempt), and with up to ``thinking.attempts`` attempts."""

    plain: GenerationStrategy = PromptGenerator()
    thinking: Thinking = Thinking(plan=True, attempts=8)
    judge: Callable[[], Judge] = load_judge
    kinds: tuple[PromptKind, ...] = GENEVAL
    name: str = "reflection"

    def items(self, plan: EvalPlan) -> list[Prompt]:
        return items_of(self.kinds, plan)

    def settings(self, model: Model) -> object:
        made = (model.presets.plan, model.presets.generate, model.presets.critique)
        return [
            *(describe(make(model.parts)) for make in made),
            self.plain.settings(model),
            self.thinking.attempts,
            self.thinking.memory,
            weights_digest(self.judge()).hex(),
        ]

    def find(self, model: Model, items: Sequence[Prompt]) -> list[Finding]:
        model.parts.require(reflecting.NEEDS)
        sampler = model.presets.generate(model.parts)
        found = reflecting.think(model, [p.text for p in items], [p.seed for p in items], self.thinking, sampler)
        detections = iter(self.judge().look(np.stack([np.asarray(r.image) for attempts in found for r in attempts])))
        plain = self.plain(model, items)
        findings = []
        for prompt, attempts, picture, drawn in zip(items, found, plain, self.judge().look(plain), strict=True):
            row = {"kind": prompt.kind, "unseen": prompt.unseen, "plain": scoring.verdict(drawn, prompt.want)}
            judged = []
            for attempt in attempts:
                detected = next(detections)
                right = {
                    "right": scoring.verdict(detected, prompt.want),
                    "strict": scoring.strict(detected, prompt.want),
                }
                judged.append(right | attempt.to_json())
            row |= {"tries": judged, "right": taken({"tries": judged}, len(judged))["right"]}
            pictures = {"plain": picture} | {f"try{i}": np.asarray(r.image) for i, r in enumerate(attempts, 1)}
            findings.append(Finding(row=row, pictures=pictures))
        return findings

    def figures(self, plan: EvalPlan, items: Sequence[Prompt], rows: Sequence[Row], pictures: Pictures) -> Figures:
        """Success with at most N attempts, N doubling from 1; attempts needed; accuracy of the critiques.

        Gains are means of paired differences over prompts, with their intervals.
        """
        kinds = [kind.name for kind in self.kinds]
        out: Figures = {"plain": by_kind(rows, kinds, "plain")}
        for most in (n for n in (1, 2, 4, 8, 16, 32, 64) if n <= self.thinking.attempts):
            out[f"rounds_{most}"] = by_kind([{**r, **taken(r, most)} for r in rows], kinds)
        arms = [(r["plain"], taken(r, 1)["right"], taken(r, self.thinking.attempts)["right"]) for r in rows]
        out["gain_of_planning"] = average([float(first - plain) for plain, first, _ in arms])
        out["gain_of_reflection"] = average([float(last - first) for _, first, last in arms])
        out["gain_of_both"] = average([float(last - plain) for plain, _, last in arms])
        out |= by_combination([{**r, **taken(r, self.thinking.attempts)} for r in rows])
        out["tries"] = average([float(len(r["tries"])) for r in rows])
        first = [r["tries"][0] for r in rows]
        out["plans_with_troubles"] = share(bool(t["plan"] and t["plan"]["troubles"]) for t in first)
        return out | {"critique_of_first_try": verdicts([(t["strict"], t["accepted"], t["approval"]) for t in first])}


def taken(row: Row, most: int) -> Row:
    """The attempt that ``reflecting.best`` chooses among the first ``most``."""
    return max(row["tries"][:most], key=lambda t: (t["accepted"], t["approval"]))


def verdicts(found: Sequence[tuple[bool, bool, float]]) -> Figures:
    """(right, accepted, approval) of images -> the accuracy of the model's critiques."""
    return {
        "balanced_accuracy": balanced([(right, accepted) for right, accepted, _ in found]),
        "right_accepted": share(accepted for right, accepted, _ in found if right),
        "wrong_refused": share(not accepted for right, accepted, _ in found if not right),
        "calibration": calibration([(approval, right) for right, _, approval in found]),
    }


@dataclass(frozen=True, kw_only=True)
class CritiqueItem:
    """A rendered picture that matches ``text`` (``wanted`` is "") or differs in one point, named by ``wanted``."""

    index: int
    text: str
    scene: Scene
    wanted: str

    @property
    def key(self) -> str:
        return f"{self.index:04d}"


@dataclass(frozen=True, kw_only=True)
class Critiques:
    """Half of the images match the caption, half differ in one point. All are renderings, so the correct critique is known."""

    name: str = "critique"

    def items(self, plan: EvalPlan) -> list[CritiqueItem]:
        made: list[CritiqueItem] = []
        for number in itertools.count():
            scene = sample(plan.level, plan.split, key("critiques", plan.seed), number)
            text, negatives = make_negatives(scene, Random(f"critiques/{plan.seed}/{number}"), most=1)
            if negatives:
                wrong = len(made) % 2 == 1
                shown, wanted = (negatives[0].scene, negatives[0].critique) if wrong else (scene, "")
                made.append(CritiqueItem(index=len(made), text=text, scene=shown, wanted=wanted))
            if len(made) == plan.n:
                break
        return made

    def settings(self, model: Model) -> object:
        return describe(model.presets.critique(model.parts))

    def find(self, model: Model, items: Sequence[CritiqueItem]) -> list[Finding]:
        model.parts.require(reflecting.NEEDS)
        pictures = [Image.fromarray(render(item.scene, model.parts.side)) for item in items]
        found = reflecting.criticise(model, [item.text for item in items], pictures)
        return [
            Finding(
                row={
                    "right": reflecting.accepts(critique) == (not item.wanted),
                    "met": not item.wanted,
                    "accepted": reflecting.accepts(critique),
                    "approval": round(approval, 4),
                    "critique": critique,
                    "wanted": item.wanted,
                    "unseen": shows_held_out(item.scene),
                }
            )
            for item, (critique, approval) in zip(items, found, strict=True)
        ]

    def figures(
        self, plan: EvalPlan, items: Sequence[CritiqueItem], rows: Sequence[Row], pictures: Pictures
    ) -> Figures:
        """Accuracy of critiques, also on held-out combinations alone; how often a critique names the error in the same words."""
        outcomes = [(r["met"], r["accepted"], r["approval"]) for r in rows]
        out = verdicts(outcomes)
        for name, unseen in (("seen_combinations", False), ("held_out_combinations", True)):
            out[name] = balanced([(r["met"], r["accepted"]) for r in rows if r["unseen"] == unseen])
        return out | {"named_in_the_same_words": share(r["critique"] == r["wanted"] for r in rows if r["wanted"])}
