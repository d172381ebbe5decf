"""The format that a user wants for an answer: a JSON schema or a regular expression.

``of_schema({...})``, ``of_regex("...")`` and ``of_response_format({...})`` make an ``AnswerFormat``. ``slots(text, wording)`` lists the
texts that the model has to write for it, and ``value(read)`` assembles the answer from their values. Normally there is one slot, the whole
JSON text. A model that has never seen JSON (``Wording.field_by_field``) gets one question for every value of an object and answers in
plain words; the program adds braces, names and quotes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from unmask.grammars.automaton import MOST_STATES, Alternation, Expression, TooLarge, literal, share_of
from unmask.grammars.grammar import Grammar, grammar_of
from unmask.grammars.numbers import integers
from unmask.grammars.references import expanded
from unmask.grammars.regex import parse_regex
from unmask.grammars.schema import Leaf, Schema, bounds, characters, choices, flattened, json_texts, leaves
from unmask.json_types import Json
from unmask.tokens.prompts import Wording
from unmask.tokens.text import Text

_MOST_DIGITS = 4000  # Python converts 4,300 at most
_MOST_SHARES = 5  # automata of the largest size in one answer that is asked for value by value
_MOST_VALUES = 200  # of one answer that is asked for value by value: each takes its own automaton and its own row


@dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """``schema``: a JSON schema as JSON text, or ``regex``; the other one is "" · ``most_states``: limit on the automaton of each slot; the
    different automata of all slots together take at most five times as much.
    """

    schema: str = ""
    regex: str = ""
    most_states: int = MOST_STATES

    def slots(self, text: Text, wording: Wording) -> list[Slot]:
        """ValueError if no text matches; TooLarge if an automaton exceeds the limit."""
        if self.regex:
            return [Slot(grammar=grammar_of(parse_regex(self.regex), text, self.most_states), kind="text")]
        schema = expanded(json.loads(self.schema))
        if not wording.field_by_field:
            return [Slot(grammar=grammar_of(json_texts(schema), text, self.most_states), kind="json")]
        found = list(islice(leaves(schema), _MOST_VALUES + 1))
        if len(found) > _MOST_VALUES:
            raise ValueError(
                f"the schema has more than {_MOST_VALUES} values, and this model answers each of them by itself; ask for fewer"
            )
        slots, shares = list[Slot](), dict[int, float]()
        for leaf in found:
            slots.append(slot := _spoken(leaf, text, wording, self.most_states))
            shares[id(slot.grammar)] = share_of(slot.grammar.automaton, self.most_states)
            if sum(shares.values()) > _MOST_SHARES:
                raise TooLarge(
                    f"the automata of the first {len(slots)} values take more than {_MOST_SHARES * self.most_states} states, or too long "
                    "to build; use shorter lengths or fewer different patterns"
                )
        return slots

    def value(self, read: list[tuple[tuple[str, ...], object]]) -> object:
        """The whole value, from the path and value of every slot in order."""
        if len(read) == 1 and not read[0][0]:
            return read[0][1]
        whole: Json = {}
        for path, value in read:
            inner = whole
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = value
        return whole

    def to_json(self) -> Json:
        return {"regex": self.regex} if self.regex else {"schema": json.loads(self.schema)}


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A text for the model to write. ``kind``: text (the text itself is the value), json, or words (an entry of ``wordings``, or JSON).

    ``path``: the property names that lead to its value · ``question``: its own question; "" means the question of the whole answer ·
    ``wordings``: (words, value) for values with a fixed wording · ``longest``: tokens of the longest of these words.
    """

    grammar: Grammar
    kind: str
    path: tuple[str, ...] = ()
    question: str = ""
    wordings: tuple[tuple[str, object], ...] = ()
    longest: int = 0

    def default_length(self, usual: int) -> int:
        """Its token limit if the user sets none: ``usual``, or more for formats that need it."""
        return max(usual, self.longest + 1 if self.wordings else 2 * self.grammar.least + 2)

    def check(self, length: int) -> None:
        """ValueError if every valid answer needs more tokens."""
        if length < self.grammar.least:
            place = f" for {'.'.join(self.path)}" if self.path else ""
            raise ValueError(
                f"an answer{place} in this format needs at least {self.grammar.least} tokens, and there is room for {length}; "
                f"set max_tokens to {self.grammar.least} or more"
            )

    def read(self, ids: list[int]) -> object:
        """The value that token ids say. ValueError for a text outside the format, which sampling under the grammar rules out."""
        raw = self.grammar.text(ids)
        answer = raw.removeprefix(" ") if self.grammar.automaton.accepts(raw.removeprefix(" ").encode()) else raw
        if not self.grammar.automaton.accepts(answer.encode()):
            raise ValueError(f"{answer!r} does not match the answer format; sample it under its grammar")
        known = dict(self.wordings)
        return known[answer] if answer in known else answer if self.kind == "text" else json.loads(answer)


