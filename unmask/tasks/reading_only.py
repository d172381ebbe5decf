"""Presets of models that read pictures and write text, and draw nothing (LaViDa, Dimple).

Public idea: ``reading_only(family, ask=.., length=.., context=..) -> Presets``, whose other tasks are named errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from unmask.sampling.sampler import Sampler
from unmask.tasks import understand
from unmask.tasks.parts import Parts, Presets


def reading_only(family: str, *, ask: Callable[[Parts], Sampler], length: int, context: int) -> Presets:
    """``family``: its name, for errors · ``ask``: the sampler of answers · ``length``: tokens of an answer · ``context``: longest sequence
    in tokens.
    """

    def cannot(what: str) -> Callable[..., Sampler]:
        def refuse(*given: Any) -> NoReturn:
            raise ValueError(
                f"{family} reads pictures and writes text, and cannot {what}; it has ask, describe and infill_text"
            )

        return refuse

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
