"""What the tasks return: small values that carry the result, how it was made, and on request every step of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tokens.layouts import Layout
from unmask.tokens.text import Text


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a picture: the layout it was drawn from (or none), and what the model said of it, if it was asked.

    ``approval``: how probable it found it that it would approve, before it had said a word, 0..1.
    """

    image: Image.Image
    plan: Layout | None
    critique: str
    accepted: bool
    approval: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        plan = self.plan.to_json() if self.plan else None
        said = {"critique": self.critique, "accepted": self.accepted, "approval": round(self.approval, 4)}
        return {"plan": plan, **said, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture. ``seconds`` is the time of the whole call divided by its pictures; ``trace`` the canvas after every step.

    ``plan``: the layout it was drawn from · ``attempts``: every try, where it was reflected upon.
    """

    image: Image.Image
    prompt: str
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[Image.Image, ...] = ()
    plan: Layout | None = None
    attempts: tuple[Attempt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures; plan and attempts where there are any."""
        size = {"width": self.image.width, "height": self.image.height}
        thought: dict[str, Any] = {"plan": self.plan.to_json()} if self.plan else {}
        thought |= {"attempts": [r.to_json() for r in self.attempts]} if self.attempts else {}
        told = {"prompt": self.prompt, "seed": self.seed, "seconds": self.seconds, **size, **thought}
        return {**told, "settings": self.settings}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text. ``trace``: the text after every step, undecided tokens as ``_`` · ``value``: what it says, where a form was asked for."""

    text: str
    question: str
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[str, ...] = ()
    value: Any = None

    def to_json(self) -> dict[str, Any]:
        """``value`` only where a form was asked for, since it may be null then as well."""
        return {
            "question": self.question,
            "text": self.text,
            **({"value": self.value} if "form" in self.settings else {}),
            "seed": self.seed,
            "seconds": self.seconds,
            "settings": self.settings,
            "trace": list(self.trace),
        }


@dataclass(frozen=True, kw_only=True)
class Box:
    """A phrase and where it was found: corners in pixels of the picture that was given."""

    phrase: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return (self.x1, self.y1, self.x2, self.y2)


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """One box for every phrase, in the order asked."""

    boxes: tuple[Box, ...]
    image_size: tuple[int, int]
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        boxes = [{"phrase": b.phrase, "box": list(b.corners)} for b in self.boxes]
        size = {"width": self.image_size[0], "height": self.image_size[1]}
        return {"boxes": boxes, **size, "seed": self.seed, "seconds": self.seconds, "settings": self.settings}


def answered(sequence: Sequence, text: Text) -> str:
    """The answers of a finished sequence, as one text."""
    ids = [i for s in sequence.spans if s.name == "answer" for i in sequence.ids[s.start : s.stop].tolist()]
    return text.decode(ids)


def so_far(sequence: Sequence, text: Text) -> str:
    """The answers as they stand, undecided tokens as ``_``."""
    answers = [span for span in sequence.spans if span.name.partition(" ")[0] == "answer"]
    tokens = [i for span in answers for i in range(span.start, span.stop)]
    shown = ("_" if bool(sequence.masked[i]) else text.show([int(sequence.ids[i])]) for i in tokens)
    return "".join(shown).strip()


def describe(sampler: Sampler) -> dict[str, Any]:
    """A sampler's parts and fields as plain values, for the record."""
    return {name: _plain(value) for name, value in vars(sampler).items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {"part": type(value).__name__, **{k: _plain(v) for k, v in vars(value).items()}}
    if isinstance(value, frozenset | set):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value
