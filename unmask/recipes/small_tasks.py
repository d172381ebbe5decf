"""What ``small`` is trained on: the tasks of its joint stages, with sources for any encoder. Public ideas: ``drawing`` and ``everything``.

As ``mini.stage3``, over both levels of the world. A source is made for an encoder (``data.deferred.References``), because its codes are
computed later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Cosine, OftenAll
from unmask.data.deferred import Rendered
from unmask.data.sources import Captions, Drawings, Edits, Encode, Planned, VisualQuestions
from unmask.data.thinking import Critiques, EditCritiques, EditPlans, Illustrations, Plans, Retries
from unmask.data.world.scenes import Draft
from unmask.objectives.masked import Dropout, Masked
from unmask.protocols import Source
from unmask.sequence import Batch, Kind
from unmask.tokens.text import Text

DRAFT_LEVELS = (("free", 0.7), ("grid", 0.3))
EVEN = Draft(counts=((1, 0.25), (2, 0.41), (3, 0.19), (4, 0.15)), alike=0.28, grouped=0.4)
MANY = Draft(counts=((1, 0.15), (2, 0.35), (3, 0.25), (4, 0.25)), alike=0.2, grouped=0.35)
COUNTED = Draft(counts=((2, 0.3), (3, 0.35), (4, 0.35)), alike=0.85, grouped=0.5)
RELATED = Draft(counts=((2, 0.5), (3, 0.25), (4, 0.25)), alike=0.0, grouped=1.0)
EDITED = Draft(grouped=0.25)
FEW = Draft(counts=((1, 0.8), (2, 0.2)))


def _text(all_masked: float) -> Absorbing:
    return Absorbing(policies={Kind.TEXT: OftenAll(policy=Cosine(), all=all_masked)})


def _code(all_masked: float) -> Absorbing:
    return Absorbing(policies={Kind.CODE: OftenAll(policy=Cosine(), all=all_masked)})


def _drop(*spans: str) -> tuple[Dropout, ...]:
    return (Dropout(spans=frozenset(spans), rate=0.1),)


_SOURCE = Dropout(spans=frozenset({"source"}), rate=0.15)
_LOOK = Masked(corruption=_text(0.4))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task: ``source(encode)`` gives a batch every ``every`` steps, whose loss counts ``weight`` times."""

    name: str
    source: Callable[[Encode], Source[Batch]]
    objective: Masked
    weight: float
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What all sources share. ``times``: multiplies the rows of a batch."""

    text: Text
    seed: int
    times: float
    look_tokens: int
    rendered: Rendered
    side: int = 256

    def texts(self, seed: int, rows: int) -> dict[str, Any]:
        """Fields of every source. ``seed``: tells sources of one kind apart."""
        batch = max(1, round(rows * self.times))
        return {"text": self.text, "seed": self.seed + seed, "batch": batch, "levels": DRAFT_LEVELS}

    def drawn(self, seed: int, rows: int) -> dict[str, Any]:
        """Fields of a source with pictures."""
        return {**self.texts(seed, rows), "side": self.side, "rendered": self.rendered}

    def seen(self, seed: int, rows: int) -> dict[str, Any]:
        """Fields of a source whose pictures are read."""
        return {**self.drawn(seed, rows), "look_tokens": self.look_tokens}


def drawing(rows: Rows) -> tuple[Part, ...]:
    """Captions to pictures: any scene, and scenes of few objects with conditions."""
    draw = Masked(dropouts=_drop("prompt"))
    return (
        Part(
            name="draw",
            source=lambda encode: Drawings(**rows.drawn(0, 48), encode=encode, draft=EVEN),
            objective=draw,
            weight=1.0,
        ),
        Part(
            name="draw_few",
            source=lambda encode: Drawings(**rows.drawn(30, 16), encode=encode, conditions=0.5, draft=FEW),
            objective=replace(draw, corruption=_code(0.3)),
            weight=1.0,
        ),
    )


def everything(rows: Rows) -> tuple[Part, ...]:
    """All tasks."""
    return (*_drawings(rows), *_edits(rows), *_answers(rows), *_plans(rows))


def _drawings(rows: Rows) -> tuple[Part, ...]:
    draw = Masked(dropouts=_drop("prompt"))
    again = Masked(dropouts=_drop("prompt", "plan", "look"))
    # Three in ten samples are like the first sampling step: the plan is known, and no code.
    planned = replace(again, corruption=_code(0.3))
    illustrated = Masked(corruption=_text(0.4), dropouts=_drop("prompt", "look", "question", "answer"))

    def drawn(seed: int, count: int, **more: Any) -> Callable[[Encode], Source[Batch]]:
        return lambda encode: Drawings(**rows.drawn(seed, count), encode=encode, **more)

    def retries(encode: Encode) -> Source[Batch]:
        return Retries(**rows.seen(0, 3), encode=encode, plan=Planned(), draft=EVEN)

    def illustrations(encode: Encode) -> Source[Batch]:
        return Illustrations(**rows.seen(0, 6), encode=encode, length=44, draft=EVEN)

    asked = replace(draw, corruption=_code(0.5))  # a condition matters most while no code is known yet
    return (
        Part(name="draw", source=drawn(0, 14, draft=EVEN), objective=draw, weight=0.8),
        Part(name="draw_asked", source=drawn(30, 8, draft=FEW, conditions=1.0), objective=asked, weight=0.8),
        Part(
            name="draw_counted",
            source=drawn(40, 6, draft=COUNTED, plan=Planned(open=0.0)),
            objective=planned,
            weight=0.5,
        ),
        Part(
            name="draw_planned", source=drawn(10, 12, draft=EVEN, plan=Planned(open=0.0)), objective=planned, weight=1.1
        ),
        Part(name="retry", source=retries, objective=again, weight=0.3),
        Part(name="illustration", source=illustrations, objective=illustrated, weight=1.0),
    )


def _edits(rows: Rows) -> tuple[Part, ...]:
    def edited(seed: int, count: int, plan: Planned | None) -> Callable[[Encode], Source[Batch]]:
        return lambda encode: Edits(**rows.seen(seed, count), encode=encode, plan=plan, draft=EDITED)

    plain = Masked(dropouts=(*_drop("prompt", "look"), _SOURCE))
    planned = Masked(dropouts=(*_drop("prompt", "look", "plan"), _SOURCE))
    return (
        Part(name="edit", source=edited(0, 10, None), objective=plain, weight=0.9),
        Part(name="edit_planned", source=edited(10, 8, Planned()), objective=planned, weight=0.7),
    )


def _answers(rows: Rows) -> tuple[Part, ...]:
    looks = VisualQuestions(**rows.seen(0, 6), questions=4, phrases=3, draft=MANY)
    reply = VisualQuestions(**rows.seen(20, 6), questions=1, phrases=0, draft=MANY, answer_length=44)
    critique = Critiques(**rows.seen(0, 6), captions=4, related=0.4, draft=MANY)
    edit_critique = EditCritiques(**rows.seen(0, 4), draft=EDITED)
    return (
        Part(name="look", source=lambda encode: looks, objective=_LOOK, weight=0.6),
        Part(name="critique", source=lambda encode: critique, objective=_LOOK, weight=1.2),
        Part(name="edit_critique", source=lambda encode: edit_critique, objective=_LOOK, weight=0.3),
        Part(name="reply", source=lambda encode: reply, objective=_LOOK, weight=0.5, every=5),
    )


def _plans(rows: Rows) -> tuple[Part, ...]:
    plans = Plans(**rows.texts(0, 8), length=44, draft=EVEN)
    related = Plans(**rows.texts(20, 16), length=44, related=0.95, draft=RELATED)
    edits = EditPlans(**rows.seen(0, 8), length=24, draft=EDITED)
    captions = Captions(**rows.texts(0, 16))
    return (
        Part(name="plan", source=lambda encode: plans, objective=Masked(), weight=0.4),
        Part(name="plan_related", source=lambda encode: related, objective=Masked(corruption=_text(0.15)), weight=1.2),
        Part(name="edit_plan", source=lambda encode: edits, objective=Masked(), weight=0.7),
        Part(name="caption", source=lambda encode: captions, objective=Masked(), weight=0.2, every=9),
    )
