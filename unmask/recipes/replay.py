"""Samples of what a model knows, mixed into fine-tuning so that it does not forget. Public idea: ``world_replay(parts)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from unmask.data.mixture import Joint, Weighted
from unmask.data.sources import CachedEncoder
from unmask.objectives.masked import Masked, Together
from unmask.recipes import mini
from unmask.sequence import Batch
from unmask.tasks.parts import Parts
from unmask.tokens.prompts import COMPACT

_SEED = 77  # of the replayed scenes
# Tasks that draw from a text, and how often each comes; the stage itself had few rows of them, after stages that only drew.
_DRAWING = {"draw": 0.35, "draw_counted": 0.2, "draw_planned": 0.35, "draw_asked": 0.1}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """{"replay_TASK": batch} of a task that draws and of another one, each drawn at random by weight, and the objective of every task.

    Pictures come with every step, because a model that draws one new thing at every step draws it everywhere otherwise (docs/log.md).
    """

    sources: tuple[Weighted[Batch], ...]
    objectives: dict[str, Masked]

    def __call__(self, step: int) -> dict[str, Batch]:
        return {name: batch for source in self.sources for name, batch in source(step).items()}


def knows_the_world(parts: Parts) -> bool:
    """Whether a model is ``mini``, or was fine-tuned from it."""
    return parts.wording == COMPACT and parts.side == 128 and parts.net.config == mini.SIZE


def world_replay(parts: Parts, *, rows: int, share: float) -> Replay:
    """All tasks of ``mini``'s last stage over scenes of the world. ``rows``: batch of the tasks that draw from a text · ``share``: batch of
    the others relative to that stage, whose weights they have.
    """
    recipe = mini.stage3()
    encode = CachedEncoder(parts.codec.encode)
    assert isinstance(recipe.source, Joint) and isinstance(recipe.objective, Together)
    weights = {name: weight for name, _, weight in recipe.objective.objectives}
    tasks = recipe.objective.objectives
    objectives = {f"replay_{name}": objective for name, objective, _ in tasks if isinstance(objective, Masked)}
    drawing, others = list[tuple[str, Any, float]](), list[tuple[str, Any, float]]()
    for name, source, every in recipe.source.parts:
        if name in _DRAWING:
            drawing.append((f"replay_{name}", _changed(source, encode, lambda stage: rows), _DRAWING[name]))
        else:
            smaller = _changed(source, encode, lambda stage: max(1, round(stage * share)))
            others.append((f"replay_{name}", smaller, weights[name] / every))
    sources = (Weighted(parts=tuple(drawing), seed=_SEED), Weighted(parts=tuple(others), seed=_SEED + 1))
    return Replay(sources=sources, objectives=objectives)


def _changed(source: Any, encode: CachedEncoder, batch: Callable[[int], int]) -> Any:
    """A source of the world with the model's own codes, another seed and another batch, from that of the stage."""
    coded = {"encode": encode} if hasattr(source, "encode") else {}
    return replace(source, batch=batch(source.batch), seed=source.seed + _SEED, **coded)
