"""The deviations of the released scripts of a family, chosen by one word.

Public idea: ``with_quirks(parts, format, "released") -> Parts``. The choices: ``usual`` is what the family's models were trained with or,
for LaViDa-O, what its published results were made with; ``released`` repeats the scripts; ``none`` has no deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from unmask.pipeline.formats import Format
from unmask.tasks.llada2_uni import UniRows, edited
from unmask.tasks.lumina_dimoo import DiMOORows
from unmask.tasks.parts import Parts, Quirked
from unmask.tokens import lumina_dimoo
from unmask.tokens.quirks import NO_QUIRKS, ReleasedQuirks

USUAL, RELEASED, NONE = QUIRKS = ("usual", "released", "none")
_WITH_QUIRKS = (Format.RELEASED, Format.LAVIDA, Format.REDIFF, Format.DIMOO, Format.LLADA2_UNI)
_ABSENT = "this model has no deviations of released scripts to choose; leave out quirks"


def refuse_quirks(choice: str, found: Format | None) -> None:
    """ValueError for an unknown choice, and for one that a family does not have (None: one without any)."""
    _refuse_unknown(choice)
    if choice != USUAL and found not in _WITH_QUIRKS:
        raise ValueError(_ABSENT)


def with_quirks(parts: Parts, found: Format, choice: str) -> Parts:
    """The parts of a model with these deviations, and with the others to choose: of LaViDa-O all of ``ReleasedQuirks``, of LaViDa and
    LLaDA-V the token that is dropped behind a picture, of Lumina-DiMOO those of ``DiMOOQuirks``, of LLaDA2.0-Uni questions without roles
    and edits of the middle of a picture. ValueError as of ``refuse_quirks``.
    """
    refuse_quirks(choice, found)
    return chosen(replace(parts, choices=_choices(parts, found)), choice)


def chosen(parts: Parts, choice: str) -> Parts:
    """The same parts with other deviations. ValueError for an unknown choice, and for parts without one."""
    _refuse_unknown(choice)
    if not parts.choices and choice != USUAL:
        raise ValueError(_ABSENT)
    found = parts.choices.get(choice)
    if found is None:
        return parts
    return replace(parts, quirks=found.quirks, rows=found.rows, frame=found.frame or parts.frame)


def _choices(parts: Parts, found: Format) -> Mapping[str, Quirked]:
    usual = Quirked(quirks=parts.quirks, rows=parts.rows)
    if found in (Format.LAVIDA, Format.REDIFF):
        on, off = (replace(usual, quirks=replace(parts.quirks, dropped_token=drops)) for drops in (True, False))
    elif found is Format.DIMOO:
        assert isinstance(parts.rows, DiMOORows)
        named = (lumina_dimoo.RELEASED_QUIRKS, lumina_dimoo.NO_QUIRKS)
        on, off = (replace(usual, rows=replace(parts.rows, quirks=quirks)) for quirks in named)
    elif found is Format.LLADA2_UNI:
        assert isinstance(parts.rows, UniRows)
        cut = partial(edited, factor=parts.vq.config.factor, cut=True)
        usual = replace(usual, frame=parts.frame)
        on, off = replace(usual, rows=replace(parts.rows, bare=True), frame=cut), usual
    elif found is Format.RELEASED:
        on, off = (replace(usual, quirks=quirks) for quirks in (ReleasedQuirks(), NO_QUIRKS))
    else:
        return {}
    return {USUAL: usual, RELEASED: on, NONE: off}


def _refuse_unknown(choice: str) -> None:
    if choice not in QUIRKS:
        raise ValueError(f"quirks {choice!r:.52} is unknown; choose from {', '.join(QUIRKS)}")
