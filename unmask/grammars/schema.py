"""JSON schemas as languages: which JSON texts are valid, as far as an automaton can say it.

Public idea: ``written(schema) -> Language``: the JSON texts, written as ``json.dumps`` writes them, that are valid; ``leaves(schema)``: the
values inside it, each with a way to it. Understood: ``enum``, ``const``, ``anyOf``; ``type`` string of one line (``pattern``, or
``minLength`` and ``maxLength``), integer and number (``minimum``, ``maximum``; of an integer ``exclusive…`` too), boolean, null, array
(``items``, ``minItems``, ``maxItems``) and object (``properties``, all of them and in their order, whatever ``required`` says). Anything
else that would constrain is a ValueError that names it and where it stands; ``title``, ``description`` and the like constrain nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.grammars.automaton import Chars, Either, Language, Repeat, Then, literal, optional
from unmask.grammars.regex import parsed, quoted

Schema = Mapping[str, Any]
LARGEST = 10**15 - 1  # an integer has at most 15 digits, so that every reader of JSON has it exactly
FRACTION = 6  # digits behind the point
_DEEPEST = 32
_ANY = Chars(ranges=((0x20, 0xD7FF), (0xE000, 0x10FFFF)))
_SILENT = frozenset(
    ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly")
)
_DIGIT = Chars(ranges=((48, 57),))
_KEYS = {
    "string": ("pattern", "minLength", "maxLength"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum"),
    "boolean": (),
    "null": (),
    "array": ("items", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A value inside an object: the names that lead to it, and its schema."""

    path: tuple[str, ...]
    schema: Schema

    @property
    def place(self) -> str:
        return ".".join(self.path)


def written(schema: Any, place: str = "schema", depth: int = 0) -> Language:
    """The valid JSON texts. ValueError for what is not understood, and where."""
    kind = _kind(schema, place)
    if depth > _DEEPEST:
        raise ValueError(f"{place}: schemas are nested more than {_DEEPEST} deep; make it flatter")
    if kind == "enum":
        return Either(parts=tuple(literal(_dumps(value, place)) for value in choices(schema, place)))
    if kind == "anyOf":
        options = schema["anyOf"]
        return Either(parts=tuple(written(s, f"{place}.anyOf[{i}]", depth + 1) for i, s in enumerate(options)))
    if kind == "string":
        return Then(parts=(literal('"'), quoted(characters(schema, place)), literal('"')))
    if kind == "integer":
        return integers(*bounds(schema, place))
    if kind == "number":
        return _numbers(schema, place)
    if kind == "boolean":
        return Either(parts=(literal("true"), literal("false")))
    if kind == "null":
        return literal("null")
    return _array(schema, place, depth) if kind == "array" else _object(schema, place, depth)


