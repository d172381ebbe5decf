"""Presets of models that have some of the tasks; their other tasks are named errors.

Public idea: ``reading_only(family, ..)`` and ``drawing_and_answering(family, ..)`` return ``Presets``.
"""

from __future__ import annotations

from collections.abc import Callable

from unmask.sampling.sampler import Sampler
from unmask.tasks import understand
from unmask.tasks.parts import Parts, Presets, Refused

Preset = Callable[[Parts], Sampler]


def refusing(told: str, has: str) -> Callable[[str], Refused]:
    """``refusing("X cannot", "it draws")("edit")``: a preset that raises ValueError "X cannot edit; it draws"."""
    return lambda what: Refused(told=f"{told} {what}", has=has)


def reading_only(family: str, *, ask: Preset, length: int, context: int) -> Presets:
    """Of models that read pictures and write text, and draw nothing (LaViDa, Dimple). ``family``: its name, for errors · ``ask``: the
    sampler of answers · ``length``: tokens of an answer · ``context``: longest sequence in tokens.
    """
    cannot = refusing(f"{family} reads pictures and writes text, and cannot", "it has ask, describe and infill_text")
    return Presets(
        generate=cannot("generate pictures"),
        edit=cannot("edit pictures"),
        edit_again=cannot("edit pictures"),
        ask=ask,
        fill=understand.fill_sampler,
        ground=cannot("find boxes"),
        plan=cannot("generate pictures"),
        plan_edit=cannot("edit pictures"),
        critique=cannot("judge its own pictures"),
        turn_words=cannot("hold conversations with pictures of its own"),
        answer=length,
        caption=length,
        plan_length=length,
        edit_plan_length=length,
        critique_length=length,
        turn=length,
        context=context,
    )


def drawing_and_answering(
    family: str, has: str, *, generate: Preset, ask: Preset, length: int, edit: Preset | None = None
) -> Presets:
    """Of models that draw and answer, without layouts, boxes and critiques (MMaDA, Lumina-DiMOO). ``has``: their tasks, for errors ·
    ``length``: tokens of an answer · ``edit``: None where it edits nothing.
    """
    cannot = refusing(f"{family} cannot", has)
    return Presets(
        generate=generate,
        edit=edit or cannot("edit"),
        edit_again=edit or cannot("edit"),
        ask=ask,
        fill=cannot("fill gaps in a text"),
        ground=cannot("ground phrases"),
        plan=cannot("plan layouts"),
        plan_edit=cannot("plan layouts"),
        critique=cannot("judge its pictures"),
        turn_words=ask,
        answer=length,
        caption=length,
        plan_length=1,
        edit_plan_length=1,
        critique_length=1,
        turn=length,
        context=4096,
    )
