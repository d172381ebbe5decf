"""A conversation in interleaved words and pictures (spec 4.9, the paper's Algorithm 1).

Public idea: ``converse(model, messages, seed) -> Turn``. Text is decoded until it emits the token that announces a picture. The text
before that token decides how the picture is made: from a layout, as an edit of the last picture (where the layout is that of an edit), or
in place, inside the sequence. In the last case the text continues after the picture.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

from PIL import Image

from unmask.json_types import Json
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate, picture_codes
from unmask.tasks.lengths import Extent, Words, leading, read_words, written
from unmask.tasks.notebook import turn_html
from unmask.tasks.parts import Parts
from unmask.tasks.results import FinishReason, labels
from unmask.tasks.running import ThinkingRunner
from unmask.tokens.layouts import Layout, from_ids
from unmask.tokens.text import EOS, EOT, EXP
from unmask.tokens.turns import Said, announced, opened, resumed

NEEDS = frozenset({"und", "gen", "text_head", "vision", "vq.encoder", "vq.decoder"})
MAX_PICTURES = 4  # per turn
ROLES = ("system", "user", "assistant")
_NOT_READ = "system messages were not read: this model reads the last message only"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message. ``role``: system, user or assistant · ``images`` come before ``text``; a system message has none."""

    role: str
    text: str = ""
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The model's next turn. ``parts``: words and pictures in order.

    ``plan``: the layout of its picture, if any · ``unread``: how many of the oldest messages did not fit into the context ·
    ``warnings``: about the last message, one line each · ``finish_reason``: "length" if the words were cut off or a picture was left
    out, otherwise "stop" · ``approximate``: the parts of fast mode that acted; empty for an exact turn.
    """

    parts: tuple[str | Image.Image, ...]
    seed: int
    plan: Layout | None = None
    unread: int = 0
    finish_reason: FinishReason = "stop"
    seconds: float = 0.0
    settings: Json = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))

    def message(self) -> Message:
        """The turn as a message, to continue the conversation."""
        return Message(role="assistant", text=self.text, images=self.images)

    def _repr_html_(self) -> str:
        return turn_html(self.parts)

    def to_json(self) -> Json:
        """Plain values; pictures are null in ``parts``."""
        parts = [part if isinstance(part, str) else None for part in self.parts]
        plan = self.plan.to_json() if self.plan else None
        made = {"finish_reason": self.finish_reason, "seed": self.seed, "seconds": self.seconds}
        said = {"parts": parts, "plan": plan, "unread": self.unread, **made, "warnings": list(self.warnings)}
        return {**said, **labels(self.approximate)}


def check(messages: Items[Message], roles: Items[str] = ROLES) -> None:
    """ValueError unless the messages are a conversation of these roles that ends with a message of the user."""
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message must have the role user; append one")
    check_each(messages, roles)


def check_each(messages: Items[Message], roles: Items[str]) -> None:
    """ValueError for a message of another role, for one of the user without text, and for one of the system with images."""
    for number, message in enumerate(messages, 1):
        if message.role not in roles:
            raise ValueError(f"message {number} has the role {message.role!r}; use {' or '.join(roles)}")
        if not isinstance(message.text, str):
            raise TypeError(f"the text of message {number} must be a text, got {message.text!r}")
        if isinstance(message.images, str | Image.Image) or not all(isinstance(i, Image.Image) for i in message.images):
            raise TypeError(
                f"the images of message {number} must be a tuple of images; read files with read_image(path)"
            )
        if message.role == "system" and message.images:
            raise ValueError(f"message {number} is a system message with images; move them to a message of the user")
        if message.role == "user" and not message.text.strip():
            raise ValueError(f"message {number} has no text; add some")


def warnings(messages: Items[Message], parts: Parts) -> tuple[str, ...]:
    """What the model does not read of a conversation, one line each."""
    unread = parts.wording.one_turn and any(m.role == "system" and m.text.strip() for m in messages)
    return (_NOT_READ,) if unread else ()


def converse(model: ThinkingRunner, messages: Items[Message], seed: int, extent: Extent | None = None) -> Turn:
    """The next turn of messages that pass ``check``. Needs the parts ``NEEDS``, already loaded.

    ``extent``: of the words; None: one canvas of the preset length. A maximum below a canvas saves no steps, because only the whole text
    shows whether it is the layout of a picture.
    """
    parts, text, done = model.parts, model.parts.text, list[str | Image.Image]()
    extent = extent or Extent(length=model.presets.turn)
    sequence, unread = _request(model, messages, extent.length)
    if not parts.rows.announces:
        words = _only_words(model, sequence, seed, extent)
        return Turn(
            parts=(words.text,) if words.text else (), seed=seed, unread=unread, finish_reason=words.finish_reason
        )
    used = 0  # tokens of the words so far
    reason: FinishReason = "length"
    for number in range(MAX_PICTURES + 1):
        left = replace(extent, max_tokens=extent.limit - used)
        row = _write(model, sequence, key(seed, "words", number), left)
        at = announced(row, text)
        layout = from_ids(leading(row), text, parts.wording)
        # An edit of the background has no box: its layout is the reason alone.
        if at is not None and number < MAX_PICTURES and (layout.objects or _changes(messages, layout, parts)):
            model.emit(0, layout)
            picture = _planned(model, messages, layout, seed)
            used = _approximate(model, "edit" if _changes(messages, layout, parts) else "generate")
            return Turn(parts=(*done, picture), seed=seed, plan=layout, unread=unread, approximate=used)
        words = _words(row, at, parts, left)
        done += [words.text] if words.text else []
        if at is None or words.cut:
            reason = words.finish_reason
            break
        if number == MAX_PICTURES:
            break
        drawing = opened(row, at, parts.grid, parts.fold, text)
        drawn = _run(model, drawing, key(seed, "picture", number), model.presets.generate(parts))
        done += [parts.decode(picture_codes(drawn, "image")[None])[0]]
        used += at - row.spans[-1].start + 1
        if used >= extent.limit:
            break
        length = extent.length - used % extent.length
        sequence = resumed(drawn, length, text, prefix_lm=parts.quirks.prefix_lm)
    used = _approximate(model, *["generate"] * any(not isinstance(part, str) for part in done))
    return Turn(parts=tuple(done), seed=seed, unread=unread, finish_reason=reason, approximate=used)


def _approximate(model: ThinkingRunner, *pictures: str) -> tuple[str, ...]:
    """The parts of fast mode in the samplers of the words and of the pictures, by the names of the pictures' presets."""
    samplers = {name: getattr(model.presets, name)(model.parts) for name in ("turn_words", *pictures)}
    return model.presets.approximate(model.parts, samplers)


