"""A conversation in words and pictures: text that announces a picture goes on once it is drawn (spec 4.9, the paper's Algorithm 1).

Public idea: ``converse(model, messages, seed) -> Turn``. The words are written until they announce a picture; what they say before it
decides how it is drawn: from a layout, as a change of the last picture where the layout is that of an edit, or right there in the
sequence. The words pause while a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate, picture_codes
from unmask.tasks.parts import Parts
from unmask.tasks.running import Thinks
from unmask.tokens.layouts import Layout, from_ids
from unmask.tokens.text import EOT, EXP
from unmask.tokens.turns import Said, announced, conversation, opened, resumed

NEEDS = frozenset({"und", "gen", "text_head", "vision", "vq.encoder", "vq.decoder"})
MOST_PICTURES = 4  # of one turn
_ROLES = ("user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Message:
    """What was said: ``role`` is user or assistant; words, and pictures that stand before them."""

    role: str
    text: str = ""
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The model's next turn: ``parts`` are words and pictures in order.

    ``plan``: the layout it drew from · ``unread``: how many of the oldest messages it was not shown.
    """

    parts: tuple[str | Image.Image, ...]
    seed: int
    plan: Layout | None = None
    unread: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))

    def message(self) -> Message:
        """The turn as a message of the conversation that goes on."""
        return Message(role="assistant", text=self.text, images=self.images)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, which are null among the parts."""
        parts = [part if isinstance(part, str) else None for part in self.parts]
        plan = self.plan.to_json() if self.plan else None
        return {"parts": parts, "plan": plan, "unread": self.unread, "seed": self.seed, "seconds": self.seconds}


def check(messages: Items[Message]) -> None:
    """ValueError where messages are no conversation that the user has the last word in."""
    if not messages or messages[-1].role != "user":
        raise ValueError("a conversation ends with what the user says; add a message with the role user")
    for number, message in enumerate(messages, 1):
        if message.role not in _ROLES:
            raise ValueError(f"message {number} has the role {message.role!r}; use {' or '.join(_ROLES)}")
        if message.role == "user" and not message.text.strip():
            raise ValueError(f"message {number} has no words; say what you want")


def converse(model: Thinks, messages: Items[Message], seed: int) -> Turn:
    """The next turn of messages that pass ``check``. ``NEEDS`` must have been loaded."""
    parts, text = model.parts, model.parts.text
    sequence, unread = _asked(model, messages)
    done: list[str | Image.Image] = []
    room = model.presets.turn
    for number in range(MOST_PICTURES + 1):
        written = _run(model, sequence, key(seed, "words", number), model.presets.turn_words(parts))
        at = announced(written, text)
        words, layout = _words(written, at, parts)
        if at is None or number == MOST_PICTURES:
            done += [words] if words else []
            break
        # The background has no box: the plan to change it is its reason alone.
        if layout.objects or _changes(messages, layout, parts):
            model.tell(0, layout)
            done += [_planned(model, messages, layout, seed)]
            return Turn(parts=tuple(done), seed=seed, plan=layout, unread=unread)
        drawing = opened(written, at, parts.grid, parts.fold, text)
        drawn = _run(model, drawing, key(seed, "picture", number), model.presets.generate(parts))
        done += [*([words] if words else []), parts.decode(picture_codes(drawn, "image")[None])[0]]
        room -= at - written.spans[-1].start + 1
        if room < 1:
            break
        sequence = resumed(drawn, room, text)
    return Turn(parts=tuple(done), seed=seed, unread=unread)


def _asked(model: Thinks, messages: Items[Message]) -> tuple[Sequence, int]:
    """The request for the next turn, without the oldest messages where they do not fit, and how many those are."""
    parts, presets = model.parts, model.presets
    for unread in range(len(messages)):
        kept = messages[unread:]
        if kept[0].role != "user":
            continue
        many = sum(len(m.images) for m in kept) > 1
        see = parts.glance if many else parts.look
        said = [Said(role=m.role, text=m.text, pictures=tuple(see(i) for i in m.images)) for m in kept]
        sequence = conversation(parts.builder(), said, presets.turn)
        if len(sequence.ids) <= presets.context:
            return sequence, len(messages) - 1 if parts.wording.one_turn else unread
    raise ValueError(f"the last message does not fit into {presets.context} tokens; shorten it")


def _run(model: Thinks, sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
    return model.run([sequence], [seed], sampler).rows[0]


def _words(written: Sequence, at: int | None, parts: Parts) -> tuple[str, Layout]:
    """What was written last, up to the picture: as words, and as the layout that it may be."""
    span = written.spans[-1]
    ids = written.ids[span.start : span.stop if at is None else at].tolist()
    if at is None:
        ends = (parts.text[EOT], parts.text[EXP])
        ids = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
    return parts.text.decode(ids), from_ids(ids, parts.text, parts.wording)


def _planned(model: Thinks, messages: Items[Message], layout: Layout, seed: int) -> Image.Image:
    """The picture of a layout: the last one changed where the layout is that of an edit, else a new one."""
    parts, wanted = model.parts, messages[-1].text
    if _changes(messages, layout, parts):
        picture = _shown(messages)[-1]
        task: Any = Edit(pixels=parts.see(picture)[0], instruction=wanted, look=parts.look(picture), plan=layout)
        sampler = model.presets.edit(parts)
    else:
        asked = wanted.removeprefix(parts.wording.drawing_words.strip()).strip()
        task, sampler = Generate(prompt=asked, plan=layout), model.presets.generate(parts)
    return task.read(_run(model, task.build(parts), key(seed, "picture", 0), sampler), parts)


def _shown(messages: Items[Message]) -> list[Image.Image]:
    return [image for message in messages for image in message.images]


def _changes(messages: Items[Message], layout: Layout, parts: Parts) -> bool:
    """Whether a layout is that of an edit, and something is there to be edited."""
    return bool(_shown(messages)) and layout.reason in dict(parts.wording.edit_reasons).values()
