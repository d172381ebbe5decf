"""Build Sequences for requests and training samples. Both use the same functions, so training and inference share one format.

Public idea: ``Builder`` appends spans; ``drawing``, ``editing``, ``planning`` and ``looking`` are the sequence formats of spec 2.2 and 2.5.
A writable span is given as its true ids (training; a corruption masks them later) or as a length (inference; all tokens masked).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmask.sequence import Kind, Sequence, Span, of_one_size
from unmask.tokens.boxes import to_bins
from unmask.tokens.prompts import COMPACT, Conditions, Wording
from unmask.tokens.quirks import NO_QUIRKS, ReleasedQuirks
from unmask.tokens.text import BOS, BOX, END_BOX, END_HEADER, END_PHRASE, EOT, EXP, HEADER, MASK, PHRASE, Text
from unmask.tokens.views import ImageViews

# Names of spans that guidance may drop.
PROMPT = frozenset({"prompt"})
SOURCE = frozenset({"source"})
LOOK = frozenset({"look"})
PLAN = frozenset({"plan"})


@dataclass(kw_only=True)
class Builder:
    """Collects spans in order. ``look_tokens``: feature rows per view of an image."""

    text: Text
    wording: Wording = COMPACT
    look_tokens: int = 20
    quirks: ReleasedQuirks = NO_QUIRKS
    ids: list[int] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    looks: list[ImageViews] = field(default_factory=list)

    def _span(self, name: str, kind: int, ids: list[int], masked: bool, **more: object) -> Builder:
        start = len(self.ids)
        self.ids += ids
        self.masked += [masked] * len(ids)
        self.spans.append(Span(name=name, kind=kind, start=start, stop=len(self.ids), **more))  # type: ignore[arg-type]
        return self

    def say(self, name: str, *parts: str | int, segment: int = 0) -> Builder:
        """Append given text: strings are plain text (adjacent ones are encoded together), integers are ids of control tokens."""
        ids: list[int] = []
        for plain, run in itertools.groupby(parts, key=lambda part: isinstance(part, str)):
            same = list(run)
            ids += self.text.encode("".join(map(str, same))) if plain else [int(i) for i in same]
        after_look = bool(self.spans) and self.spans[-1].kind == Kind.FEATURE
        if self.quirks.dropped_token and after_look and self.ids[0] == self.text.control.get(BOS):
            ids = ids[1:]
        return self._span(name, Kind.TEXT, ids, False, segment=segment)

    def write(self, name: str, ids: list[int] | int, *, segment: int = 0) -> Builder:
        """Append writable text: its true ids, or the number of masked tokens."""
        open_ = isinstance(ids, int)
        filled = [self.text[MASK]] * ids if isinstance(ids, int) else list(ids)
        return self._span(name, Kind.TEXT, filled, open_, segment=segment, writable=True)

    def reply(self, name: str, ids: list[int] | int, *, segment: int = 0) -> Builder:
        """Append the model's text as ``write`` does. With ``quirks.prefix_lm``, masked text has an order of its own, so the prompt does not
        attend to it; text that ``turns.extended`` appends has the next order, so what is finished does not attend to that.
        """
        self.write(name, ids, segment=segment)
        if self.quirks.prefix_lm and isinstance(ids, int):
            self.spans[-1] = replace(self.spans[-1], order=1, order_step=ids)
        return self

    def look(self, name: str, picture: Tensor | ImageViews) -> Builder:
        """Append an image for the semantic encoder: a single view [3, H, W] in 0..1, or several views with the rows to read."""
        if isinstance(picture, Tensor):
            picture = ImageViews(views=picture[None], rows=torch.arange(self.look_tokens))
        first = sum(len(look.views) for look in self.looks)
        self.looks.append(picture)
        return self._span(name, Kind.FEATURE, [0] * len(picture), False, image=first, grid=picture.grid)

    def codes(
        self, name: str, codes: Tensor | tuple[int, int], *, fold: int, writable: bool, segment: int = 0
    ) -> Builder:
        """Append image codes [h, w], or a grid (h, w) of masked codes."""
        open_ = isinstance(codes, tuple)
        grid = codes if isinstance(codes, tuple) else (codes.shape[0], codes.shape[1])
        ids = [0] * (grid[0] * grid[1]) if isinstance(codes, tuple) else codes.flatten().tolist()
        return self._span(name, Kind.CODE, ids, open_, grid=grid, fold=fold, writable=writable, segment=segment)

    def header(self, role: str) -> tuple[str | int, ...]:
        text = self.text
        ended = (text[END_HEADER],) if END_HEADER in text.control else ()  # ChatML has none
        return (text[HEADER], role, *ended, *((self.wording.newlines,) if self.wording.newlines else ()))

    @property
    def around_image(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after an image."""
        names = self.wording.around_image
        return ((self.text[names[0]],), (self.text[names[1]],)) if names else ((), ())

    def end_of_turn(self) -> tuple[str | int, ...]:
        return (self.text[EOT], *((self.wording.after_turn,) if self.wording.after_turn else ()))

    def opening(self) -> tuple[str | int, ...]:
        """Start of text, system message if the wording has one, user header."""
        system = (*self.header("system"), self.wording.system, *self.end_of_turn()) if self.wording.system else ()
        return (*((self.text[BOS],) if self.wording.starts else ()), *system, *self.header("user"))

    @property
    def first_segment(self) -> int:
        """The segment of the first question: 1, or 0 if all tokens attend to each other."""
        return 0 if self.quirks.one_segment else 1

    def build(self, request: str = "") -> Sequence:
        known = [look.tokens for look in self.looks if look.tokens is not None]
        if known:
            return self._of_known(known, request)
        feature = torch.zeros(len(self.ids), dtype=torch.long)
        for span, look in zip((s for s in self.spans if s.kind == Kind.FEATURE), self.looks, strict=True):
            feature[span.start : span.stop] = look.rows + span.image * self.look_tokens
        return Sequence(
            ids=torch.tensor(self.ids, dtype=torch.long),
            masked=torch.tensor(self.masked, dtype=torch.bool),
            spans=tuple(self.spans),
            pixels=of_one_size([look.views for look in self.looks]) if self.looks else None,
            feature=feature if self.looks else None,
            feature_rows=sum(
                len(look.views) * self.look_tokens if look.grid is None else len(look) for look in self.looks
            ),
            request=request,
        )

    def _of_known(self, known: Items[Tensor], request: str) -> Sequence:
        """The sequence of pictures whose tokens are known, which it reads in their order. ValueError for pictures of both kinds."""
        if len(known) < len(self.looks):
            raise ValueError(
                f"the tokens of {len(known)} of {len(self.looks)} pictures are known; pass views or tokens"
            )
        return Sequence(
            ids=torch.tensor(self.ids, dtype=torch.long),
            masked=torch.tensor(self.masked, dtype=torch.bool),
            spans=tuple(self.spans),
            features=torch.cat(tuple(known)),
            request=request,
        )


