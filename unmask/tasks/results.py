"""What the tasks return: small values that carry the result, how it was made, and on request every step of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture. ``seconds`` is the time of the whole call divided by its pictures; ``trace`` the canvas after every step."""

    image: Image.Image
    prompt: str
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[Image.Image, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        size = {"width": self.image.width, "height": self.image.height}
        return {"prompt": self.prompt, "seed": self.seed, "seconds": self.seconds, **size, "settings": self.settings}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text. ``trace``: the text after every step, undecided tokens as ``_``."""

    text: str
    question: str
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "text": self.text,
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


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """One box for every phrase, in the order asked."""

    boxes: tuple[Box, ...]
    image_size: tuple[int, int]
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        boxes = [{"phrase": b.phrase, "box": [b.x1, b.y1, b.x2, b.y2]} for b in self.boxes]
        size = {"width": self.image_size[0], "height": self.image_size[1]}
        return {"boxes": boxes, **size, "seed": self.seed, "seconds": self.seconds, "settings": self.settings}
