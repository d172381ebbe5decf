"""Layouts <-> tokens (spec 2.2, 2.3): phrases, each with its box behind it, and before an edit's the reason for it.

Public idea: ``to_ids(layout)`` and ``from_ids(ids)``. What a model wrote is read with patience: what can be repaired is repaired, the
rest is dropped, and both are said in ``troubles``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unmask.tokens.boxes import FractionBox, to_bins
from unmask.tokens.prompts import Wording
from unmask.tokens.text import BINS, BOX, END_BOX, END_PHRASE, EOS, EOT, EXP, PHRASE, Text

_END = (EOT, EOS, EXP)  # what a plan ends with
_EDGES = " ,.:"  # what may stand around a name
_PIECES = re.compile(r"(<box_p>|</box_p>|\{phrase\}|\{box\})")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An object and where it is: corners (x1, y1, x2, y2) as fractions of the square picture."""

    phrase: str
    box: FractionBox


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What goes where. ``reason``: what an edit does · ``troubles``: what was repaired or dropped when it was read, a sentence each."""

    objects: tuple[Placed, ...]
    reason: str = ""
    troubles: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        objects = [{"phrase": t.phrase, "box": list(t.box)} for t in self.objects]
        return {"reason": self.reason, "things": objects, "troubles": list(self.troubles)}


def layout_of(objects: Sequence[tuple[str, Sequence[float]]]) -> Layout:
    """A user's layout: (phrase, box) pairs, boxes as fractions. ValueError where one says nothing or lies outside the picture."""
    placed = []
    for phrase, box in objects:
        if not phrase.strip():
            raise ValueError("a box has no name; say what shall be in it")
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


def to_ids(layout: Layout, text: Text, wording: Wording) -> list[int]:
    """The layout in the words of a model. Its phrases are plain text, whatever they say."""
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
    """What a model wrote, up to the first token that ends a turn."""
    reader = _Reader(text, wording)
    ends = {text[name] for name in _END}
    for i in ids:
        if i in ends:
            break
        reader.read(i)
    return reader.finish()


class _Reader:
    """Goes through the tokens once: words, then coordinates, then words again."""

    def __init__(self, text: Text, wording: Wording) -> None:
        self.text, self.wording = text, wording
        self.words: list[int] = []
        self.bins: list[int] | None = None  # of the box that is being read
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
        elif token == text[PHRASE]:  # what was said before was no name of an object
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
        said = self.text.decode(self.words).strip()
        end = self.wording.reason_end.strip()
        if not self.objects and end and end in said:
            self.reason, _, said = said.partition(end)
        return said.strip(_EDGES)

    def _close(self) -> None:
        """A box is complete, as far as it goes."""
        if self.bins is None:
            return
        phrase, bins = self._phrase(), self.bins
        self.words, self.bins = [], None
        if not phrase:
            self.troubles.append(f"a box of nothing, {bins}: dropped")
        elif len(bins) < 4:
            self.troubles.append(f"{phrase!r} has {len(bins)} of 4 coordinates: dropped")
        else:
            self._place(phrase, bins)

    def _place(self, phrase: str, bins: list[int]) -> None:
        x1, y1, x2, y2 = (k / BINS for k in bins[:4])
        if len(bins) > 4:
            self.troubles.append(f"{phrase!r} has {len(bins)} coordinates: the first four taken")
        if x1 == x2 or y1 == y2:
            self.troubles.append(f"{phrase!r} has a box without an inside: dropped")
            return
        if x1 > x2 or y1 > y2:
            self.troubles.append(f"{phrase!r} has its corners reversed: put in order")
        self.objects.append(Placed(phrase=phrase, box=(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
