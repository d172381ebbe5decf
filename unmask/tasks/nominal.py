"""Rows of usual lengths without any data, to plan memory. Public idea: ``nominal(name, ...) -> Sequence``, with zeros for all ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.models.sizes import VisionConfig
from unmask.sequence import Kind, Sequence, Span

PROMPT, QUESTION, ANSWER, PLAN, CRITIQUE, ATTEMPTS = (
    256,
    128,
    128,
    64,
    32,
    5,
)  # text tokens; earlier pictures in a prompt


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What the rows of a model are like. ``grid``: codes of a picture along one side · ``fold``: codes of a position along one side ·
    ``vision``: the tower, None: no pictures are read · ``tiled``: a picture is read as a whole and in four tiles (spec 1.9).
    """

    grid: int
    fold: int
    vision: VisionConfig | None
    tiled: bool


# The spans of each kind of row: given text, pictures that are read, source codes, text to predict, codes to predict.
_ROWS = {
    "draw": (PROMPT, 0, False, 0, True),
    "draw_planned": (PROMPT + PLAN, 0, False, 0, True),
    "draw_open": (PROMPT, 0, False, PLAN, True),
    "draw_unified": (PROMPT, 0, False, PLAN, True),
    "plan": (PROMPT, 0, False, PLAN, False),
    "describe": (QUESTION, 1, False, ANSWER, False),
    "chat": (QUESTION, 1, False, ANSWER, False),
    "talk": (QUESTION, 0, False, ANSWER, False),
    "ground": (QUESTION, 1, False, 4, False),
    "edit": (PROMPT, 1, True, 0, True),
    "edit_planned": (PROMPT + PLAN, 1, True, 0, True),
    "edit_open": (PROMPT, 1, True, PLAN, True),
    "edit_plan": (PROMPT, 1, False, PLAN, False),
    "critique": (QUESTION, 1, False, CRITIQUE, False),
    "retry": (PROMPT, ATTEMPTS, False, 0, True),
    "retry_planned": (PROMPT + PLAN, ATTEMPTS, False, 0, True),
    "retry_open": (PROMPT, ATTEMPTS, False, PLAN, True),
    "retry_plan": (PROMPT, ATTEMPTS, False, PLAN, False),
}


def nominal(name: str, geometry: Geometry) -> Sequence:
    """A row of the format ``name``. KeyError for another name."""
    given, pictures, sourced, answer, drawn = _ROWS[name]
    tower, side, found = geometry.vision, geometry.grid, list[Span]()

    def add(span: str, kind: int, length: int, *, codes: bool = False, image: int = 0, writable: bool = False) -> None:
        start = found[-1].stop if found else 0
        grid, fold = ((side, side), geometry.fold) if codes else (None, 1)
        found.append(
            Span(
                name=span,
                kind=kind,
                start=start,
                stop=start + length,
                grid=grid,
                fold=fold,
                image=image,
                writable=writable,
            )
        )

    views = 0
    add("prompt", Kind.TEXT, given)
    for _ in range(pictures if tower else 0):
        assert tower is not None
        many, tokens = _views(tower, geometry.tiled and pictures == 1)
        add("look", Kind.FEATURE, tokens, image=views)
        views += many
    if sourced:
        add("source", Kind.CODE, side * side, codes=True)
    if answer:
        add("answer", Kind.TEXT, answer, writable=True)
    if drawn:
        add("image", Kind.CODE, side * side, codes=True, writable=True)
    length = found[-1].stop
    return Sequence(
        ids=torch.zeros(length, dtype=torch.long),
        masked=torch.zeros(length, dtype=torch.bool),
        spans=tuple(found),
        pixels=torch.zeros(views, 3, tower.image, tower.image) if tower and views else None,
        feature=torch.zeros(length, dtype=torch.long) if views else None,
        feature_rows=views * tower.tokens if tower else 0,
    )


def _views(tower: VisionConfig, tiled: bool) -> tuple[int, int]:
    """Views of a square picture, and the tokens that read them."""
    side = tower.pooled
    return (5, side * side + 2 * side * (2 * side + 1)) if tiled else (1, tower.tokens)
