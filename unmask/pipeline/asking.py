"""The ways to answer a question of ``Model.ask``: free text, text in a format, and a draft with gaps.

Public idea: ``answered(model, question, ...) -> Answer``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from unmask.grammars.answer_format import AnswerFormat
from unmask.sampling.sampler import Sampler
from unmask.sampling.stopping import Never
from unmask.tasks import forms, understand
from unmask.tasks.drafts import Drafted, draft_length, refuse_beside
from unmask.tasks.lengths import Extent
from unmask.tasks.results import Answer
from unmask.tasks.running import answer, answer_within, check_context
from unmask.tokens.views import ImageViews

if TYPE_CHECKING:
    from unmask.pipeline.model import Model


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question: as it was asked and as the model reads it, its picture, and how the answer is made. ``form``: its format; ``draft``: its
    beginning with gaps; at most one of them.
    """

    question: str
    read: str
    views: Tensor | ImageViews | None
    seed: int
    trace: bool
    form: AnswerFormat | None = None
    draft: str = ""


def answered(
    model: Model, asked: Asked, sampler: Sampler, length: int | None, given: Extent, read: Callable[..., str]
) -> Answer:
    """``length``: the tokens of a canvas that a caller wants; None: a draft may need more than ``given`` has · ``read``: a text as the
    model reads it.
    """
    context = {"context": model.presets.context, "question": asked.question, "seed": asked.seed, "trace": asked.trace}
    if asked.form is not None and not asked.draft:
        wanted = asked.form.slots(model.parts.text, model.parts.wording)
        slots = tuple(replace(slot, question=read(slot.question, empty=True)) for slot in wanted)
        request = forms.Request(slots=slots, form=asked.form, extent=given, context=model.presets.context)
        model.parts.require(forms.Fill.needs)
        more = {"seed": asked.seed, "trace": asked.trace}
        return forms.fill(model, asked.views, asked.read, sampler, request, **more)  # type: ignore[arg-type]
    model.parts.require(understand.Ask.needs)
    task = understand.Ask(pixels=asked.views, question=asked.read, length=given.length)
    if not asked.draft:
        return answer_within(model, task.build(model.parts), sampler, given, **context)  # type: ignore[arg-type]
    refuse_beside(given.max_tokens, given.stop, asked.form)
    if length is None:
        task = replace(task, length=max(given.length, draft_length(asked.draft, model.parts)))
    drafted = Drafted(ask=task, draft=asked.draft)
    built = drafted.build(model.parts)
    check_context(built, model.presets.context)
    del context["context"]
    # An end of turn before the draft's last words ends nothing.
    return answer(model, drafted, built, replace(sampler, stopping=Never()), **context)  # type: ignore[arg-type]
