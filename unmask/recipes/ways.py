"""How the published families are trained: their rows, the loss of each kind of row, and how the losses add up.

Public ideas: ``Way``; ``mmada_way``, ``lavida_way``, ``dream_way``, ``dimple_way`` and ``dimoo_way`` return one, and ``way_of(start)`` that
which fine-tuning uses for a model. ``Given`` holds the arguments of fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.counted import Counted
from unmask.corruption.schedules import Uniform
from unmask.data.own import Format
from unmask.objectives.importance import EachRow, InverseMean, Linear, Neighbours
from unmask.objectives.masked import InverseTime, Masked, Pooled, Scores, Together, Weight
from unmask.objectives.next_token import NextToken
from unmask.pipeline.formats import Format as Layout
from unmask.recipes.replay import Replay
from unmask.recipes.starting import Start
from unmask.tasks.family_rows import (
    DiMOOExamples,
    MMaDAExamples,
    Slotted,
    dimoo_formats,
    family_codes,
    mmada_formats,
    reading_formats,
    to_block,
    to_random_length,
)
from unmask.tasks.mmada import MMaDARows

_UNIFORM = Absorbing(otherwise=Uniform())
STAGES = {  # of MMaDA: weights of the losses of drawings, texts and understanding (its configurations)
    "1": (1.0, 0.1, 1.0),
    "2": (1.0, 0.1, 0.5),
    "3": (1.0, 0.4, 0.5),
    "cot": (1.0, 0.5, 0.5),
    "4": (0.05, 0.6, 0.4),
}
WEIGHTS: Mapping[str, Weight] = {"cart": Neighbours(p=0.1), "original": InverseMean(), "linear": Linear()}
PARTS_OF_DIMPLE: Mapping[str, Callable[[str], bool]] = {  # trained in its stages; the tower never is
    "alignment": lambda name: name.startswith("vision.project"),
    "instruction": lambda name: not name.startswith("vision.tower"),
    "diffusion": lambda name: not name.startswith("vision."),
}
MASKS = ("single", "dual")


@dataclass(frozen=True, kw_only=True)
class Given:
    """The arguments of ``finetune``, without the model."""

    data: str = ""
    lora: int = 0
    alpha: float = 0.0
    quantise: str = ""
    batch: int = 24
    only: str = ""
    freeze: str = ""
    replay: str = "auto"
    replay_share: float = 0.75
    distill: float = 4.0
    fit: str = "pad"
    holdout: float = 0.1
    codes: str = ""
    masks: str = "single"
    slots: float = 0.0
    seed: int = 0
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Way:
    """``formats(start, folder)``: the rows, image codes kept in the run's folder · ``objective``: by the name of a format · ``together``:
    the objective of a step, from those of the user's rows and the replayed ones · ``draws``: whether sample sheets can be drawn.
    """

    formats: Callable[[Start, Path | None], tuple[Format, ...]]
    objective: Callable[[str], Scores]
    together: Callable[[Mapping[str, Scores], Replay | None], Together | Pooled] = field(
        default_factory=lambda: partial(summed, {})
    )
    draws: bool = False


def summed(weights: Mapping[str, float], own: Mapping[str, Scores], replayed: Replay | None) -> Together:
    """The sum of the losses of the user's rows, by format with these weights (1 where there is none), and of the replayed ones."""
    mine = tuple((name, objective, weights.get(name, 1.0)) for name, objective in own.items())
    kept = replayed.objectives if replayed else dict[str, tuple[Scores, float]]()
    return Together(objectives=(*mine, *((name, objective, weight) for name, (objective, weight) in kept.items())))


def way_of(start: Start) -> Way | None:
    """The way of a family that has rows of its own, as its last published stage; None for LaViDa-O, our models and text models.

    ValueError for LLaDA-V and ReDiff, whose pictures are encoded before a sequence is built, so that no gradient reaches the projector, and
    for LLaDA2.0-Uni, whose training rows are not published.
    """
    if start.spec.format is Layout.LLADA2_UNI:
        raise ValueError(
            f"{start.name} is LLaDA2.0-Uni, whose training rows are not published; quantise with --method rtn, or train another family"
        )
    if start.spec.format is Layout.REDIFF:
        raise ValueError(
            f"{start.name} has the layout of LLaDA-V, which cannot be trained here yet; use a model in LaViDa's layout"
        )
    found = {
        Layout.LAVIDA: lavida_way,
        Layout.DIMPLE: dimple_way,
        Layout.MMADA: mmada_way,
        Layout.DIMOO: dimoo_way,
    }.get(start.spec.format)
    return found() if found else None


