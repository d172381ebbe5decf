"""API requests as calls of the model. Public idea: ``drawing(body, seed)(model) -> Drawing``; one such function per task.

Building a call is cheap: images are decoded and texts are checked in the thread that runs the call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from unmask.grammars.answer_format import AnswerFormat, of_response_format
from unmask.pipeline.catalogue import find_sampler
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.serving.data_urls import picture_of, read_data_url
from unmask.serving.schema import Chat, Draw, Edit, Ground, Infill, Planned
from unmask.tasks.conversing import Message, Turn
from unmask.tasks.results import Answer, Drawing, Grounding
from unmask.tokens.layouts import Layout, layout_of
from unmask.tokens.pictures import ImageError, read_image, read_region
from unmask.tokens.prompts import RELEASED, Wording
from unmask.tokens.text import Text

T = TypeVar("T")

# Sampler fields that hold token ids and positions of the model; a wrong value would index out of range. Clients cannot set them.
_FIXED = frozenset({"null_id", "ids", "low", "high", "drop", "keep", "order", "interval"})
_TRUTHS = ("true", "false", "yes", "no")
# Limits of an answer format. Compiling it blocks other calls, and every step runs over all states: .{1,1000} has 16,000 states and took
# minutes on one core.
_MOST_STATES, _MOST_WORK = 4000, 500_000
_MOST = 10_000  # largest absolute value of a setting; larger ones overflow


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
        _image_model(model)
        conditioning = {"luminance": body.luminance, "contrast": body.contrast, "score": body.score}
        conditions = model.parts.conditions(**conditioning, crop=body.crop)
        options = {"conditions": conditions, "plan": _plan(model, body), "attempts": body.reflect}
        return model.generate(body.prompt, seed=seed, settings=checked(body.overrides), **options)[0]

    return ask


@_by_sampler
def editing(body: Edit, image: bytes, mask: bytes | None, seed: int) -> Callable[[Model], Drawing]:
    """An edit by instruction or, with a mask, inpainting."""

    def ask(model: Model) -> Drawing:
        _image_model(model)
        settings = checked(body.overrides)
        try:
            picture = read_image(image)
        except ImageError as error:
            raise ValueError(f"image: {error}") from error
        if mask is None:
            plan = _plan(model, body)
            return model.edit(picture, body.prompt, seed=seed, plan=plan, attempts=body.reflect, settings=settings)[0]
        if body.plan or body.boxes or body.reflect > 1:
            raise ValueError("plan, boxes and reflect do not apply to inpainting; leave them out, or leave out mask")
        return model.infill(picture, _region(mask), prompt=body.prompt, seed=seed, settings=settings)

    return ask


@_by_sampler
def infilling(body: Infill, seed: int) -> Callable[[Model | TextModel], Drawing | Answer]:
    """A Drawing for an image, an Answer for a text."""

    def ask(model: Model | TextModel) -> Drawing | Answer:
        settings = checked(body.overrides)
        if body.text is not None:
            return model.infill_text(body.text, seed=seed, settings=settings)
        draws = _image_model(model)
        image = picture_of(body.image or "", "image")
        mask = _region(read_data_url(body.mask or "", "mask"))
        return draws.infill(image, mask, prompt=body.prompt, seed=seed, settings=settings)

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
def chatting(body: Chat, seed: int) -> Callable[[Model | TextModel], Answer | Turn]:
    """An Answer to a question about an image, or a Turn of text and images."""

    def ask(model: Model | TextModel) -> Answer | Turn:
        settings, said = checked(body.settings), body.messages
        last = said[-1]
        if last.role != "user" or not last.words.strip():
            raise ValueError(
                "the last message must be from the user and contain text; add a message with the role user"
            )
        pictures = [url for message in said for url in message.pictures]
        if isinstance(model, TextModel):
            if pictures or body.draw:
                raise ValueError("this is a text model, which takes and generates no images; send text only")
            length, more = body.longest or 128, checked(body.overrides)
            form, _ = _form(body, model.parts.text, RELEASED, length)
            return model.ask(last.words, seed=seed, max_tokens=length, form=form, settings=more)
        if pictures and not body.draw:
            image, usual = picture_of(pictures[-1], "messages"), model.presets.answer
            form, lengths = _form(body, model.parts.text, model.parts.wording, usual)
            paced = [*_paced(body, model.presets.ask(model.parts), lengths), *settings]
            return model.ask(image, last.words, seed=seed, max_tokens=body.longest, form=form, settings=paced)
        if body.formed:
            raise ValueError(
                "response_format: only answers to questions about an image have a format; add an image and leave out draw, or leave it out"
            )
        if body.draw is False:
            raise ValueError(
                "draw is false, but the messages contain no image to answer about; add one, or leave out draw"
            )
        if body.overrides:
            raise ValueError("a turn of text and images uses its own samplers; leave out steps, guidance and settings")
        return model.converse(_messages(body), seed=seed)

    return ask


def unread(body: Chat) -> int:
    """Number of messages that an answer about an image does not read: all but the last one and the one with the image."""
    shown = max((i for i, m in enumerate(body.messages) if m.pictures), default=len(body.messages) - 1)
    return len({*range(len(body.messages))} - {shown, len(body.messages) - 1})


def settable(path: str) -> bool:
    """Whether a client may set a field of a sampler."""
    return path.strip().split(".")[-1].strip() not in _FIXED


def checked(settings: Sequence[str]) -> list[str]:
    """Settings that a client may make. ValueError for fixed fields and for values that are not finite numbers within bounds."""
    for setting in settings:
        path, _, text = setting.partition("=")
        if not settable(path):
            raise ValueError(f"settings: {path.strip()!r} is fixed by the model; leave it out")
        try:
            value = 0.0 if text.strip().lower() in _TRUTHS else float(text)
        except ValueError:
            raise ValueError(f"settings: {setting!r} is not a number; /v1/fields lists the settings") from None
        if not math.isfinite(value) or abs(value) > _MOST:
            raise ValueError(f"settings: {setting!r} is out of range; use a number of at most {_MOST}")
    return list(settings)


def _form(body: Chat, text: Text, wording: Wording, usual: int) -> tuple[AnswerFormat | None, list[int]]:
    """The required format and the number of tokens of each of its values; without a format, those of the answer.

    ``usual``: the default number of tokens. ValueError for an invalid format and for one that is too expensive.
    """
    if not body.formed:
        return None, [body.longest or usual]
    try:
        form = replace(of_response_format(body.response_format or {}) or AnswerFormat(), most_states=_MOST_STATES)
        slots = form.slots(text, wording)
        lengths = [body.longest or slot.default_length(usual) for slot in slots]
        if sum(len(slot.grammar.to) * length for slot, length in zip(slots, lengths, strict=True)) > _MOST_WORK:
            raise ValueError("the format is too complex; use shorter lengths or fewer tokens")
        return form, lengths
    except ValueError as error:
        raise ValueError(f"response_format: {error}") from error


def _paced(body: Chat, sampler: Sampler, lengths: Sequence[int]) -> list[str]:
    """``steps`` and ``guidance`` as settings of a text sampler, whose schedule may be given in tokens per step.

    ``lengths``: tokens of the answer, or of each value of a format. Values are decoded one after the other, each in at least one step.
    """
    if isinstance(sampler.schedule, Fixed) and body.steps is not None:
        return [f"schedule.each={-(-max(lengths) // max(1, body.steps // len(lengths)))}", *body.guided]
    return body.paced


def _messages(body: Chat) -> list[Message]:
    spoken = [m for m in body.messages if m.role in ("user", "assistant")]
    return [
        Message(
            role=m.role,
            text=m.words,
            images=tuple(picture_of(url, "messages") for url in m.pictures),
        )
        for m in spoken
    ]


def _plan(model: Model, body: Planned) -> bool | Layout:
    if not body.boxes:
        return bool(body.plan)
    layout = layout_of([(b.phrase, b.box) for b in body.boxes])
    model.emit(0, layout)
    return layout


def _region(data: bytes) -> Image.Image:
    """The region of a mask file. ValueError names the field mask."""
    try:
        return read_region(data)
    except ImageError as error:
        raise ValueError(f"mask: {error}") from error


def _image_model(model: Model | TextModel) -> Model:
    """The model, if it generates images. ValueError otherwise."""
    if isinstance(model, TextModel):
        raise ValueError("this is a text model, which generates no images; use an image model")
    return model