@dataclass(frozen=True, kw_only=True)
class PlanIds:
    """Ids of a layout before the image. ``open``: the layout is predicted together with the image; otherwise it is given."""

    ids: tuple[int, ...]
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class FailedAttempt:
    """An earlier image and its critique."""

    picture: Tensor | ImageViews
    critique: str


def drawing(
    b: Builder,
    caption: str,
    codes: Tensor | tuple[int, int],
    *,
    fold: int,
    conditions: Conditions | None = None,
    plan: PlanIds | None = None,
    attempts: Items[FailedAttempt] = (),
) -> Sequence:
    """Text to image. Spans: "prompt", for each earlier attempt "look", "plan" if there is one, "image"."""
    _requested(b, b.wording.draw_planned if plan else b.wording.draw, caption, conditions, attempts)
    return _answered(b, codes, fold, plan).build(caption)


def planning(
    b: Builder,
    caption: str,
    plan: list[int] | int,
    *,
    conditions: Conditions | None = None,
    attempts: Items[FailedAttempt] = (),
) -> Sequence:
    """Text to layout. The span "plan" holds its ids, or masked tokens. Earlier attempts as of ``drawing``."""
    _requested(b, b.wording.plan, caption, conditions, attempts)
    b.say("assistant", *b.header("assistant"))
    return b.reply("plan", plan).build(caption)


def _requested(
    b: Builder, template: str, caption: str, conditions: Conditions | None, attempts: Items[FailedAttempt]
) -> None:
    """The user's turn: the request in the words of ``template``, then earlier attempts with their critiques."""
    said = (*b.opening(), _worded(b, template, caption, conditions))
    before, after = b.wording.attempt.split("{look}")
    for number, attempt in enumerate(attempts, 1):
        between = b.wording.between_attempts if number > 1 else b.wording.feedback
        words = between + before.format(number=number)
        b.say("prompt", *said, *((words,) if words else ()))
        b.look("look", attempt.picture)
        said = (after.format(number=number, critique=attempt.critique),)
    b.say("prompt", *said, b.text[EOT])


def planning_edit(b: Builder, picture: Tensor | ImageViews, instruction: str, plan: list[int] | int) -> Sequence:
    """Image and edit instruction to layout, in the span "plan". The format is that of a question."""
    request = b.wording.plan_edit.format(instruction=instruction.rstrip(" ."))
    return asking(looking(b, picture), request, plan, segment=b.first_segment, name="plan").build(instruction)


def plan_ids(text: Text, ids: list[int], length: int) -> list[int]:
    """A plan, the token that announces the image, and end-of-turn padding to ``length`` tokens (at least one).

    The fixed length carries no information about the plan. ValueError if the plan is too long.
    """
    if len(ids) + 2 > length:
        raise ValueError(
            f"a plan of {len(ids)} tokens and its two end tokens exceed the length {length}; plan fewer objects"
        )
    return [*ids, text[EXP], *[text[EOT]] * (length - len(ids) - 1)]


def _worded(b: Builder, template: str, caption: str, conditions: Conditions | None) -> str:
    said = conditions or b.quirks.conditions
    return template.format(caption=caption, micro=said.text(b.quirks.conditions_end) if said else "").strip()


