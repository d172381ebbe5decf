"""Conversations: messages of text and images; in an answer an image replaces the token that announces it.

Public idea: ``conversation(b, messages, answer)`` builds the sequence for the next turn (spec 2.1); ``announced`` finds ``[exp]`` in the
output, ``opened`` puts a masked image in its place and ``resumed`` appends masked text after the image (spec 4.9).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.sequence import Kind, Sequence, Span
from unmask.tokens.build import Builder, asking, looking
from unmask.tokens.text import EOT, EXP, MASK, Text
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Said:
    """A message: ``role`` is system, user or assistant; images precede the text."""

    role: str
    text: str
    pictures: tuple[Tensor | ImageViews, ...] = ()


def conversation(b: Builder, messages: Items[Said], answer: list[int] | int) -> Sequence:
    """Messages, the last one from the user, and the next turn in the span "answer": its ids, or the number of masked tokens.

    With a wording of ``one_turn`` only the last message and the last image are used, and no earlier image if a new drawing is requested:
    these models would take such a request for an edit of the image.
    """
    if b.wording.one_turn:
        new = messages[-1].text.startswith(b.wording.drawing_words)
        shown = [picture for message in (messages[-1:] if new else messages) for picture in message.pictures][-1:]
        looking(b, shown[0] if shown else None)
        return asking(b, messages[-1].text, answer, segment=b.first_segment).build(messages[-1].text)
    b.say("prompt", *b.opening())
    for number, message in enumerate(messages):
        if number:
            b.say("prompt", *b.header(message.role))
        for picture in message.pictures:
            b.look("look", picture)
        b.say("prompt", (b.wording.after_image if message.pictures else "") + message.text.rstrip(), b.text[EOT])
    b.say("assistant", *b.header("assistant"))
    return b.reply("answer", answer).build(messages[-1].text)


def announced(sequence: Sequence, text: Text) -> int | None:
    """Position of the first image announcement in the output before its end of turn; None if there is none."""
    for span in sequence.spans:
        if span.kind == Kind.TEXT and span.writable:
            for at in range(span.start, span.stop):
                if int(sequence.ids[at]) == text[EOT]:
                    return None
                if int(sequence.ids[at]) == text[EXP]:
                    return at
    return None


def opened(sequence: Sequence, at: int, grid: tuple[int, int], fold: int, text: Text) -> Sequence:
    """The sequence up to the announcement, a masked image in its place, and the end of turn; nothing else is masked.

    An image and the tokens before it attend to each other, so all of them have the same order.
    """
    kept = [replace(_until(s, at), writable=False, order=0, order_step=0) for s in sequence.spans if s.start < at]
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


def resumed(drawn: Sequence, length: int, text: Text, *, prefix_lm: bool = False) -> Sequence:
    """A turn with a finished image, followed by ``length`` masked text tokens. ``prefix_lm``: nothing before attends to them."""
    end = drawn.spans[-1]
    closed = tuple(replace(s, writable=False) for s in drawn.spans[:-1])
    more = replace(end, name="answer", stop=end.start + length, writable=True, order=int(prefix_lm))
    ids = torch.cat([drawn.ids[: end.start], torch.full((length,), text[MASK])])
    masked = torch.cat([drawn.masked[: end.start], torch.ones(length, dtype=torch.bool)])
    return _with(drawn, ids, masked, (*closed, more))


def extended(sequence: Sequence, more: int, text: Text) -> Sequence:
    """The sequence with ``more`` masked tokens at the end of its last span; a negative number takes away as many."""
    last, length = sequence.spans[-1], len(sequence.ids) + more
    ids = torch.cat([sequence.ids, torch.full((max(0, more),), text[MASK])])[:length]
    masked = torch.cat([sequence.masked, torch.ones(max(0, more), dtype=torch.bool)])[:length]
    return _with(sequence, ids, masked, (*sequence.spans[:-1], replace(last, stop=length)))


def _until(span: Span, at: int) -> Span:
    return replace(span, stop=min(span.stop, at))


def _with(sequence: Sequence, ids: Tensor, masked: Tensor, spans: tuple[Span, ...]) -> Sequence:
    """Replace the tokens after the input images; the images stay in place."""
    feature = sequence.feature
    if feature is not None:
        feature = torch.cat([feature, torch.zeros(max(0, len(ids) - len(feature)), dtype=torch.long)])[: len(ids)]
    return replace(sequence, ids=ids, masked=masked, spans=spans, feature=feature)
