"""What an answer has to look like, as a user says it.

Public idea: ``of_schema({...})``, ``of_regex("...")`` or ``of_response_format({...})`` make a ``Form``; ``form.holes(text, wording)`` are
the texts that have to be found for it, and ``form.value(read)`` puts together what they said. A form is one hole, the JSON text itself. But
a model that has never seen JSON (``Wording.field_by_field``) is asked for every value of an object by a question of its own, and says it in
its own words; braces, names and quotes around the values are then nobody's guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.grammars.automaton import MOST_STATES, Either, Language, literal
from unmask.grammars.grammar import Grammar, grammar_of
from unmask.grammars.regex import parsed
from unmask.grammars.schema import Leaf, Schema, bounds, characters, choices, integers, leaves, written
from unmask.tokens.prompts import Wording
from unmask.tokens.text import Text


@dataclass(frozen=True, kw_only=True)
class Form:
    """``schema``: a JSON schema as JSON text; "" where it is a ``regex`` · ``most_states`` of the automaton of any of its texts."""

    schema: str = ""
    regex: str = ""
    most_states: int = MOST_STATES

    def holes(self, text: Text, wording: Wording) -> list[Hole]:
        """ValueError where nothing fits, or for what takes too large an automaton."""
        if self.regex:
            return [Hole(grammar=grammar_of(parsed(self.regex), text, self.most_states), kind="text")]
        schema = json.loads(self.schema)
        if not wording.field_by_field:
            return [Hole(grammar=grammar_of(written(schema), text, self.most_states), kind="json")]
        return [_spoken(leaf, text, wording, self.most_states) for leaf in leaves(schema)]

    def value(self, read: list[tuple[tuple[str, ...], Any]]) -> Any:
        """One value of what the holes said, in their order."""
        if len(read) == 1 and not read[0][0]:
            return read[0][1]
        whole: dict[str, Any] = {}
        for path, value in read:
            inner = whole
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = value
        return whole

    def to_json(self) -> dict[str, Any]:
        return {"regex": self.regex} if self.regex else {"schema": json.loads(self.schema)}


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A text to be found. ``kind``: text, json, or words: one of ``said`` (text, value), where an integer may be in digits as well.

    ``path``: the names that lead to its value · ``question``: what to ask for it, "" for the question of the whole.
    """

    grammar: Grammar
    kind: str
    path: tuple[str, ...] = ()
    question: str = ""
    said: tuple[tuple[str, Any], ...] = ()
    longest: int = 0  # tokens of the longest of ``said``, as the tokenizer writes it

    def room(self, usual: int) -> int:
        """How many tokens to give it where nobody says: ``usual``, or more where that would be tight."""
        return max(usual, self.longest + 1 if self.said else 2 * self.grammar.least + 2)

    def check(self, room: int) -> None:
        """ValueError where no answer has so few tokens."""
        if room < self.grammar.least:
            place = f" of {'.'.join(self.path)}" if self.path else ""
            raise ValueError(
                f"an answer{place} in this form needs at least {self.grammar.least} tokens, and there is room for {room}; "
                f"give a length of {self.grammar.least} or more"
            )

    def read(self, ids: list[int]) -> Any:
        """The value that was said. ValueError for a text that is not in the form, which no decided hole has."""
        raw = self.grammar.text(ids)
        said = raw.removeprefix(" ") if self.grammar.automaton.accepts(raw.removeprefix(" ").encode()) else raw
        if not self.grammar.automaton.accepts(said.encode()):
            raise ValueError(f"{said!r} is not in the form; decide it under its grammar")
        known = dict(self.said)
        return known[said] if said in known else said if self.kind == "text" else json.loads(said)


def of_schema(schema: Any) -> Form:
    """A JSON schema, as a value or as JSON text. ValueError names what is not understood, and where."""
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
        written(found)
        return Form(schema=json.dumps(found))
    except json.JSONDecodeError as error:
        raise ValueError(f'the schema is no JSON: {error}; write for example {{"type": "integer"}}') from error
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply; make it flatter") from error


def of_regex(pattern: str) -> Form:
    """Texts that match a regular expression as a whole; ``tokens.regex`` says what is understood."""
    if not pattern:
        raise ValueError("the regex is empty; say what the answer shall look like, for example [a-z]+")
    parsed(pattern)
    return Form(regex=pattern)


def of_response_format(given: Mapping[str, Any]) -> Form | None:
    """OpenAI's ``response_format``, and ``{"type": "regex", "regex": ..}``; None for plain text. ValueError for anything else."""
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
        raise ValueError("json_object does not say which JSON; send json_schema with a schema")
    raise ValueError(f"the type {json.dumps(kind, default=str)} is not understood; use text, json_schema or regex")


def _spoken(leaf: Leaf, text: Text, wording: Wording, most_states: int) -> Hole:
    """A value as a model says it that speaks words alone."""
    schema, place = leaf.schema, f"schema.{leaf.place}" if leaf.path else "schema"
    said = _said(schema, place, text, wording)
    kind, parts = "words", [literal(words) for words in said]
    if schema.get("type") == "integer" and not _listed(schema):
        parts.append(integers(*bounds(schema, place)))
    elif not said:
        kind = "text" if schema.get("type") == "string" else "json"
        parts.append(characters(schema, place) if kind == "text" else written(schema, place))
    language: Language = Either(parts=tuple(parts)) if len(parts) > 1 else parts[0]
    return Hole(
        grammar=grammar_of(language, text, most_states),
        kind=kind,
        path=leaf.path,
        question=str(schema.get("description", "")),
        said=tuple(said.items()),
        longest=max((len(text.encode(words)) for words in said), default=0),
    )


def _said(schema: Schema, place: str, text: Text, wording: Wording) -> dict[str, Any]:
    """The words for each of a value's choices; none where they cannot be listed."""
    said: dict[str, Any] = {}
    values: list[Any] = []
    if _listed(schema):
        values = choices(schema, place)
    elif schema.get("type") == "boolean":
        values = [True, False]
    elif schema.get("type") == "null":
        values = [None]
    elif schema.get("type") == "integer":
        low, high = bounds(schema, place)
        values = [n for n in range(len(wording.numbers)) if low <= n <= high]
    for value in values:
        words = text.plain(_words(value, wording))
        if words in said:
            raise ValueError(
                f"{place}: this model says {said[words]!r} and {value!r} with the same words; keep one of them"
            )
        said[words] = value
    return said


def _words(value: Any, wording: Wording) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and 0 <= value < len(wording.numbers):
        return wording.numbers[value]
    return value if isinstance(value, str) else json.dumps(value)


def _listed(schema: Schema) -> bool:
    return bool({"enum", "const"} & set(schema))