def _answered(b: Builder, codes: Tensor | tuple[int, int], fold: int, plan: PlanIds | None) -> Builder:
    """The model's turn: plan if there is one, image, end of turn."""
    b.say("assistant", *b.header("assistant"))
    _planned(b, plan).codes("image", codes, fold=fold, writable=True)
    return b.say("end", b.text[EOT], *(b.header("assistant") if b.quirks.trailing_header else ()))


def _planned(b: Builder, plan: PlanIds | None) -> Builder:
    if plan is None:
        return b
    return b.write("plan", list(plan.ids)) if plan.open else b.say("plan", *plan.ids)


def editing(
    b: Builder,
    picture: Tensor | ImageViews,
    source: Tensor,
    instruction: str,
    codes: Tensor | tuple[int, int],
    *,
    fold: int,
    plan: PlanIds | None = None,
) -> Sequence:
    """Source image (as features and as codes) and instruction -> image.

    Spans: prompt (split as the wording requires), look, source, assistant, plan if there is one, image, end.
    """
    b.say("prompt", *b.opening())
    for piece in re.split(r"({plan}|{look}|{source})", b.wording.edit):
        if piece == "{plan}":
            _planned(b, plan)
        elif piece == "{look}":
            b.look("look", picture)
        elif piece == "{source}":
            b.codes("source", source, fold=fold, writable=False)
        elif piece:
            b.say("prompt", piece.format(instruction=instruction.rstrip()))
    b.say("prompt", b.text[EOT])
    return _answered(b, codes, fold, None if "{plan}" in b.wording.edit else plan).build(instruction)


def looking(b: Builder, picture: Tensor | ImageViews | None, *more: Tensor | ImageViews) -> Builder:
    """The context shared by questions and phrases about the same images; each of them has its own segment."""
    before, after = b.around_image
    b.say("prompt", *b.opening(), *(before if picture is not None else ()))
    for number, shown in enumerate(() if picture is None else (picture, *more)):
        if number and (after or before):
            b.say("prompt", *after, *before)
        b.look("look", shown)
    return b


def asking(b: Builder, question: str, answer: list[int] | int, *, segment: int = 1, name: str = "answer") -> Builder:
    """A question and its answer (ids or number of tokens). Spans: "question" and ``name``."""
    words = b.wording.after_image + b.wording.ask.format(question=question.rstrip())
    after = b.around_image[1] if b.looks else ()
    b.say("question", *after, words, *b.end_of_turn(), *b.header("assistant"), segment=segment)
    return b.reply(name, answer, segment=segment)


def illustrating(
    b: Builder, question: str, words: PlanIds, codes: Tensor | tuple[int, int], *, fold: int, segment: int = 1
) -> Builder:
    """A question answered by text and then an image. Spans: "question", "answer", "image"."""
    prompt = b.wording.after_image + b.wording.ask.format(question=question.rstrip())
    b.say("question", prompt, b.text[EOT], *b.header("assistant"), segment=segment)
    if words.open:
        b.write("answer", list(words.ids), segment=segment)
    else:
        b.say("answer", *words.ids, segment=segment)
    b.codes("image", codes, fold=fold, writable=True, segment=segment)
    return b.say("end", b.text[EOT], segment=segment)


def grounding(b: Builder, phrase: str, box: tuple[float, float, float, float] | None, *, segment: int = 1) -> Builder:
    """A phrase and its box (fractions; None: to be predicted). Spans: "phrase", "box"."""
    text = b.text
    prompt: tuple[str | int, ...] = (text[PHRASE], phrase, text[END_PHRASE])
    if b.wording.locate:
        words = b.wording.after_image + b.wording.locate.format(phrase=phrase)
        prompt = (words, text[EOT], *b.header("assistant"))
    b.say("phrase", *prompt, text[BOX], segment=segment)
    b.write("box", 4 if box is None else [text.first_location + k for k in to_bins(box)], segment=segment)
    return b.say("box_end", text[END_BOX], *((text[EOT],) if b.wording.locate else ()), segment=segment)


def grounding_together(b: Builder, phrases: Items[str]) -> Builder:
    """Several phrases and their boxes in one turn, for a wording with ``locate_all``. Spans: for each phrase "phrase", "box"; "box_end"."""
    text, wording = b.text, b.wording
    said: list[str | int] = [
        wording.after_image + wording.locate_all,
        text[EOT],
        *b.header("assistant"),
        wording.located,
    ]
    for number, phrase in enumerate(phrases):
        said += [wording.between_placed] if number else []
        for piece in re.split(r"(<box_p>|</box_p>|{box})", wording.placed):
            if piece == "{box}":
                b.say("phrase", *said, text[BOX]).write("box", 4)
                said = [text[END_BOX]]
            elif piece:
                said.append(text[piece] if piece in (PHRASE, END_PHRASE) else piece.format(phrase=phrase))
    return b.say("box_end", *said, text[EOT], *(b.header("assistant") if b.quirks.trailing_header else ()))
