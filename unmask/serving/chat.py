"""Chat requests as calls of the model. Public idea: ``chatting(body, seed)(model) -> Answer | Turn``.

A text model answers the last message. A model with images answers a question about an image, or generates the next turn of the
conversation, in text and images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from unmask.grammars.answer_format import AnswerFormat, of_response_format
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.guidance import NoGuidance
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.serving.calls import by_sampler, checked
from unmask.serving.data_urls import picture_of
from unmask.serving.errors import about
from unmask.serving.picture_reader import READER, PictureReader
from unmask.serving.schema import visible
from unmask.serving.schema_chat import Chat, ChatMessage
from unmask.serving.unknown_fields import ignored_warning
from unmask.tasks.conversing import Message, Turn
from unmask.tasks.drafts import draft_length
from unmask.tasks.lengths import Extent
from unmask.tasks.results import Answer
from unmask.tokens.prompts import RELEASED, Wording
from unmask.tokens.text import Text

# Limits of an answer format. Compiling it takes time from other calls, about half a second at this limit on states. Every step visits each
# edge of the automaton at each token of the answer, at most 40 ms at this limit on their product.
_MOST_STATES, _MOST_WORK = 4000, 500_000
_LEAST_TOP_P = 1e-6  # stands for 0: the most probable token alone


@by_sampler
def chatting(body: Chat, seed: int, reader: PictureReader = READER) -> Callable[[Model | TextModel], Answer | Turn]:
    """An Answer to a question, or a Turn of text and images."""

    def ask(model: Model | TextModel) -> Answer | Turn:
        last = body.messages[-1]
        if last.role != "user" or not visible(last.words):
            raise ValueError(
                "messages: the last message must be from the user and contain text; add a message with the role user"
            )
        with about("messages", instead_of=("prompt", "text", "image")):
            if isinstance(model, TextModel):
                return _reply(model, body, seed)
            _check_pictures(model, body)
            if body.sampler is not None and body.pictures and body.draw is None and body.draws:
                raise ValueError("sampler: answers and turns use it differently; set draw to true for a turn")
            make = _turn if _converses(model, body) else _about_picture
            return make(model, body, seed, reader)

    return ask


def warnings(model: Model | TextModel, body: Chat) -> tuple[str, ...]:
    """What of a request had no effect."""
    found = list(ignored_warning(body.ignored))
    if body.after:
        found.append(f"messages after the last one of the user were not read: {body.after}")
    if isinstance(model, Model):
        if not _converses(model, body) and any(
            m.role in ("system", "developer") and m.words.strip() for m in body.messages
        ):
            found.append("system messages were not read: the model has a fixed prompt for questions about one image")
        if unread := _unread_pictures(model, body):
            found.append(f"earlier images were not read ({unread}): the model reads one image per answer, the last one")
    if body.top_p is not None and body.top_p < 1 and not body.temperature:
        found.append("top_p has no effect without a temperature above 0")
    return tuple(found)


def unread(model: Model | TextModel, body: Chat) -> int:
    """Number of messages that an answer about an image does not read: all but the last one and the one with the image. A text model reads
    all of them.
    """
    if isinstance(model, TextModel):
        return 0
    shown = max((i for i, m in enumerate(body.messages) if m.pictures), default=len(body.messages) - 1)
    return len({*range(len(body.messages))} - {shown, len(body.messages) - 1})


def extent(model: Model | TextModel, body: Chat) -> Extent | None:
    """The limits of an answer that is text from its first token on. None for structured output, for a draft, for a turn that may contain
    images, and with a method's sampler, which may mask or change tokens again.
    """
    if body.formed or body.sampler or body.draft or (isinstance(model, Model) and _converses(model, body)):
        return None
    return Extent(length=_usual(model), max_tokens=body.longest, stop=tuple(body.stop))


def _usual(model: Model | TextModel) -> int:
    return model.presets.answer if isinstance(model, Model) else model.parts.family.length


def _reply(model: TextModel, body: Chat, seed: int) -> Answer:
    if body.pictures or body.draw or "image" in (body.modalities or ()):
        raise ValueError("messages: this is a text model, which takes and generates no images; send text only")
    *before, last = _messages(body.messages, READER)
    form, _ = _form(body, model.parts.text, RELEASED, model.parts.family.length)
    return model.ask(
        last.text,
        messages=before,
        seed=seed,
        max_tokens=body.longest,
        stop=body.stop,
        form=form,
        draft=_draft(body, model),
        temperature=body.temperature,
        top_p=_top_p(body),
        settings=checked(body.overrides),
    )


def _about_picture(model: Model, body: Chat, seed: int, reader: PictureReader) -> Answer:
    if not body.pictures and not model.parts.net.config.first_code:  # a model of its kind answers without an image, too
        field, what = ("draft", "or leave it out") if body.draft else ("draw", "or leave out draw")
        given = "it is for answers about an image" if body.draft else "it is false"
        raise ValueError(f"{field}: {given}, but the messages contain no image; add one, {what}")
    image = picture_of(body.pictures[-1], "messages", reader).image if body.pictures else None
    form, lengths = _form(body, model.parts.text, model.parts.wording, model.presets.answer)
    sampler = model.presets.ask(model.parts)
    if body.guidance is not None and isinstance(sampler.guidance, NoGuidance):
        raise ValueError("guidance: this model answers questions without guidance; leave it out")
    paced = _paced(body, sampler, lengths)
    return model.ask(
        image,
        body.messages[-1].words,
        seed=seed,
        max_tokens=body.longest,
        stop=body.stop,
        form=form,
        draft=_draft(body, model),
        temperature=body.temperature,
        top_p=_top_p(body),
        settings=[*paced, *checked(body.settings)],
    )


def _turn(model: Model, body: Chat, seed: int, reader: PictureReader) -> Turn:
    if body.formed:
        raise ValueError(
            "response_format: only answers to questions about one image have a format; add an image and leave out draw, or leave it out"
        )
    if body.overrides:
        given = "settings" if body.settings else "steps" if body.steps is not None else "guidance"
        raise ValueError(
            f"{given}: a turn of text and images uses its own samplers; leave out steps, guidance and settings"
        )
    words = {"max_tokens": body.longest, "stop": body.stop, "temperature": body.temperature, "top_p": _top_p(body)}
    return model.converse(_messages(body.messages, reader), seed=seed, **words)


def _draft(body: Chat, model: Model | TextModel) -> str:
    """The draft of an answer. ValueError names the field for a wrong one, and the field that it excludes."""
    if not body.draft:
        return ""
    given = {"draw": body.draw, "stop": body.stop, "response_format": body.formed, "max_tokens": body.longest}
    given["modalities"] = body.draw is None and "image" in (body.modalities or ())
    if wrong := next((name for name, value in given.items() if value), ""):
        raise ValueError(f"{wrong}: it cannot be combined with draft, which says what the answer has; leave one out")
    try:
        draft_length(body.draft, model.parts)
    except ValueError as error:
        raise ValueError(f"draft: {error}") from error
    return body.draft


def _top_p(body: Chat) -> float | None:
    return None if body.top_p is None else max(body.top_p, _LEAST_TOP_P)


def _converses(model: Model, body: Chat) -> bool:
    """Whether the answer is a turn of the whole conversation, which alone reads several images. A draft is of one answer."""
    return not body.draft and (body.draws or (len(body.pictures) > 1 and not model.parts.wording.one_turn))


def _check_pictures(model: Model, body: Chat) -> None:
    """ValueError for several images in the message whose image would be read, where the model reads one."""
    read = next((m for m in reversed(body.messages) if m.pictures), None)
    if read and len(read.pictures) > 1 and model.parts.wording.one_turn:
        raise ValueError(
            f"messages: this model reads one image per answer, and a message has {len(read.pictures)}; send one image per message"
        )


def _unread_pictures(model: Model, body: Chat) -> int:
    """Number of the user's images that are not read, for a model that reads one image. A drawing is new, so it needs none."""
    wording, given = model.parts.wording, [url for m in body.messages if m.role == "user" for url in m.pictures]
    if not given or not wording.one_turn or body.messages[-1].words.startswith(wording.drawing_words):
        return 0
    return len(given) - (given[-1:] == body.pictures[-1:])