def _request(model: ThinkingRunner, messages: Items[Message], length: int) -> tuple[Sequence, int]:
    """The sequence of the next turn, and how many of the oldest messages were dropped because they do not fit.

    System messages at the beginning take the place of the wording's own and are never dropped.
    """
    parts, presets = model.parts, model.presets
    first = next(i for i, message in enumerate(messages) if message.role != "system")
    wording, said_first = parts.wording, [m.text.strip() for m in messages[:first] if m.text.strip()]
    if said_first and not wording.one_turn:
        wording = replace(wording, system="\n\n".join(said_first))
    for start in range(first, len(messages)):
        kept = messages[start:]
        if kept[0].role != "user":
            continue
        many = sum(len(m.images) for m in kept) > 1
        read = parts.overview if many else parts.image_views
        said = [Said(role=m.role, text=m.text, pictures=tuple(read(i) for i in m.images)) for m in kept]
        sequence = parts.rows.conversation(parts, wording, said, length)
        if len(sequence.ids) <= presets.context:
            return sequence, len(messages) - 1 if parts.wording.one_turn else start - first
    both = (
        "the system message and the last message exceed" if wording is not parts.wording else "the last message exceeds"
    )
    raise ValueError(f"{both} the context of {presets.context} tokens; shorten it")


def _run(model: ThinkingRunner, sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
    return model.run([sequence], [seed], sampler).rows[0]


def _write(model: ThinkingRunner, sequence: Sequence, seed: int, extent: Extent) -> Sequence:
    """Words up to an end of turn, an announced picture, or ``extent``."""
    parts, presets = model.parts, model.presets

    def run(sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
        return _run(model, sequence, seed, sampler)

    sampler, ends = presets.turn_words(parts), (EOT, EOS, EXP)
    return written(run, sequence, seed, sampler, extent, text=parts.text, context=presets.context, ends=ends)


def _only_words(model: ThinkingRunner, sequence: Sequence, seed: int, extent: Extent) -> Words:
    """The turn of a model that announces no pictures."""
    parts, presets = model.parts, model.presets

    def run(sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
        return _run(model, sequence, seed, sampler)

    row = written(run, sequence, seed, presets.turn_words(parts), extent, text=parts.text, context=presets.context)
    return read_words(leading(row), parts.text, extent)


def _words(row: Sequence, at: int | None, parts: Parts, extent: Extent) -> Words:
    """The words of the last span, up to the picture that is announced at token ``at``."""
    ids = leading(row)
    return read_words(ids if at is None else [*ids[: at - row.spans[-1].start], parts.text[EOT]], parts.text, extent)


def _planned(model: ThinkingRunner, messages: Items[Message], layout: Layout, seed: int) -> Image.Image:
    """The picture of a layout: an edit of the last picture if it is the layout of an edit, otherwise a new one."""
    parts, wanted = model.parts, messages[-1].text
    if _changes(messages, layout, parts):
        picture = _shown(messages)[-1]
        task: Edit | Generate = Edit(
            pixels=parts.preprocess(picture)[0], instruction=wanted, look=parts.image_views(picture), plan=layout
        )
        sampler = model.presets.edit(parts)
    else:
        asked = wanted.removeprefix(parts.wording.drawing_words.strip()).strip()
        task, sampler = Generate(prompt=asked, plan=layout), model.presets.generate(parts)
    return task.read(_run(model, task.build(parts), key(seed, "picture", 0), sampler), parts)


def _shown(messages: Items[Message]) -> list[Image.Image]:
    return [image for message in messages for image in message.images]


def _changes(messages: Items[Message], layout: Layout, parts: Parts) -> bool:
    """Whether a layout is that of an edit, and there is a picture to edit."""
    return bool(_shown(messages)) and layout.reason in dict(parts.wording.edit_reasons).values()
