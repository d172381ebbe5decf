"""Prompts of a comparison of samplers, and what their results are judged by.

Public idea: ``read_prompts(path)``, ``world_drawings(n)`` and ``world_questions(n, side)`` return ``[Prompt]``; a metric is a function
``(prompt, result) -> float``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unmask.data.geneval import read_geneval
from unmask.data.published import Entry, FormatError, json_lines, text_of
from unmask.data.world.render import render
from unmask.evaluation import scoring
from unmask.evaluation.encoders import Encoder
from unmask.evaluation.evaluate import EvalPlan
from unmask.evaluation.judge import Judge, Seen
from unmask.evaluation.metrics import clip_score
from unmask.evaluation.public_geneval import shows as shows_prompt
from unmask.evaluation.world_geneval import GENEVAL, items_of
from unmask.evaluation.world_questions import Questions, normal

Result = str | Image.Image


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """``image``: the picture of a question · ``answer``: the right one · ``shows``: whether a picture shows what is asked for; None where
    nobody says.
    """

    text: str
    image: Path | Image.Image | None = None
    answer: str | None = None
    shows: Callable[[Seen], bool] | None = None


Metric = Callable[[Prompt, Result], float]


def read_prompts(path: Path) -> list[Prompt]:
    """A text file with a prompt on each line, or a .jsonl file of objects with ``prompt`` and optionally ``image`` (a path relative to the
    file) and ``answer``; or the prompts of GenEval (``tag``, ``include``). FormatError with file and line.
    """
    if path.suffix.lower() != ".jsonl":
        found = [Prompt(text=line.strip()) for line in text_of(path).splitlines() if line.strip()]
    else:
        entries = json_lines(path)
        if entries and "include" in entries[0].value:
            found = [Prompt(text=p.prompt, shows=partial(shows_prompt, prompt=p)) for p in read_geneval(path)]
        else:
            found = [_prompt(entry, path.parent) for entry in entries]
    if not found:
        raise FormatError(f"{path} has no prompts; write one on each line")
    return found


def _prompt(entry: Entry, folder: Path) -> Prompt:
    known = ("prompt", "image", "answer")
    if other := [name for name in entry.value if name not in known]:
        raise entry.wrong(f"unknown field {other[0]!r}", f"expected {', '.join(known)}")
    image = folder / entry.get("image", str) if "image" in entry.value else None
    if image is not None and not image.is_file():
        raise entry.wrong(f"there is no file {image}", "expected a picture, by its path relative to this file")
    answer = entry.get("answer", str) if "answer" in entry.value else None
    return Prompt(text=entry.get("prompt", str), image=image, answer=answer)


def world_drawings(count: int, seed: int) -> list[Prompt]:
    """Validation prompts of world-GenEval, its six categories in turns."""
    items = items_of(GENEVAL, EvalPlan(split="validation", n=count, seed=seed))[:count]
    return [Prompt(text=item.text, shows=partial(scoring.verdict, want=item.want)) for item in items]


def world_questions(count: int, seed: int, side: int) -> list[Prompt]:
    """Validation questions about scenes of the world, its six kinds in turns, with pictures of ``side`` pixels."""
    items = Questions().items(EvalPlan(split="validation", n=count, seed=seed))[:count]
    return [
        Prompt(text=item.text, image=Image.fromarray(render(item.scene, side)), answer=item.answer) for item in items
    ]


# -- metrics ----------------------------------------------------------------------------------------------------------


def matches(prompt: Prompt, result: Result) -> float:
    """1 where an answer is the right one, up to case, punctuation and spaces."""
    return float(normal(_text(result)) == normal(prompt.answer or ""))


def contains(prompt: Prompt, result: Result) -> float:
    """1 where an answer has the words of the right one in it."""
    return float(f" {normal(prompt.answer or '')} " in f" {normal(_text(result))} ")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """1 where the judge of the synthetic world finds in a picture what its prompt asks for."""

    judge: Judge

    def __call__(self, prompt: Prompt, result: Result) -> float:
        (seen,) = self.judge.look([np.asarray(_picture(result, self.judge.config.side))])
        return float(prompt.shows is not None and prompt.shows(seen))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """CLIP score of a picture and its prompt: 100 max(cosine, 0)."""

    encoder: Encoder

    def __call__(self, prompt: Prompt, result: Result) -> float:
        picture = np.asarray(_picture(result, None))
        score = clip_score(self.encoder.images([picture]), self.encoder.texts([prompt.text]))
        return float(score["value"])


def refuse_unanswered(prompts: Items[Prompt], metric: str) -> None:
    """ValueError where a prompt says no right answer."""
    if unknown := next((p for p in prompts if p.answer is None), None):
        raise ValueError(
            f"the metric {metric} needs the right answers, and {unknown.text!r} has none; give them as the field answer of a .jsonl file"
        )


def refuse_unseen(prompts: Items[Prompt]) -> None:
    """ValueError where a prompt does not say what its picture must show."""
    if unknown := next((p for p in prompts if p.shows is None), None):
        raise ValueError(
            f"the metric judge needs to know what a picture must show, and {unknown.text!r} does not say it; "
            "use --world N, or a .jsonl file with GenEval's fields tag and include"
        )


def _text(result: Result) -> str:
    if not isinstance(result, str):
        raise ValueError("this metric compares texts, and the task draws pictures; use judge or clip:FOLDER")
    return result


def _picture(result: Result, side: int | None) -> Image.Image:
    if isinstance(result, str):
        raise ValueError("this metric judges pictures, and the task writes text; use match or contains")
    if side is not None and max(result.size) > side:
        raise ValueError(
            f"the judge reads pictures of the synthetic world of {side} pixels, got {max(result.size)}; use another metric"
        )
    return result