def _messages(messages: Sequence[ChatMessage], reader: PictureReader) -> list[Message]:
    """The messages as the model reads them; a developer message is a system message."""
    return [
        Message(
            role="system" if m.role == "developer" else m.role,
            text=m.words,
            images=tuple(picture_of(url, "messages", reader).image for url in m.pictures),
        )
        for m in messages
    ]


def _form(body: Chat, text: Text, wording: Wording, usual: int) -> tuple[AnswerFormat | None, list[int]]:
    """The required format and the number of tokens of each of its values; without a format, those of the answer.

    ``usual``: the default number of tokens. ValueError for an invalid format and for one that is too expensive.
    """
    if not body.formed:
        return None, [usual]
    if body.stop:
        raise ValueError("stop: it cannot cut an answer that has a format; leave out stop or response_format")
    try:
        form = replace(of_response_format(body.response_format or {}) or AnswerFormat(), most_states=_MOST_STATES)
        slots = form.slots(text, wording)
        lengths = [slot.default_length(usual) for slot in slots]
        work = sum(len(slot.grammar.to) * length for slot, length in zip(slots, lengths, strict=True))
        if work > _MOST_WORK:
            raise ValueError(
                f"the format is too complex: edges of its automaton times tokens of the answer are {work}, at most {_MOST_WORK}; "
                "use shorter lengths or fewer alternatives"
            )
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
