"""Answering questions about scenes of the world, kind by kind. Public idea: ``Questions()``, a part of the suite.

One question per picture, so that answers are independent. An answer is right if it equals the true one up to case, punctuation and
spaces. ``majority``: the score of the best constant answer to the same questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from unmask.data.sources import pixels_of
from unmask.data.world.questions import KINDS, questions
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, sample, shows_held_out
from unmask.evaluation.evaluate import EvalPlan, Figures, Finding, Pictures, Row, in_turns
from unmask.evaluation.metrics import Figure, by_combination, share
from unmask.pipeline.model import Model, describe
from unmask.rng import key
from unmask.tasks import understand
from unmask.tasks.running import perform

_SIDE = 128  # pixels of the world's pictures
_ATTEMPTS = 200  # scenes sampled per question


@dataclass(frozen=True, kw_only=True)
class QuestionItem:
    """``text`` is the question about ``scene``, ``answer`` the true answer."""

    kind: str
    index: int
    seed: int
    text: str
    answer: str
    scene: Scene

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.index:04d}"


def asked(kind: str, count: int, plan: EvalPlan) -> list[QuestionItem]:
    """The first ``count`` questions of a kind, each about a different picture."""
    made: list[QuestionItem] = []
    stream = key("questions", kind, plan.seed)
    for number in range(_ATTEMPTS * count):
        scene = sample(plan.level, plan.split, stream, number)
        found = [q for q in questions(scene, Random(f"questions/{kind}/{plan.seed}/{number}")) if q.kind == kind]
        if found:
            seed = plan.seed * 100_000 + len(made)
            text, answer = found[0].text, found[0].answer
            made.append(QuestionItem(kind=kind, index=len(made), seed=seed, text=text, answer=answer, scene=scene))
        if len(made) == count:
            return made
    raise ValueError(
        f"only {len(made)} of {count} {kind} questions found for {plan.split} scenes of level {plan.level!r}"
    )


def normal(answer: str) -> str:
    """Lower case, words only, separated by single spaces."""
    return " ".join(re.findall(r"\w+", answer.lower()))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The same number of questions of each of the six kinds."""

    name: str = "questions"

    def items(self, plan: EvalPlan) -> list[QuestionItem]:
        lists = [asked(kind, plan.each(len(KINDS)), plan) for kind in KINDS]
        return in_turns(lists)

    def settings(self, model: Model) -> object:
        return describe(model.presets.ask(model.parts))

    def find(self, model: Model, items: Sequence[QuestionItem]) -> list[Finding]:
        tasks = asks(model, items)
        answers = perform(model, tasks, [item.seed for item in items], model.presets.ask(model.parts))
        return [Finding(row=_row(item, answer)) for item, answer in zip(items, answers, strict=True)]

    def figures(
        self, plan: EvalPlan, items: Sequence[QuestionItem], rows: Sequence[Row], pictures: Pictures
    ) -> Figures:
        kinds = {kind: _figure([r for r in rows if r["kind"] == kind]) for kind in KINDS}
        constant = sum(f["majority"] * f["n"] for f in kinds.values()) / max(1, len(rows))
        overall = share((r["right"] for r in rows), majority=constant)
        return {"overall": overall, **kinds, **by_combination(rows)}


def asks(model: Model, items: Sequence[QuestionItem]) -> list[understand.Ask]:
    """The questions with pictures of the size that the model draws, or, for one that only reads, of 128 pixels and with an answer of its
    preset's length.
    """
    side, scenes = model.parts.side, [item.scene for item in items]
    if side:
        pixels = pixels_of(scenes, side)
        return [understand.Ask(pixels=p, question=item.text) for p, item in zip(pixels, items, strict=True)]
    views = [model.parts.image_views(Image.fromarray(render(scene, _SIDE))) for scene in scenes]
    length = model.presets.answer
    return [understand.Ask(pixels=v, question=i.text, length=length) for v, i in zip(views, items, strict=True)]


def _row(item: QuestionItem, answer: str) -> Row:
    return {
        "kind": item.kind,
        "right": normal(answer) == normal(item.answer),
        "unseen": shows_held_out(item.scene),
        "wanted": item.answer,
        "answer": answer,
    }


def _figure(rows: Sequence[Row]) -> Figure:
    """The share that is right, with the share of the most frequent true answer."""
    if not rows:
        return share([], majority=0.0, majority_answer="")
    answer, times = Counter(normal(r["wanted"]) for r in rows).most_common(1)[0]
    return share((r["right"] for r in rows), majority=times / len(rows), majority_answer=answer)
