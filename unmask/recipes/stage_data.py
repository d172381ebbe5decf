"""A user's data as the rows of a stage of ``recipes.lavida_o``.

Public idea: ``split(data, share)`` -> training and validation rows, ``stage_formats(rows, ...)`` -> the formats of ``tasks.stage_rows``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from unmask.corruption.collapsing import Collapsing
from unmask.data.opening import holdout, open_data
from unmask.data.order import Mixture, open_mixture
from unmask.data.own import Format
from unmask.data.samples import Boxes, Broken, Critique, DataError, Sample, pictures_of, texts_of
from unmask.tasks.examples import safe
from unmask.tasks.stage_rows import Objects, StageRows


def stage_formats(rows: StageRows, context: int, unified: Collapsing | None) -> tuple[Format, ...]:
    """The formats of ``StageRows``, from captions and edits."""
    guarded = partial(safe, context=context)
    layout, attempts, both = rows.has_layout, rows.has_attempts, rows.has_both
    drawn = (
        Format(name="draw", task="caption", row=guarded(rows.draw)),
        Format(name="draw_planned", task="caption", row=guarded(rows.draw_planned), suits=layout),
        Format(name="draw_open", task="caption", row=guarded(rows.draw_open), suits=layout),
        Format(name="plan", task="caption", row=guarded(rows.plan), suits=layout),
        Format(name="retry", task="caption", row=guarded(rows.retry), suits=attempts),
        Format(name="retry_planned", task="caption", row=guarded(rows.retry_planned), suits=both),
        Format(name="retry_open", task="caption", row=guarded(rows.retry_open), suits=both),
        Format(name="retry_plan", task="caption", row=guarded(rows.retry_plan), suits=both),
        Format(name="edit_planned", task="edit", row=guarded(rows.edit_planned), suits=layout),
        Format(name="edit_open", task="edit", row=guarded(rows.edit_open), suits=layout),
        Format(name="edit_plan", task="edit", row=guarded(rows.edit_plan), suits=layout),
    )
    if unified is None:
        return drawn
    row = guarded(rows.unified(unified.share()))
    return (*drawn, Format(name="draw_unified", task="caption", row=row, suits=layout))


def apart(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """The formats of fine-tuning, with conversations without pictures as "talk": processes that share weights must all use the vision
    part in a step, or none.
    """
    chat = next((f for f in formats if f.name == "chat"), None)
    if chat is None:
        return formats
    talk = replace(chat, name="talk", suits=lambda sample: not pictures_of(sample))
    return (*(replace(f, suits=_shows) if f is chat else f for f in formats), talk)


def _shows(sample: Sample) -> bool:
    return bool(pictures_of(sample))


def split(data: str, share: float) -> tuple[Mixture, Mixture | None]:
    """Training and validation rows of PATH or PATH=WEIGHT, separated by commas. DataError for a set without rows."""
    most, rest = holdout(share)
    whole = open_mixture([data] if Path(data).exists() else data.split(","), open_data)
    if empty := next((part.name for part in whole.parts if not len(part.data)), None):
        raise DataError(f"{empty} has no rows; see docs/data.md for what may be in it")
    training = tuple(replace(p, data=kept) if len(kept := p.data.split(most)) else p for p in whole.parts)
    held = tuple(
        replace(p, data=checked) for p in whole.parts if len(p.data.split(most)) and len(checked := p.data.split(rest))
    )
    return Mixture(parts=training), Mixture(parts=held) if held else None


def boxes_of(data: Mixture) -> dict[str, Objects]:
    """The objects of every picture that has a row of boxes, by the picture's name."""
    rows = (data[i] for i in range(len(data)) if data.task(i) == "boxes")
    return {row.image.name: row.phrases for row in rows if isinstance(row, Boxes)}


def attempts_of(data: Mixture) -> dict[str, list[Critique]]:
    """Critiques by the prompt of their pictures."""
    found: dict[str, list[Critique]] = {}
    for row in (data[i] for i in range(len(data)) if data.task(i) == "critique"):
        if isinstance(row, Critique):
            found.setdefault(row.prompt, []).append(row)
    return found


def all_texts(data: Mixture) -> list[str]:
    return [
        text for row in (data[i] for i in range(len(data))) if not isinstance(row, Broken) for text in texts_of(row)
    ]
