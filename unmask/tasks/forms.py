"""Picture and question -> an answer in a given format: a value of a JSON schema, or a full match of a regex. Public idea: ``Fill``.

A slot becomes a writable span that the sampler keeps inside the slot's grammar. Several slots are separate questions about one picture,
each in its own segment; one run generates them all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from unmask.grammars.answer_format import AnswerFormat, Slot
from unmask.protocols import Task
from unmask.sampling.constrain import Constrained
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.lengths import Extent
from unmask.tasks.parts import Parts
from unmask.tasks.results import Answer, describe
from unmask.tasks.running import Followed, Runner, Worded, check_context, follow
from unmask.tokens.build import asking, looking
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A question about a picture whose answer fills the ``slots`` of a ``form``. ``lengths``: tokens of each slot; ValueError if one is too
    short.
    """

    pixels: Tensor | ImageViews | None
    question: str
    form: AnswerFormat
    slots: tuple[Slot, ...]
    lengths: tuple[int, ...]
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def __post_init__(self) -> None:
        for slot, length in zip(self.slots, self.lengths, strict=True):
            slot.check(length)

    def build(self, tokens: Parts) -> Sequence:
        if len(self.slots) == 1:
            words = self.slots[0].question or self.question
            built = tokens.rows.asking(tokens, self.pixels, words, self.lengths[0], name=named(0))
            return replace(built, request=self.question)
        b = looking(tokens.builder(), self.pixels)
        for number, (slot, length) in enumerate(zip(self.slots, self.lengths, strict=True)):
            asking(b, slot.question or self.question, length, segment=1 + number, name=named(number))
        return b.build(self.question)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return filled(self.form, self.slots, sequence)


@dataclass(frozen=True, kw_only=True)
class Request:
    """An answer in a format. ``extent``: of every slot · ``context``: longest sequence in tokens."""

    slots: tuple[Slot, ...]
    form: AnswerFormat
    extent: Extent
    context: int

    def __post_init__(self) -> None:
        if self.extent.stop:
            raise ValueError("stop cannot cut an answer in a format; leave out stop, or the format")
        for slot, length in zip(self.slots, self.lengths, strict=True):
            slot.check(min(length, self.extent.max_tokens or length))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every slot, whatever ``max_tokens`` is: its value depends on them."""
        return tuple(slot.default_length(self.extent.length) for slot in self.slots)


def fill(
    model: Runner[Parts],
    pixels: Tensor | ImageViews | None,
    question: str,
    sampler: Sampler,
    request: Request,
    *,
    seed: int,
    trace: bool,
) -> Answer:
    """The answer to a question about a picture in a format."""

    def task(lengths: tuple[int, ...]) -> Fill:
        return Fill(pixels=pixels, question=question, form=request.form, slots=request.slots, lengths=lengths)

    return answer_formed(model, task, sampler, request, question=question, seed=seed, trace=trace)


def answer_formed(
    model: Runner[Worded],
    task: Callable[[tuple[int, ...]], Task[Worded, str]],
    sampler: Sampler,
    request: Request,
    *,
    question: str,
    seed: int,
    trace: bool,
) -> Answer:
    """The answer of ``task(lengths)``, with its value, and with the sampler and the format in its settings.

    A value with more tokens than ``max_tokens`` is decoded again in so many, since a value that is cut off would not have the format.
    """
    most, lengths, runs = request.extent.max_tokens, request.lengths, list[Followed]()
    while True:
        built = task(lengths).build(model.parts)
        check_context(built, request.context)
        runs.append(follow(model, built, seed, bound(sampler, request.slots), trace=trace))
        used = [_used(runs[-1].row, number, slot) for number, slot in enumerate(request.slots)]
        if most is None or max(used) <= most:
            break
        lengths = tuple(min(n, most) if u > most else n for n, u in zip(lengths, used, strict=True))
    said, form = task(lengths).read(runs[-1].row, model.parts), request.form
    return Answer(
        text=said,
        question=question,
        seed=seed,
        seconds=sum(done.seconds for done in runs),
        settings={**describe(sampler), "form": form.to_json()},
        trace=tuple(film for done in runs for film in done.trace),
        value=said if form.regex else json.loads(said),
    )


def _used(sequence: Sequence, number: int, slot: Slot) -> int:
    """Tokens of a slot's text, without the end of turn."""
    span = sequence.span(named(number))
    ids = sequence.ids[span.start : span.stop].tolist()
    return ids.index(slot.grammar.end) if slot.grammar.end in ids else len(ids)


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
