"""Samples of what a model knows, mixed into fine-tuning so that it does not forget. Public idea: ``world_replay(parts)``."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One batch per step of a task that is drawn at random, as {"replay_TASK": batch}, and the objective of every task."""

    source: Weighted[Batch]
    objectives: dict[str, Masked]

    def __call__(self, step: int) -> dict[str, Batch]:
        return self.source(step)


def knows_the_world(parts: Parts) -> bool:
    """Whether a model is ``mini``, or was fine-tuned from it."""
    return parts.wording == COMPACT and parts.side == 128 and parts.net.config == mini.SIZE


def world_replay(parts: Parts, *, share: float) -> Replay:
    """All tasks of ``mini``'s last stage over scenes of the world, drawn by their weights. ``share``: batch size relative to that stage."""
    recipe = mini.stage3()
    encode = CachedEncoder(parts.codec.encode)
    assert isinstance(recipe.source, Joint) and isinstance(recipe.objective, Together)
    weights = {name: weight for name, _, weight in recipe.objective.objectives}
    objectives = {f"replay_{name}": objective for name, objective, _ in recipe.objective.objectives}
    tasks = tuple(
        (f"replay_{name}", _smaller(source, encode, share), weights[name] / every)
        for name, source, every in recipe.source.parts
    )
    return Replay(source=Weighted(parts=tasks, seed=_SEED), objectives=objectives)


def _smaller(source: Any, encode: CachedEncoder, share: float) -> Any:
    """A source of the world with the model's own codes, another seed and a smaller batch."""
    changed = {"batch": max(1, round(source.batch * share)), "seed": source.seed + _SEED}
    return replace(source, **changed, **({"encode": encode} if hasattr(source, "encode") else {}))
