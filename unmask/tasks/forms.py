"""Picture and question -> an answer in a given format: a value of a JSON schema, or a full match of a regex. Public idea: ``Fill``.

A slot becomes a writable span that the sampler keeps inside the slot's grammar. Several slots are separate questions about one picture,
each in its own segment; one run generates them all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmask.grammars.answer_format import AnswerFormat, Slot
from unmask.sampling.constrain import Constrained
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.results import Answer, describe
from unmask.tokens.build import asking, looking
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A question about a picture whose answer fills the ``slots`` of a ``form``. ``lengths``: tokens of each slot; ValueError if one is too
    short.
    """

    pixels: Tensor | ImageViews
    question: str
    form: AnswerFormat
    slots: tuple[Slot, ...]
    lengths: tuple[int, ...]
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def __post_init__(self) -> None:
        for slot, length in zip(self.slots, self.lengths, strict=True):
            slot.check(length)

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.pixels)
        for number, (slot, length) in enumerate(zip(self.slots, self.lengths, strict=True)):
            question = slot.question or self.question
            asking(b, question, length, segment=b.first_segment + number, name=named(number))
        return b.build(self.question)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return filled(self.form, self.slots, sequence)


def fill_in(
    slots: tuple[Slot, ...],
    pixels: Tensor | ImageViews,
    question: str,
    form: AnswerFormat,
    length: int | None,
    presets: Presets,
) -> Fill:
    """The task with ``length`` tokens for every slot; None: the slot's default length. ValueError if ``length`` is too short for a slot."""
    lengths = tuple(slot.default_length(presets.answer) if length is None else length for slot in slots)
    return Fill(pixels=pixels, question=question, form=form, slots=slots, lengths=lengths)


def formed(answer: Answer, form: AnswerFormat, sampler: Sampler) -> Answer:
    """The answer with its parsed value, and with the sampler and the format in its settings, as JSON."""
    settings = {**describe(sampler), "form": form.to_json()}
    return dataclasses.replace(answer, value=answer.text if form.regex else json.loads(answer.text), settings=settings)


def named(number: int) -> str:
    """The name of the span of a slot."""
    return f"answer {number + 1}" if number else "answer"


def filled(form: AnswerFormat, slots: Items[Slot], sequence: Sequence) -> str:
    """The answer of a finished sequence: the text that matches the regex, or the value as JSON."""
    read = []
    for number, slot in enumerate(slots):
        span = sequence.span(named(number))
        read.append((slot.path, slot.read(sequence.ids[span.start : span.stop].tolist())))
    value = form.value(read)
    return str(value) if form.regex else json.dumps(value, ensure_ascii=False)


def bound(sampler: Sampler, slots: Items[Slot]) -> Sampler:
    """The sampler with its token sampler constrained, so that the text of every slot matches the slot's grammar."""
    grammars = tuple((named(number), slot.grammar) for number, slot in enumerate(slots))
    return dataclasses.replace(
        sampler, token_sampler=Constrained(token_sampler=sampler.token_sampler, grammars=grammars)
    )
