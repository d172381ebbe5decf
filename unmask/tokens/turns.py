"""Conversations: messages of words and pictures, and answers in which a picture takes the place of the token that announces it.

Public idea: ``conversation(b, said, length)`` asks for the next turn (spec 2.1); ``announced`` finds ``[exp]`` in what was written,
``opened`` puts an undecided picture in its place and ``resumed`` lets the words go on behind it (spec 4.9).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.sequence import Kind, Sequence, Span
from unmask.tokens.build import Builder, asking, looking
from unmask.tokens.text import EOT, EXP, MASK, Text
from unmask.tokens.views import Look


@dataclass(frozen=True, kw_only=True)
class Said:
    """A message: ``role`` is user or assistant; its pictures stand before its words."""

    role: str
    text: str
    pictures: tuple[Tensor | Look, ...] = ()


def conversation(b: Builder, said: Items[Said], length: int) -> Sequence:
    """Messages, the last of them the user's, and room for the next turn: the span "answer".

    A wording of ``one_turn`` reads the last message and the last picture alone, and no earlier picture where a new one is wanted: its
    models take a drawing that is asked for beside a picture for a change of it.
    """
    if b.wording.one_turn:
        new = said[-1].text.startswith(b.wording.drawing_words)
        shown = [picture for message in (said[-1:] if new else said) for picture in message.pictures][-1:]
        looking(b, shown[0] if shown else None)
        return asking(b, said[-1].text, length, segment=b.first_segment).build(said[-1].text)
    b.say("prompt", *b.opening())
    for number, message in enumerate(said):
        if number:
            b.say("prompt", *b.header(message.role))
        for picture in message.pictures:
            b.look("look", picture)
        b.say("prompt", (b.wording.after_image if message.pictures else "") + message.text.rstrip(), b.text[EOT])
    b.say("assistant", *b.header("assistant"))
    return b.write("answer", length).build(said[-1].text)


def announced(sequence: Sequence, text: Text) -> int | None:
    """Where the first picture is announced in what the model wrote, if it is, and not behind the end of its turn."""
    for span in sequence.spans:
        if span.kind == Kind.TEXT and span.writable:
            for at in range(span.start, span.stop):
                if int(sequence.ids[at]) == text[EOT]:
                    return None
                if int(sequence.ids[at]) == text[EXP]:
                    return at
    return None


def opened(sequence: Sequence, at: int, grid: tuple[int, int], fold: int, text: Text) -> Sequence:
    """The sequence up to the announcement, a picture to be decided in its place, and the end of the turn; nothing else is open."""
    kept = [replace(_until(s, at), writable=False) for s in sequence.spans if s.start < at]
    segment = next(s.segment for s in sequence.spans if s.start <= at < s.stop)
    size = grid[0] * grid[1]
    spans = (
        *kept,
        Span(
            name="image", kind=Kind.CODE, start=at, stop=at + size, grid=grid, fold=fold, segment=segment, writable=True
        ),
        Span(name="end", kind=Kind.TEXT, start=at + size, stop=at + size + 1, segment=segment),
    )
    ids = torch.cat([sequence.ids[:at], torch.zeros(size, dtype=torch.long), torch.tensor([text[EOT]])])
    masked = torch.zeros(len(ids), dtype=torch.bool)
    masked[at : at + size] = True
    return _with(sequence, ids, masked, spans)


def resumed(drawn: Sequence, room: int, text: Text) -> Sequence:
    """A turn whose picture is decided, with ``room`` tokens of words to be decided behind it."""
    end = drawn.spans[-1]
    closed = tuple(replace(s, writable=False) for s in drawn.spans[:-1])
    more = replace(end, name="answer", stop=end.start + room, writable=True)
    ids = torch.cat([drawn.ids[: end.start], torch.full((room,), text[MASK])])
    masked = torch.cat([drawn.masked[: end.start], torch.ones(room, dtype=torch.bool)])
    return _with(drawn, ids, masked, (*closed, more))


def _until(span: Span, at: int) -> Span:
    return replace(span, stop=min(span.stop, at))


def _with(sequence: Sequence, ids: Tensor, masked: Tensor, spans: tuple[Span, ...]) -> Sequence:
    """Other tokens behind the pictures that are looked at, which stay where they are."""
    feature = sequence.feature
    if feature is not None:
        feature = torch.cat([feature, torch.zeros(max(0, len(ids) - len(feature)), dtype=torch.long)])[: len(ids)]
    return replace(sequence, ids=ids, masked=masked, spans=spans, feature=feature)
