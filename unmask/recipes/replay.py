"""Samples of what a model knows, mixed into fine-tuning so that it does not forget. Public idea: ``world_replay(parts)`` for
models of ``mini``'s world, ``data_replay(source)`` for others.

``distilled(replay, teacher, weight)`` keeps the model's predictions for them instead of training it on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.data.mixture import Joint, Weighted
from unmask.data.own import OwnData
from unmask.data.sources import CachedEncoder
from unmask.models.elastic import Elastic
from unmask.models.lora import adapters, without_adapters
from unmask.objectives.distillation import Distillation, Teacher
from unmask.objectives.masked import Masked, MaskedModel, Scores, Together
from unmask.recipes import mini
from unmask.sequence import Batch
from unmask.tasks.parts import Parts
from unmask.tokens.prompts import COMPACT
from unmask.training.optim import move_module

_SEED = 77  # of the replayed scenes
# Tasks that draw from a text, and how often each comes; the stage itself had few rows of them, after stages that only drew.
_DRAWING = {"draw": 0.35, "draw_counted": 0.2, "draw_planned": 0.35, "draw_asked": 0.1}
_LAYOUTS = {"plan": 0.6, "plan_related": 0.4}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """{"replay_TASK": batch} of several tasks in every step, and the objective and weight of each.

    Pictures and layouts come with every step, because a model that draws one new thing at every step draws it everywhere otherwise
    (docs/log.md).
    """

    sources: tuple[Callable[[int], Mapping[str, Batch]], ...]
    objectives: Mapping[str, tuple[Scores, float]]

    def __call__(self, step: int) -> dict[str, Batch]:
        return {name: batch for source in self.sources for name, batch in source(step).items()}


def knows_the_world(parts: Parts) -> bool:
    """Whether a model is ``mini``, or was fine-tuned from it."""
    return parts.wording == COMPACT and parts.side == 128 and parts.net.config == mini.SIZE


def world_replay(parts: Parts, *, rows: int, share: float) -> Replay:
    """All tasks of ``mini``'s last stage over scenes of the world: in every step one that draws, one that plans and another one, each
    chosen at random by weight. ``rows``: batch of the tasks that draw or plan from a text · ``share``: batch of the others relative to
    that stage, whose weights they have.
    """
    recipe = mini.stage3()
    encode = CachedEncoder(parts.codec.encode)
    assert isinstance(recipe.source, Joint) and isinstance(recipe.objective, Together)
    weights = {name: weight for name, _, weight in recipe.objective.objectives}
    tasks = recipe.objective.objectives
    objectives = {f"replay_{name}": (objective, 1.0) for name, objective, _ in tasks}
    drawing, planning, others = (list[tuple[str, Any, float]]() for _ in range(3))
    for name, source, every in recipe.source.parts:
        if name in _DRAWING:
            drawing.append((f"replay_{name}", _changed(source, encode, lambda stage: rows), _DRAWING[name]))
        elif name in _LAYOUTS:
            planning.append((f"replay_{name}", _changed(source, encode, lambda stage: rows), _LAYOUTS[name]))
        else:
            smaller = _changed(source, encode, lambda stage: max(1, round(stage * share)))
            others.append((f"replay_{name}", smaller, weights[name] / every))
    kinds = (drawing, others, planning)
    sources = tuple(Weighted(parts=tuple(parts), seed=_SEED + i) for i, parts in enumerate(kinds))
    return Replay(sources=sources, objectives=objectives)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A source whose batches are called replay_NAME."""

    source: OwnData

    def __call__(self, step: int) -> dict[str, Batch]:
        return {f"replay_{name}": batch for name, batch in self.source(step).items()}


def data_replay(source: OwnData, objectives: Mapping[str, Scores]) -> Replay:
    """A user's samples of what the model knows, as rows of every task that they have. ``objectives``: by task."""
    return Replay(
        sources=(Renamed(source=source),),
        objectives={f"replay_{name}": (objective, 1.0) for name, objective in objectives.items()},
    )


def distilled(replay: Replay, teacher: Teacher, weight: float) -> Replay:
    """The same rows with a loss that keeps the predictions of ``teacher`` (``objectives.distillation``)."""
    masked = {name: objective for name, (objective, _) in replay.objectives.items() if isinstance(objective, Masked)}
    kept = {name: (Distillation(masked=objective, teacher=teacher), weight) for name, objective in masked.items()}
    return replace(replay, objectives=kept)


@dataclass(frozen=True, kw_only=True)
class Before:
    """A model before its fine-tuning, as a teacher: with its adapters off, or a copy from ``network()`` if all its weights are trained."""

    network: Callable[[], Elastic]
    copies: dict[str, Elastic] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, model: MaskedModel) -> AbstractContextManager[MaskedModel]:
        assert isinstance(model, Elastic)
        if any(True for _ in adapters(model)):
            return without_adapters(model)
        if "it" not in self.copies:
            copy = self.network().requires_grad_(False)
            move_module(copy, model.embed.weight.device, model.embed.weight.dtype)
            self.copies["it"] = copy
        return nullcontext(self.copies["it"])


def _changed(source: Any, encode: CachedEncoder, batch: Callable[[int], int]) -> Any:
    """A source of the world with the model's own codes, another seed and another batch, from that of the stage."""
    coded = {"encode": encode} if hasattr(source, "encode") else {}
    return replace(source, batch=batch(source.batch), seed=source.seed + _SEED, **coded)
