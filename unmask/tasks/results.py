"""Results of tasks: the output, how it was made, and optionally a trace of every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from torch import nn

from unmask.json_types import Json
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.notebook import boxes_html, drawing_html, exchange_html, to_png, turn_html
from unmask.tokens.layouts import Layout
from unmask.tokens.text import Text

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a picture: its layout (or None) and the model's critique ("" if there was none).

    ``accepted``: whether the critique accepts it · ``approval``: acceptance score, the expected count of "correct" over the fully masked
    critique, 0..1.
    """

    image: Image.Image
    plan: Layout | None
    critique: str
    accepted: bool
    approval: float
    seed: int

    def _repr_png_(self) -> bytes:
        return to_png(self.image)

    def to_json(self) -> Json:
        plan = self.plan.to_json() if self.plan else None
        verdict = {"critique": self.critique, "accepted": self.accepted, "approval": round(self.approval, 4)}
        return {"plan": plan, **verdict, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture. ``seconds``: time of the call divided by its pictures · ``trace``: the picture after each step.

    ``plan``: its layout · ``attempts``: all attempts of best-of-N, empty without it · ``warnings``: about the prompt, one line each ·
    ``approximate``: the parts of fast mode that acted, as ``steps=0.5``; empty for an exact result.
    """

    image: Image.Image
    prompt: str
    seed: int
    seconds: float
    settings: Json = field(default_factory=dict)
    trace: tuple[Image.Image, ...] = ()
    plan: Layout | None = None
    attempts: tuple[Attempt, ...] = ()
    warnings: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()

    def _repr_png_(self) -> bytes:
        return to_png(self.image)

    def _repr_html_(self) -> str | None:
        said = [(a.image, f"{'accepted' if a.accepted else 'rejected'}: {a.critique}") for a in self.attempts]
        return drawing_html(self.image, said, self.trace)

    def to_json(self) -> Json:
        """Plain values without the pictures; ``plan``, ``attempts`` and ``approximate`` only if there are any."""
        size = {"width": self.image.width, "height": self.image.height}
        thinking: Json = {"plan": self.plan.to_json()} if self.plan else {}
        thinking |= {"attempts": [r.to_json() for r in self.attempts]} if self.attempts else {}
        fields = {"prompt": self.prompt, "seed": self.seed, "seconds": self.seconds, **size, **thinking}
        return {**fields, "settings": self.settings, "warnings": list(self.warnings), **labels(self.approximate)}


class Drawings(list[Drawing]):
    """The pictures of one call: a list, which notebooks show as pictures."""

    def _repr_html_(self) -> str:
        return turn_html([drawing.image for drawing in self])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text. ``trace``: the text after each step, masked tokens as ``_`` · ``value``: the parsed value of a constrained answer ·
    ``warnings``: about the question, one line each · ``finish_reason``: "length" if ``max_tokens`` or the model's context cut the text
    off, otherwise "stop" · ``approximate``: as of ``Drawing``.
    """

    text: str
    question: str
    seed: int
    seconds: float
    settings: Json = field(default_factory=dict)
    trace: tuple[str, ...] = ()
    value: object = None
    warnings: tuple[str, ...] = ()
    finish_reason: FinishReason = "stop"
    approximate: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return exchange_html(self.question, self.text, self.trace)

    def to_json(self) -> Json:
        """``value`` is present for constrained answers only, where it may be null; ``approximate`` only if it is not empty."""
        return {
            "question": self.question,
            "text": self.text,
            "finish_reason": self.finish_reason,
            **({"value": self.value} if "form" in self.settings else {}),
            "seed": self.seed,
            "seconds": self.seconds,
            "settings": self.settings,
            "trace": list(self.trace),
            "warnings": list(self.warnings),
            **labels(self.approximate),
        }


@dataclass(frozen=True, kw_only=True)
class Box:
    """A phrase and its box: corners in pixels of the given picture."""

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
    """One box per phrase, in the given order. ``warnings``: about the phrases, one line each · ``image``: the picture, for notebooks."""

    boxes: tuple[Box, ...]
    image_size: tuple[int, int]
    seed: int
    seconds: float
    settings: Json = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    image: Image.Image | None = field(default=None, compare=False, repr=False)

    def _repr_html_(self) -> str:
        return boxes_html(self.image, [(b.phrase, b.corners) for b in self.boxes])

    def to_json(self) -> Json:
        boxes = [{"phrase": b.phrase, "box": list(b.corners)} for b in self.boxes]
        size = {"width": self.image_size[0], "height": self.image_size[1]}
        made = {"seed": self.seed, "seconds": self.seconds, "settings": self.settings}
        return {"boxes": boxes, **size, **made, "warnings": list(self.warnings)}


def labels(approximate: tuple[str, ...]) -> Json:
    """The JSON field ``approximate``; no field for an exact result."""
    return {"approximate": list(approximate)} if approximate else {}


def answered(sequence: Sequence, text: Text) -> str:
    """The answers of a finished sequence, as one text."""
    ids = [i for s in sequence.spans if s.name == "answer" for i in sequence.ids[s.start : s.stop].tolist()]
    return text.decode(ids)


def so_far(sequence: Sequence, text: Text, most: int | None = None) -> str:
    """The answers so far, their first ``most`` tokens (None: all), masked tokens as ``_``."""
    answers = [span for span in sequence.spans if span.name.partition(" ")[0] == "answer"]
    tokens = [i for span in answers for i in range(span.start, span.stop)][:most]
    shown = ("_" if bool(sequence.masked[i]) else text.show([int(sequence.ids[i])]) for i in tokens)
    return "".join(shown).strip()


def describe(sampler: Sampler) -> Json:
    """A sampler's parts and fields as JSON has them; networks, functions and other objects by name."""
    return {name: _plain(value) for name, value in vars(sampler).items()}


def _plain(value: object) -> object:
    if isinstance(value, nn.Module):  # also one that is a dataclass
        return type(value).__name__
    if hasattr(value, "__dataclass_fields__"):
        return {"part": type(value).__name__, **{k: _plain(v) for k, v in vars(value).items()}}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return getattr(value, "__name__", type(value).__name__)
