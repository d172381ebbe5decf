"""The deviations of the released scripts of a family, chosen by one word.

Public idea: ``with_quirks(parts, format, "released") -> Parts``. The choices: ``usual`` is what the family's models were trained with or,
for LaViDa-O, what its published results were made with; ``released`` repeats the scripts; ``none`` has no deviation.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.pipeline.formats import Format
from unmask.tasks.lumina_dimoo import DiMOORows
from unmask.tasks.parts import Parts
from unmask.tokens import lumina_dimoo
from unmask.tokens.quirks import NO_QUIRKS, ReleasedQuirks

USUAL, RELEASED, NONE = QUIRKS = ("usual", "released", "none")


def refuse_quirks(choice: str, found: Format) -> None:
    """ValueError for an unknown choice, and for one that a family does not have."""
    if choice not in QUIRKS:
        raise ValueError(f"quirks {choice[:50]!r} is unknown; choose from {', '.join(QUIRKS)}")
    if choice != USUAL and found not in (Format.RELEASED, Format.LAVIDA, Format.DIMOO):
        raise ValueError("this model has no deviations of released scripts to choose; leave out quirks")


def with_quirks(parts: Parts, found: Format, choice: str) -> Parts:
    """The parts of a model with these deviations: of LaViDa-O all of ``ReleasedQuirks``, of LaViDa the token that is dropped behind a
    picture, of Lumina-DiMOO those of ``DiMOOQuirks``. ValueError as of ``refuse_quirks``.
    """
    refuse_quirks(choice, found)
    if choice == USUAL:
        return parts
    on = choice == RELEASED
    if found is Format.LAVIDA:
        return replace(parts, quirks=replace(parts.quirks, dropped_token=on))
    if found is Format.DIMOO:
        assert isinstance(parts.rows, DiMOORows)
        quirks = lumina_dimoo.RELEASED_QUIRKS if on else lumina_dimoo.NO_QUIRKS
        return replace(parts, rows=replace(parts.rows, quirks=quirks))
    return replace(parts, quirks=ReleasedQuirks() if on else NO_QUIRKS)