def chosen(name: str, value: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """``value``, an argument of a recipe. ValueError unless it is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; choose from {', '.join(known)}")
    return value


def mmada_way(stage: str = "3") -> Way:
    """Masked codes and the two tokens around a picture have the plain mean, texts 1 / p by row, and so has a description with its picture.
    In stages 1 and 2 any token of a text without a picture may be masked; from stage 3 on only answers. No published stage says the weight
    of descriptions; they have that of drawings.
    """
    drawing, text, understanding = STAGES[chosen("stage", stage, STAGES)]
    whole = stage in ("1", "2")
    draws = Masked(corruption=Counted(whole=torch.round, scored=frozenset({"begin", "end"})))
    answers = Masked(corruption=_UNIFORM, weight=EachRow())
    objectives = {"draw": draws, "describe": answers, "look": answers, "think": answers}
    objectives["talk"] = Masked(corruption=_UNIFORM, weight=InverseTime()) if whole else answers
    weights = {"draw": drawing, "talk": text, "describe": understanding, "look": understanding, "think": drawing}

    def formats(start: Start, folder: Path | None) -> tuple[Format, ...]:
        parts = start.parts
        assert isinstance(parts.rows, MMaDARows)
        codes = family_codes(parts, folder)
        made = MMaDAExamples(parts=parts, codes=codes, field=parts.rows.field, whole=whole)
        return mmada_formats(made, start.presets)

    return Way(formats=formats, objective=lambda name: objectives[name], together=partial(summed, weights), draws=True)


def lavida_way(slots: float = 0.0) -> Way:
    """Uniform mask ratios, and every row twice: with a mask and with its complement (arXiv 2505.16839, section 3.2). ``slots``: share of
    the answers that have slots for infilling, 0.8 in the published third stage.
    """
    if not 0 <= slots <= 1:
        raise ValueError(f"slots is {slots}; give a share from 0 to 1")

    def formats(start: Start, folder: Path | None) -> tuple[Format, ...]:
        parts, after = start.parts, start.parts.wording.after_turn
        if not slots:
            return reading_formats(parts, start.presets, partial(to_block, after=after))
        if parts.slots is None:
            raise ValueError(f"{start.name} has no slots for infilling, which LaViDa on LLaDA has; leave out slots")
        answered = Slotted(slots=parts.slots, share=slots, after=after)
        return reading_formats(parts, start.presets, answered, parts.slots.marker)

    objective = Masked(corruption=_UNIFORM, complementary=True)
    return Way(formats=formats, objective=lambda name: objective)


def dream_way(chat: Callable[[Start], Format], weight: str = "cart") -> Way:
    """Uniform mask ratios and the weights of Dream-Coder's trainer. ``chat``: the rows of conversations."""
    objective = Masked(corruption=_UNIFORM, weight=WEIGHTS[chosen("weight", weight, WEIGHTS)])
    return Way(formats=lambda start, folder: (chat(start),), objective=lambda name: objective)


def dimple_way(stage: str = "diffusion", masks: str = "single") -> Way:
    """Stages 1 and 2 predict the next token, stage 3 masked ones, with one mask (``single``) or with its complement too (``dual``)."""
    chosen("stage", stage, PARTS_OF_DIMPLE)
    dual = chosen("masks", masks, MASKS) == "dual"
    objective = Masked(corruption=_UNIFORM, complementary=dual) if stage == "diffusion" else NextToken()

    def formats(start: Start, folder: Path | None) -> tuple[Format, ...]:
        return reading_formats(start.parts, start.presets, to_random_length)

    return Way(formats=formats, objective=lambda name: objective)


def dimoo_way(length: int = 1024, change: str = "edit") -> Way:
    """Cosine ratios, of a picture, an answer and its filler apart, and one mean over all masked tokens. ``length``: of an answer with its
    filler · ``change``: the released name of the task of edits.
    """
    objective = Masked(corruption=Counted(short=5))

    def formats(start: Start, folder: Path | None) -> tuple[Format, ...]:
        codes = family_codes(start.parts, folder)
        return dimoo_formats(DiMOOExamples(parts=start.parts, codes=codes, length=length, change=change), start.presets)

    def together(own: Mapping[str, Scores], replayed: Replay | None) -> Pooled:
        mine = tuple((name, task) for name, task in own.items() if isinstance(task, Masked))
        return Pooled(objectives=mine, others=summed({}, {}, replayed) if replayed else None)

    return Way(formats=formats, objective=lambda name: objective, together=together, draws=True)
