"""A request of the API as a call of the model. Public idea: ``drawing(body, seed)(model) -> Drawing``, and likewise for every task.

Building such a call costs nothing: pictures are decoded and texts are checked in the thread that runs it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from unmask.grammars.answer_format import Form, of_response_format
from unmask.pipeline.catalogue import find_sampler
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.serving.schema import Chat, Draw, Edit, Ground, Infill, Planned
from unmask.tasks.conversing import Message, Turn
from unmask.tasks.results import Answer, Drawing, Grounding
from unmask.tokens.layouts import Layout, layout_of
from unmask.tokens.pictures import read_image, read_region
from unmask.tokens.prompts import RELEASED, Wording
from unmask.tokens.text import Text

T = TypeVar("T")

# Fields of samplers that say which token or place is which. They are the model's own; a wrong one reads beyond its tables.
_OWN = frozenset({"null_id", "ids", "low", "high", "drop", "keep", "order", "interval"})
_TRUTHS = ("true", "false", "yes", "no")
# A form is prepared for all to wait for, and weighed anew at every step: .{1,1000} had 16,000 states and took minutes of one core.
_MOST_STATES, _MOST_WEIGHED = 4000, 500_000
_MOST = 10_000  # of a number in a setting: what is larger only overflows
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w=.+-]+)*;base64,", re.ASCII)


def _by_sampler(make: Callable[..., Callable[[Any], T]]) -> Callable[..., Callable[[Any], T]]:
    """A call whose field ``sampler`` changes the presets of the model; the settings left over are fields of the changed sampler."""

    @functools.wraps(make)
    def made(body: Any, *given: Any) -> Callable[[Any], T]:
        if body.sampler is None:
            return make(body, *given)

        def ask(model: Any) -> T:
            change, rest = find_sampler(body.sampler, checked(body.settings))
            return make(body.model_copy(update={"settings": rest}), *given)(model.with_sampler(change))

        return ask

    return made


@_by_sampler
def drawing(body: Draw, seed: int) -> Callable[[Model], Drawing]:
    def ask(model: Model) -> Drawing:
        _fits(model, body.size)
        light = {"luminance": body.luminance, "contrast": body.contrast, "score": body.score}
        conditions = model.parts.conditions(**light, crop=body.crop)
        thought = {"conditions": conditions, "plan": _plan(model, body), "attempts": body.reflect}
        return model.generate(body.prompt, seed=seed, settings=checked(body.overrides), **thought)[0]

    return ask


@_by_sampler
def editing(body: Edit, image: bytes, mask: bytes | None, seed: int) -> Callable[[Model], Drawing]:
    """With a mask, the region is drawn anew."""

    def ask(model: Model) -> Drawing:
        _fits(model, body.size)
        settings = checked(body.overrides)
        if mask is None:
            plan = _plan(model, body)
            return model.edit(image, body.prompt, seed=seed, plan=plan, attempts=body.reflect, settings=settings)[0]
        if body.plan or body.boxes or body.reflect > 1:
            raise ValueError("a region is drawn anew without thinking; leave out mask, or plan, boxes and reflect")
        return model.infill(image, read_region(mask), prompt=body.prompt, seed=seed, settings=settings)

    return ask


@_by_sampler
def infilling(body: Infill, seed: int) -> Callable[[Any], Drawing | Answer]:
    """A Drawing where a picture is given, else an Answer."""

    def ask(model: Any) -> Drawing | Answer:
        settings = checked(body.overrides)
        if body.text is not None:
            return model.infill_text(body.text, seed=seed, settings=settings)
        _fits(model, body.size)
        image, mask = picture_of(body.image or "", "image"), read_region(picture_of(body.mask or "", "mask"))
        return model.infill(image, mask, prompt=body.prompt, seed=seed, settings=settings)

    return ask


@_by_sampler
def grounding(body: Ground, seed: int) -> Callable[[Model], Grounding]:
    def ask(model: Model) -> Grounding:
        image = picture_of(body.image, "image")
        return model.ground(
            image,
            body.phrases,
            steps=body.steps if body.steps > 1 else None,
            seed=seed,
            settings=checked(body.settings),
        )

    return ask


@_by_sampler
def chatting(body: Chat, seed: int) -> Callable[[Any], Answer | Turn]:
    """The last question about the last picture is an Answer, words and pictures are a Turn."""

    def ask(model: Any) -> Answer | Turn:
        settings, said = checked(body.settings), body.messages
        last = said[-1]
        if last.role != "user" or not last.words.strip():
            raise ValueError("a conversation ends with what the user says; add a message with the role user")
        pictures = [url for message in said for url in message.pictures]
        if isinstance(model, TextModel):
            if pictures or body.draw:
                raise ValueError("this is a text model, which neither reads pictures nor draws; give it words alone")
            length, more = body.longest or 128, checked(body.overrides)
            form, _ = _form(body, model.parts.text, RELEASED, length)
            return model.ask(last.words, seed=seed, max_tokens=length, form=form, settings=more)
        if pictures and not body.draw:
            image, usual = picture_of(pictures[-1], "messages"), model.presets.answer
            form, rooms = _form(body, model.parts.text, model.parts.wording, usual)
            paced = [*_paced(body, model.presets.ask(model.parts), rooms), *settings]
            return model.ask(image, last.words, seed=seed, max_tokens=body.longest, form=form, settings=paced)
        if body.formed:
            raise ValueError(
                "response_format: a turn of words and pictures has no form; show a picture to ask about, without draw, or leave it out"
            )
        if body.draw is False:
            raise ValueError("there is no picture in the messages to answer about; add one, or leave out draw")
        if body.overrides:
            raise ValueError(
                "a turn of words and pictures has samplers of its own; leave out steps, guidance, settings"
            )
        return model.converse(_messages(body), seed=seed)

    return ask


def unread(body: Chat) -> int:
    """How many messages an answer about a picture leaves unread: all but the last, and the one that shows the picture."""
    shown = max((i for i, m in enumerate(body.messages) if m.pictures), default=len(body.messages) - 1)
    return len({*range(len(body.messages))} - {shown, len(body.messages) - 1})


def picture_of(url: str, field: str) -> bytes:
    """The bytes of a data: URL. ValueError for any other."""
    if not url.startswith("data:"):
        raise ValueError(
            f"{field}: the server fetches nothing, so a picture comes as a data: URL; send its bytes in base64"
        )
    head = _DATA_URL.match(url[:200])
    if not head:
        raise ValueError(f"{field}: this data: URL is not understood; write data:image/png;base64,...")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{field}: this is not base64 ({error}); encode the file's bytes once") from error


def settable(path: str) -> bool:
    """Whether a stranger may set a field of a sampler."""
    return path.strip().split(".")[-1].strip() not in _OWN


def checked(settings: Sequence[str]) -> list[str]:
    """Settings that a stranger may make. ValueError for those that would reach beyond the sampler."""
    for setting in settings:
        path, _, text = setting.partition("=")
        if not settable(path):
            raise ValueError(f"settings: {path.strip()!r} belongs to the model and stays as it is; leave it out")
        try:
            value = 0.0 if text.strip().lower() in _TRUTHS else float(text)
        except ValueError:
            raise ValueError(f"settings: {setting!r} is no number; /v1/fields says what may be set") from None
        if not math.isfinite(value) or abs(value) > _MOST:
            raise ValueError(f"settings: {setting!r} is beyond all use; give a number of at most {_MOST}")
    return list(settings)


def _form(body: Chat, text: Text, wording: Wording, usual: int) -> tuple[Form | None, list[int]]:
    """The form that was asked for, and how many tokens each of its values has; without one, those of the answer.

    ``usual``: where neither the request nor the form says how many. ValueError for a form that is not understood or too much.
    """
    if not body.formed:
        return None, [body.longest or usual]
    try:
        form = replace(of_response_format(body.response_format or {}) or Form(), most_states=_MOST_STATES)
        holes = form.holes(text, wording)
        rooms = [body.longest or hole.room(usual) for hole in holes]
        if sum(len(hole.grammar.to) * room for hole, room in zip(holes, rooms, strict=True)) > _MOST_WEIGHED:
            raise ValueError(
                "this has too many answers to be weighed at every step; use shorter lengths or fewer tokens"
            )
        return form, rooms
    except ValueError as error:
        raise ValueError(f"response_format: {error}") from error


def _paced(body: Chat, sampler: Sampler, rooms: Sequence[int]) -> list[str]:
    """``steps`` and ``guidance`` for a sampler of text, whose schedule may count tokens a step.

    ``rooms``: tokens of the answer, or of every value of a form: values are found one after the other, each in a step at least.
    """
    if isinstance(sampler.schedule, Fixed) and body.steps is not None:
        return [f"schedule.each={-(-max(rooms) // max(1, body.steps // len(rooms)))}", *body.guided]
    return body.paced


def _messages(body: Chat) -> list[Message]:
    spoken = [m for m in body.messages if m.role in ("user", "assistant")]
    return [
        Message(
            role=m.role,
            text=m.words,
            images=tuple(read_image(picture_of(url, "messages")) for url in m.pictures),
        )
        for m in spoken
    ]


def _plan(model: Model, body: Planned) -> bool | Layout:
    if not body.boxes:
        return body.plan
    layout = layout_of([(b.phrase, b.box) for b in body.boxes])
    model.emit(0, layout)
    return layout


def _fits(model: Model, size: str) -> None:
    if isinstance(model, TextModel):
        raise ValueError("this is a text model, which cannot draw; ask one that does")
    own = f"{model.parts.side}x{model.parts.side}"
    if size not in ("auto", own):
        raise ValueError(f"size: this model draws {own} and nothing else; leave size out, or say auto")
