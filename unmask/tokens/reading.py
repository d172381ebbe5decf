"""Typed text as the training texts of a model would write it. Public idea: ``Reading.read(text)``.

A small model knows one way to write each thing: "two dogs", "what colour is the car?". People type "2 Dogs.", "what color is the car".
Both must give the same tokens, and a text of the training data must come back unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_ENDS = " .,;:!?\"'`"  # without meaning at the end of a text
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "&": " and "})
_NUMBER = re.compile(r"(?<![\w.,:/⁄-])\d+(?![\w/⁄:-]|[.,]\d)")
_STOPS = re.compile(r"\s*(?:(?<!\d),|,(?!\d)|[;.!?]+(?=\s))[\s,;.!?]*")  # between objects or sentences
_ONE = re.compile(r"\bone (?=([a-z]+))")
_AFTER_ONE = frozenset(
    ("at", "in", "on", "of", "and", "or", "is", "are", "to", "with", "above", "below", "left", "right")
)
_SHORT_IS = re.compile(r"\b(what|where|which|who|there|that|it)'s\b")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``numbers``: the words for 0, 1, 2 … · ``spellings``: other spellings of a word and the known one · ``questions``: words that begin a
    question, which then ends with a question mark.
    """

    numbers: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]

    def read(self, text: str) -> str:
        """The text in lower case on one line, with single spaces, known spellings, numbers as words and no punctuation at its ends.

        Control characters separate words; invisible ones are removed. A text of punctuation alone keeps it.
        """
        line = " ".join(_visible(unicodedata.normalize("NFKC", text)).lower().translate(_QUOTES).split())
        plain = _STOPS.sub(", ", line.strip(_ENDS)).replace(", and ", " and ")
        plain = _SHORT_IS.sub(r"\1 is", _NUMBER.sub(self._number, plain))
        for other, known in self.spellings:
            plain = re.sub(rf"\b{other}\b", known, plain)
        plain = _ONE.sub(_article, plain)
        return f"{plain}?" if plain.partition(" ")[0] in self.questions else plain or line

    def _number(self, found: re.Match[str]) -> str:
        digits = found[0]
        known = len(digits) < 3 and digits == str(int(digits)) and int(digits) < len(self.numbers)
        return self.numbers[int(digits)] if known else digits


def _article(found: re.Match[str]) -> str:
    """Training texts say "a dog" for one dog, and "one" only before a position."""
    return found[0] if found[1] in _AFTER_ONE else "an " if found[1][0] in "aeiou" else "a "


def _visible(text: str) -> str:
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    """Separators, control characters and the zero-width space act as a space; other format characters have no effect."""
    kind = unicodedata.category(character)
    if kind in ("Cc", "Zs", "Zl", "Zp") or character == "\u200b":
        return " "
    return "" if kind == "Cf" else character