def leaves(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The values of nested objects in their order; of anything else, itself."""
    if "properties" in schema and not {"enum", "const", "anyOf"} & set(schema):
        for name, inner in schema["properties"].items():
            yield from leaves(inner, (*path, name))
    else:
        yield Leaf(path=path, schema=schema)


def choices(schema: Schema, place: str) -> list[Any]:
    """The values of an ``enum`` or ``const``, those alone that fit a ``type`` beside it."""
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{place}.enum: wanted a list of values, got {values!r}")
    kind = schema.get("type")
    fitting = [v for v in values if kind is None or _is(v, kind)]
    if not fitting:
        raise ValueError(f"{place}.enum: no value is of type {kind}")
    return fitting


def characters(schema: Schema, place: str) -> Language:
    """What a string may hold, without its quotes."""
    least, most = _count(schema, "minLength", place) or 0, _count(schema, "maxLength", place)
    if "pattern" not in schema:
        return Repeat(part=_ANY, least=least, most=_ordered(least, most, place, "Length"))
    if least or most is not None:
        raise ValueError(
            f"{place}: pattern together with minLength or maxLength is not understood; say the length in the pattern"
        )
    try:
        return parsed(str(schema["pattern"]))
    except ValueError as error:
        raise ValueError(f"{place}.pattern: {error}") from error


def bounds(schema: Schema, place: str) -> tuple[int, int]:
    """The smallest and the largest integer."""
    low, high = _whole(schema, "minimum", place), _whole(schema, "maximum", place)
    above, below = _whole(schema, "exclusiveMinimum", place), _whole(schema, "exclusiveMaximum", place)
    least = max(v for v in (low, None if above is None else above + 1, -LARGEST) if v is not None)
    most = min(v for v in (high, None if below is None else below - 1, LARGEST) if v is not None)
    if least > most:
        raise ValueError(f"{place}: there is no number from {least} to {most}")
    return least, most


def integers(low: int, high: int) -> Language:
    """The integers ``low..high`` in decimal."""
    parts: list[Language] = []
    if low < 0:
        parts.append(Then(parts=(literal("-"), integers(max(1, -high), -low))))
    if high >= 0:
        begin = max(0, low)
        for digits in range(len(str(begin)), len(str(high)) + 1):
            first, last = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1
            parts += _same_length(str(max(begin, first)), str(min(high, last)))
    return Either(parts=tuple(parts))


def _same_length(low: str, high: str) -> list[Language]:
    """From one number to another of as many digits."""
    if len(low) == 1:
        return [Chars(ranges=((ord(low), ord(high)),))]
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [Then(parts=(Chars(ranges=((ord(low[0]), ord(high[0])),)), Repeat(part=_DIGIT, least=rest, most=rest)))]
    if low[0] == high[0]:
        return [Then(parts=(literal(low[0]), Either(parts=tuple(_same_length(low[1:], high[1:])))))]
    parts = []
    if low[1:] != "0" * rest:
        parts += _same_length(low, low[0] + "9" * rest)
        low = str(int(low[0]) + 1) + "0" * rest
    if high[1:] != "9" * rest:
        parts += _same_length(high[0] + "0" * rest, high)
        high = str(int(high[0]) - 1) + "9" * rest
    return parts + (_same_length(low, high) if low <= high else [])


def _numbers(schema: Schema, place: str) -> Language:
    low, high = bounds(schema, place)
    fraction = Then(parts=(literal("."), Repeat(part=_DIGIT, least=1, most=FRACTION)))
    parts: list[Language] = [integers(low, high)]
    if high > max(low, 0):
        parts.append(Then(parts=(integers(max(low, 0), high - 1), fraction)))
    if low < min(high, 0):
        parts.append(Then(parts=(literal("-"), integers(max(-high, 0), -low - 1), fraction)))
    return Either(parts=tuple(parts))


def _array(schema: Schema, place: str, depth: int) -> Language:
    if "items" not in schema:
        raise ValueError(f"{place}: an array without items could hold anything; say what its items are")
    least, most = _count(schema, "minItems", place) or 0, _count(schema, "maxItems", place)
    most = _ordered(least, most, place, "Items")
    one = written(schema["items"], f"{place}.items", depth + 1)
    if most == 0:
        return literal("[]")
    more = Repeat(
        part=Then(parts=(literal(", "), one)), least=max(0, least - 1), most=None if most is None else most - 1
    )
    some = Then(parts=(one, more))
    return Then(parts=(literal("["), optional(some) if least == 0 else some, literal("]")))


def _object(schema: Schema, place: str, depth: int) -> Language:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise ValueError(f"{place}: an object without properties could be anything; name its properties")
    missing = sorted(set(schema.get("required", ())) - set(properties))
    if missing:
        raise ValueError(f"{place}.required: {missing[0]!r} is not among the properties")
    parts: list[Language] = []
    for number, (name, inner) in enumerate(properties.items()):
        before = (", " if number else "{") + json.dumps(name) + ": "
        parts += [literal(before), written(inner, f"{place}.properties.{name}", depth + 1)]
    return Then(parts=(*parts, literal("}")))


def _kind(schema: Any, place: str) -> str:
    """Which rule a schema follows; ValueError for a word that no rule knows."""
    if not isinstance(schema, Mapping):
        raise ValueError(f'{place}: wanted a schema, got {json.dumps(schema, default=str)[:40]}; write {{"type": …}}')
    stated = "enum" if {"enum", "const"} & set(schema) else "anyOf" if "anyOf" in schema else None
    kind = schema.get("type")
    if stated is None and not (isinstance(kind, str) and kind in _KEYS):
        known = ", ".join(_KEYS)
        strange = [key for key in schema if key not in _SILENT and not any(key in keys for keys in _KEYS.values())]
        if "type" not in schema and strange:
            raise ValueError(
                f"{place}.{strange[0]}: this keyword is not understood here; use a type ({known}), enum, const or anyOf"
            )
        raise ValueError(
            f"{place}.type: {json.dumps(kind, default=str)} is not understood; use one of {known}, or enum, const, anyOf"
        )
    allowed = {"enum": ("enum", "const", "type"), "anyOf": ("anyOf",)}.get(
        stated or "", ("type", *_KEYS.get(str(kind), ()))
    )
    unknown = [key for key in schema if key not in allowed and key not in _SILENT]
    if unknown:
        raise ValueError(
            f"{place}.{unknown[0]}: this keyword is not understood here; leave it out, or use {', '.join(allowed)}"
        )
    if stated == "anyOf" and not (isinstance(schema["anyOf"], list) and schema["anyOf"]):
        raise ValueError(f"{place}.anyOf: wanted a list of schemas")
    return stated or str(kind)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    wanted = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}.get(kind, ())
    return isinstance(value, wanted)


def _dumps(value: Any, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{place}.enum: {value!r} cannot be written as JSON") from error


def _count(schema: Schema, name: str, place: str) -> int | None:
    value = schema.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000):
        raise ValueError(f"{place}.{name}: wanted a whole number from 0 to 1000, got {value!r}")
    return value


def _whole(schema: Schema, name: str, place: str) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value
        or value in (float("inf"), -float("inf"))
    ):
        raise ValueError(f"{place}.{name}: wanted a number, got {value!r}")
    if int(value) != value:
        raise ValueError(f"{place}.{name}: bounds are whole numbers here, got {value!r}; use {round(value)}")
    return int(value)


def _ordered(least: int, most: int | None, place: str, what: str) -> int | None:
    if most is not None and most < least:
        raise ValueError(f"{place}: min{what} is {least} and max{what} {most}; the smaller number comes first")
    return most