def of_schema(schema: object) -> AnswerFormat:
    """A JSON schema, as a value or as JSON text (bytes: in UTF-8). ValueError names what is not supported and its path."""
    try:
        found = json.loads(schema, parse_int=_integer) if isinstance(schema, str | bytes) else schema
        written = json.dumps(found)
        json_texts(expanded(json.loads(written)))
        return AnswerFormat(schema=written)
    except json.JSONDecodeError as error:
        raise ValueError(f'the schema is not JSON: {error}; an example is {{"type": "integer"}}') from error
    except UnicodeDecodeError as error:
        raise ValueError("the schema is not text in UTF-8; save it as UTF-8") from error
    except TypeError as error:
        raise ValueError(
            f"the schema is not JSON: {error}; for a class of pydantic give Class.model_json_schema()"
        ) from error
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply; make it flatter") from error


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"the schema has a number of {len(digits)} digits; use at most {_MOST_DIGITS}")
    return int(digits)


def of_regex(pattern: str) -> AnswerFormat:
    """Texts that match a regular expression as a whole; ``grammars.regex`` lists the supported syntax."""
    if not pattern:
        raise ValueError("the regex is empty; an example is [a-z]+")
    parse_regex(pattern)
    return AnswerFormat(regex=pattern)


def of_response_format(given: Mapping[str, Any]) -> AnswerFormat | None:
    """OpenAI's ``response_format``, and ``{"type": "regex", "regex": ..}``; None for plain text. ValueError for other types."""
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_schema":
        inner = given.get("json_schema")
        if not isinstance(inner, Mapping) or "schema" not in inner:
            raise ValueError('json_schema has no schema; send {"json_schema": {"name": …, "schema": {…}}}')
        return of_schema(inner["schema"])
    if kind == "regex" and isinstance(given.get("regex"), str):
        return of_regex(given["regex"])
    if kind == "json_object":
        raise ValueError("json_object does not define a format; send json_schema with a schema")
    raise ValueError(f"the type {json.dumps(kind, default=str)} is not supported; use text, json_schema or regex")


def _spoken(leaf: Leaf, text: Text, wording: Wording, most_states: int) -> Slot:
    """A value for a model that answers in words: from a list of words, an integer in digits, or free text; other values as JSON."""
    options = flattened(leaf.schema, leaf.place)
    rest = [(schema, place) for schema, place in options if not _listed(schema)]
    types = {schema["type"] for schema, _ in rest}
    if types <= {"integer"} or types == {"string"}:
        wordings = _wordings(options, text, wording)
        kind = "text" if types == {"string"} else "words"
        free = [characters(*one) if kind == "text" else integers(*bounds(*one)) for one in rest]
        parts = (*(literal(words) for words in wordings), *free)
    else:
        wordings, kind, parts = {}, "json", (json_texts(leaf.schema, leaf.place),)
    expression: Expression = Alternation(parts=parts) if len(parts) > 1 else parts[0]
    return Slot(
        grammar=grammar_of(expression, text, most_states),
        kind=kind,
        path=leaf.path,
        question=str(leaf.schema.get("description", "")),
        wordings=tuple(wordings.items()),
        longest=max((len(text.encode(words)) for words in wordings), default=0),
    )


def _wordings(options: list[tuple[Schema, str]], text: Text, wording: Wording) -> Json:
    """The words for every value that can be listed, and for the small integers, in the order of the schema."""
    wordings: Json = {}
    for schema, place in options:
        for value in _values(schema, place, wording):
            words = text.plain(_words(value, wording))
            if words in wordings and json.dumps(wordings[words]) != json.dumps(value):
                raise ValueError(
                    f"{place}: this model says {wordings[words]!r} and {value!r} with the same words; keep one of them"
                )
            wordings[words] = value
    return wordings


def _values(schema: Schema, place: str, wording: Wording) -> list[object]:
    if {"enum", "const"} & set(schema):
        return choices(schema, place)
    if schema["type"] == "boolean":
        return [True, False]
    if schema["type"] == "integer":
        low, high = bounds(schema, place)
        return [n for n in range(len(wording.numbers)) if low <= n <= high]
    return [None] if schema["type"] == "null" else []


def _words(value: object, wording: Wording) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and 0 <= value < len(wording.numbers):
        return wording.numbers[value]
    return value if isinstance(value, str) else json.dumps(value)


def _listed(schema: Schema) -> bool:
    """Whether all values can be listed."""
    return bool({"enum", "const"} & set(schema)) or schema["type"] in ("boolean", "null")
