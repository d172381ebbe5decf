"""Picture and question -> an answer in a given format: a value of a JSON schema, or a full match of a regex. Public idea: ``Fill``.

A hole is a writable span with its own grammar. Several holes are separate questions about one picture, each in its own segment, and all
are decoded in one run.
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
    """A question about a picture whose answer fills the ``holes`` of a ``form``, of ``rooms`` tokens each."""

    pixels: Tensor | ImageViews
    question: str
    form: AnswerFormat
    holes: tuple[Slot, ...]
    rooms: tuple[int, ...]
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def __post_init__(self) -> None:
        for hole, room in zip(self.holes, self.rooms, strict=True):
            hole.check(room)

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.pixels)
        for number, (hole, room) in enumerate(zip(self.holes, self.rooms, strict=True)):
            asked = hole.question or self.question
            asking(b, asked, room, segment=b.first_segment + number, name=named(number))
        return b.build(self.question)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return filled(self.form, self.holes, sequence)


def fill_in(
    holes: tuple[Slot, ...],
    pixels: Tensor | ImageViews,
    question: str,
    form: AnswerFormat,
    length: int | None,
    presets: Presets,
) -> Fill:
    """``length``: tokens of every hole, None: as many as it should need. ValueError where that is too few or too many."""
    rooms = tuple(hole.default_length(presets.answer) if length is None else length for hole in holes)
    return Fill(pixels=pixels, question=question, form=form, holes=holes, rooms=rooms)


def formed(said: Answer, form: AnswerFormat, sampler: Sampler) -> Answer:
    """With its value, and with the settings in a form that can be told."""
    settings = {**describe(sampler), "form": form.to_json()}
    return dataclasses.replace(said, value=said.text if form.regex else json.loads(said.text), settings=settings)


def named(number: int) -> str:
    """The name of the span of a hole."""
    return f"answer {number + 1}" if number else "answer"


def filled(form: AnswerFormat, holes: Items[Slot], sequence: Sequence) -> str:
    """What a finished sequence says: the text that matches, or the value as JSON."""
    read = []
    for number, hole in enumerate(holes):
        span = sequence.span(named(number))
        read.append((hole.path, hole.read(sequence.ids[span.start : span.stop].tolist())))
    value = form.value(read)
    return value if form.regex else json.dumps(value, ensure_ascii=False)


def bound(sampler: Sampler, holes: Items[Slot]) -> Sampler:
    """A sampler under whose draw every hole gets a text of its grammar."""
    grammars = tuple((named(number), hole.grammar) for number, hole in enumerate(holes))
    return dataclasses.replace(
        sampler, token_sampler=Constrained(token_sampler=sampler.token_sampler, grammars=grammars)
    )
