"""Layouts <-> tokens (spec 2.2, 2.3): phrases followed by their boxes; an edit layout begins with its reason.

Public idea: ``to_ids(layout)`` and ``from_ids(ids)``. Parsing of model output is lenient: malformed parts are repaired or dropped, and
``troubles`` reports both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.json_types import Json
from unmask.tokens.boxes import FractionBox, to_bins
from unmask.tokens.prompts import Wording
from unmask.tokens.text import BINS, BOX, END_BOX, END_PHRASE, EOS, EOT, EXP, PHRASE, Text

_END = (EOT, EOS, EXP)  # tokens that end a plan
_EDGES = " ,.:"  # stripped from phrases
_PIECES = re.compile(r"(<box_p>|</box_p>|\{phrase\}|\{box\})")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An object and its box: corners (x1, y1, x2, y2) as fractions of the square image."""

    phrase: str
    box: FractionBox


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Objects with boxes. ``reason``: what an edit does · ``troubles``: messages about parts that were repaired or dropped in parsing."""

    objects: tuple[Placed, ...]
    reason: str = ""
    troubles: tuple[str, ...] = ()

    def to_json(self) -> Json:
        objects = [{"phrase": t.phrase, "box": list(t.box)} for t in self.objects]
        return {"reason": self.reason, "things": objects, "troubles": list(self.troubles)}


def layout_of(objects: Sequence[tuple[str, Sequence[float]]]) -> Layout:
    """A layout from (phrase, box) pairs, boxes as fractions. ValueError for empty phrases and invalid boxes."""
    placed = []
    for phrase, box in objects:
        if not phrase.strip():
            raise ValueError("a box has no phrase; name its object")
        if len(box) != 4 or not all(math.isfinite(v) for v in box):
            raise ValueError(f"the box of {phrase!r} must be four numbers, got {list(box)}; give x1, y1, x2, y2")
        x1, y1, x2, y2 = box
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            raise ValueError(
                f"the box of {phrase!r} is {x1:g},{y1:g},{x2:g},{y2:g}; give fractions of the picture, 0 to 1, x1 < x2 and y1 < y2"
            )
        placed.append(Placed(phrase=phrase.strip(), box=(x1, y1, x2, y2)))
    if not placed:
        raise ValueError("the layout is empty; give at least one object with its box")
    return Layout(objects=tuple(placed))


def layout_in(text: str) -> Layout:
    """The layout that a user wrote: ``red apple: 0,0,0.5,0.5; cat: 0.5,0.5,1,1``, or one object a line. ValueError for other texts."""
    pairs = [part.rsplit(":", 1) for part in re.split(r"[;\n]", text) if part.strip()]
    try:
        objects = [(name, [float(v) for v in box.split(",")]) for name, box in pairs]
    except ValueError:
        raise ValueError(
            f"{text!r} is not a layout; write 'red apple: 0,0,0.5,0.5; cat: 0.5,0.5,1,1', or one a line"
        ) from None
    return layout_of(objects)


def layout_text(layout: Layout) -> str:
    """A layout as ``layout_in`` reads it, one object a line; boxes are rounded to four digits, finer than a model's bins."""
    return "\n".join(
        f"{t.phrase}: {','.join(f'{v:.4f}'.rstrip('0').rstrip('.') for v in t.box)}" for t in layout.objects
    )


def to_ids(layout: Layout, text: Text, wording: Wording) -> list[int]:
    """Token ids of a layout in a model's wording. Phrases are always encoded as plain text."""
    ids = text.encode(layout.reason + wording.reason_end) if layout.reason else []
    for i, obj in enumerate(layout.objects):
        if i and wording.between_placed:
            ids += text.encode(wording.between_placed)
        for piece in _PIECES.split(wording.placed):
            if piece == "{box}":
                ids += [text[BOX], *(text.first_location + k for k in to_bins(obj.box)), text[END_BOX]]
            elif piece in (PHRASE, END_PHRASE):
                ids.append(text[piece])
            elif piece:
                ids += text.encode(piece.format(phrase=obj.phrase))
    return ids


def from_ids(ids: Sequence[int], text: Text, wording: Wording) -> Layout:
    """Parse the output of a model up to the first token that ends a turn."""
    reader = _Reader(text, wording)
    ends = {text[name] for name in _END}
    for i in ids:
        if i in ends:
            break
        reader.read(i)
    return reader.finish()


class _Reader:
    """Parser state: alternates between words and coordinates."""

    def __init__(self, text: Text, wording: Wording) -> None:
        self.text, self.wording = text, wording
        self.words: list[int] = []
        self.bins: list[int] | None = None  # of the current box
        self.objects: list[Placed] = []
        self.troubles: list[str] = []
        self.reason = ""

    def read(self, token: int) -> None:
        text, place = self.text, token - self.text.first_location
        if 0 <= place <= BINS:
            self.bins = [*(self.bins or []), place]
        elif token == text[BOX]:
            self._close()
            self.bins = []
        elif token == text[END_BOX]:
            self._close()
        elif token == text[PHRASE]:  # earlier words were not the phrase of an object
            self._close()
            if not self.objects:
                self.reason = text.decode(self.words).strip(" ,")
            self.words = []
        elif token != text[END_PHRASE]:
            self._close()
            self.words.append(token)

    def finish(self) -> Layout:
        self._close()
        if left := self._phrase():
            self.troubles.append(f"{left!r} has no box: dropped")
        return Layout(objects=tuple(self.objects), reason=self.reason, troubles=tuple(self.troubles))

    def _phrase(self) -> str:
        phrase = self.text.decode(self.words).strip()
        end = self.wording.reason_end.strip()
        if not self.objects and end and end in phrase:
            self.reason, _, phrase = phrase.partition(end)
        return phrase.strip(_EDGES)

    def _close(self) -> None:
        """End the current box."""
        if self.bins is None:
            return
        phrase, bins = self._phrase(), self.bins
        self.words, self.bins = [], None
        if not phrase:
            self.troubles.append(f"a box without a phrase, {bins}: dropped")
        elif len(bins) < 4:
            self.troubles.append(f"{phrase!r} has {len(bins)} of 4 coordinates: dropped")
        else:
            self._place(phrase, bins)

    def _place(self, phrase: str, bins: list[int]) -> None:
        x1, y1, x2, y2 = (k / BINS for k in bins[:4])
        if len(bins) > 4:
            self.troubles.append(f"{phrase!r} has {len(bins)} coordinates: first four used")
        if x1 == x2 or y1 == y2:
            self.troubles.append(f"{phrase!r} has an empty box: dropped")
            return
        if x1 > x2 or y1 > y2:
            self.troubles.append(f"{phrase!r} has reversed corners: reordered")
        self.objects.append(Placed(phrase=phrase, box=(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
