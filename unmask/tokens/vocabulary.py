"""What a small model knows, as data beside its weights (``vocabulary.json``), and warnings about prompts with other words.

Public idea: ``Vocabulary.warnings(text)``. A model without the file knows any text, and no prompt warns.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from unmask.files import parse_json
from unmask.json_types import Json

FILE = "vocabulary.json"
_NAMED = 6  # unknown words that a warning names; it counts the others
_LONGEST = 40  # characters of an unknown word that are shown
_FIELDS = ("name", "draws", "groups", "forms", "words")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The words of a model's training texts, in lower case.

    ``name``: of the model · ``draws``: what it draws, continuing a sentence that starts with the name · ``groups``: the words that matter,
    by kind ("objects" is required: a drawing needs one of them) · ``forms``: other forms of a word, such as plurals · ``words``: all other
    words of its texts. An entry of several words, such as "traffic light", is known as a whole only.
    """

    name: str
    draws: str
    groups: Mapping[str, tuple[str, ...]]
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Vocabulary:
        """The inverse of ``text``. ValueError names the field that is wrong."""
        raw = parse_json(text)
        if not isinstance(raw, dict) or set(raw) != set(_FIELDS):
            raise ValueError(f"expected an object with the fields {', '.join(_FIELDS)}")
        for name in ("name", "draws"):
            if not isinstance(raw[name], str) or not raw[name].strip():
                raise ValueError(f"{name} must be a text that is not empty")
        for name in ("groups", "forms"):
            if not isinstance(raw[name], dict) or not all(map(_are_words, raw[name].values())):
                raise ValueError(f"{name} must map names to lists of words")
        if not _are_words(raw["words"]) or not raw["groups"].get("objects"):
            raise ValueError("words must be a list of words, and groups must have objects")
        groups, forms = ({k: tuple(v) for k, v in raw[name].items()} for name in ("groups", "forms"))
        return cls(name=raw["name"], draws=raw["draws"], groups=groups, forms=forms, words=tuple(raw["words"]))

    def text(self) -> str:
        """The content of a ``vocabulary.json``."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, indent=1, ensure_ascii=False) + "\n"

    @property
    def about(self) -> str:
        """One sentence that says what the model knows."""
        return f"{self.name} {self.draws}."

    def to_json(self) -> Json:
        return {"about": self.about, "groups": {name: list(words) for name, words in self.groups.items()}}

    def warnings(self, text: str, *, needs_object: bool = True) -> tuple[str, ...]:
        """At most one line, which names the unknown words of a prompt and what the model knows; () if everything is known.

        ``needs_object``: also warn about a prompt that names no object, as a drawing must; questions and instructions may.
        """
        found = list(_parse(text, self._known, self._most_words))
        unknown = list(dict.fromkeys(word for word, known in found if not known))
        nothing = needs_object and not self.names_object(text)
        if not unknown and not nothing:
            return ()
        problems = [f"{self.name} does not know {_listed(unknown)}"] if unknown else []
        problems += ["nothing to draw was found in the prompt"] if nothing else []
        return ("; ".join([*problems, f"{self.name} {self.draws}"]),)

    def names_object(self, text: str) -> bool:
        """Whether a text has a word for something to draw."""
        return any(known and word in self._objects for word, known in _parse(text, self._known, self._most_words))

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words of a text that are not in the vocabulary, each once, in order."""
        found = _parse(text, self._known, self._most_words)
        return tuple(dict.fromkeys(word for word, known in found if not known))

    def extended(self, name: str, words: tuple[str, ...]) -> Vocabulary:
        """The vocabulary of a model called ``name`` that has learned ``words`` too, any of which may name an object."""
        if not words:
            return replace(self, name=name)
        objects = (*self.groups["objects"], *words)
        draws = f"{self.draws}, and what it was fine-tuned on ({_listed(list(words))})"
        return replace(self, name=name, draws=draws, groups={**self.groups, "objects": objects})

    @cached_property
    def _known(self) -> frozenset[str]:
        grouped = (word for words in self.groups.values() for word in words)
        formed = (form for forms in self.forms.values() for form in forms)
        return frozenset((*grouped, *formed, *self.words))

    @cached_property
    def _objects(self) -> frozenset[str]:
        names = self.groups["objects"]
        return frozenset((*names, *(form for name in names for form in self.forms.get(name, ()))))

    @cached_property
    def _most_words(self) -> int:
        return max(len(entry.split()) for entry in self._known)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def _listed(words: list[str]) -> str:
    """``'a', 'b'``; a long list is cut and counted."""
    shown = [f"'{word if len(word) <= _LONGEST else word[: _LONGEST - 1] + '…'}'" for word in words[:_NAMED]]
    more = len(words) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _parse(text: str, known: frozenset[str], most: int) -> Iterator[tuple[str, bool]]:
    """The words of a text from left to right, the longest known entry first, each with whether it is known."""
    words = _words(text)
    at = 0
    while at < len(words):
        counts = range(min(most, len(words) - at), 0, -1)
        count = next((n for n in counts if " ".join(words[at : at + n]) in known), 1)
        entry = " ".join(words[at : at + count])
        yield entry, entry in known
        at += count


def _words(text: str) -> list[str]:
    """Words in lower case without the punctuation around them. Symbols such as emoji count as words; what cannot be printed separates."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("'s", "")
    spaced = "".join(c if c.isprintable() and c not in ",;/-–—&()" else " " for c in plain)
    stripped = (_strip(word) for word in spaced.split())
    return [word for word in stripped if word]


def _strip(word: str) -> str:
    first, last = 0, len(word)
    while first < last and not _counts(word[first]):
        first += 1
    while last > first and not _counts(word[last - 1]):
        last -= 1
    return word[first:last]


def _counts(character: str) -> bool:
    """Whether a character is part of a word at its edge: letters, digits, marks and pictures, but no punctuation."""
    return unicodedata.category(character)[0] in "LMN" or unicodedata.category(character) == "So"
