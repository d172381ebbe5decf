"""JSON schemas as sets of texts: the valid JSON, as far as a finite automaton can express it.

``json_texts(schema)`` is the set of valid JSON texts, spaced as ``json.dumps`` spaces them; ``leaves(schema)`` lists the values inside an
object, each with its path. Both take a schema from ``references.expanded``.

Supported: ``enum``, ``const``, ``anyOf``; ``type`` (or a list of types) string on one line (``pattern``, or ``minLength`` and
``maxLength``), integer and number (``minimum``, ``maximum``; for integers ``exclusiveMinimum`` and ``exclusiveMaximum`` too), boolean,
null, array (``items``, ``minItems``, ``maxItems``) and object (``properties``: all of them, in their order, whatever ``required`` says).
Annotations such as ``title`` and ``default`` are ignored. Any other keyword is a ValueError that names the keyword and its path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.grammars.automaton import Alternation, CharClass, Concat, Expression, Repeat, literal, optional
from unmask.grammars.references import ANNOTATIONS
from unmask.grammars.regex import json_escaped, parse_regex

Schema = Mapping[str, Any]
LARGEST = 10**15 - 1  # an integer has at most 15 digits, so that every JSON reader holds it exactly
FRACTION = 6  # digits after the decimal point
_ANY = CharClass(ranges=((0x20, 0xD7FF), (0xE000, 0x10FFFF)))
_DIGIT = CharClass(ranges=((48, 57),))
_KEYWORDS = {
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
    """A value inside an object: the property names that lead to it, and its schema."""

    path: tuple[str, ...]
    schema: Schema

    @property
    def place(self) -> str:
        """Where its schema stands, as errors write it."""
        return "schema" + "".join(f".properties.{name}" for name in self.path)


def json_texts(schema: Any, place: str = "schema") -> Expression:
    """The valid JSON texts. ValueError names what is not supported and its path."""
    rule = _rule(schema, place)
    if rule == "enum":
        return Alternation(parts=tuple(literal(_dumps(value, place)) for value in choices(schema, place)))
    if rule == "anyOf":
        return Alternation(parts=tuple(json_texts(s, where) for s, where in alternatives(schema, place)))
    if rule == "string":
        return Concat(parts=(literal('"'), json_escaped(characters(schema, place)), literal('"')))
    if rule == "integer":
        return integers(*bounds(schema, place))
    if rule == "number":
        return _numbers(schema, place)
    if rule == "boolean":
        return Alternation(parts=(literal("true"), literal("false")))
    if rule == "null":
        return literal("null")
    return _array(schema, place) if rule == "array" else _object(schema, place)


def alternatives(schema: Schema, place: str) -> list[tuple[Schema, str]]:
    """The schemas of ``anyOf``, or one for every type in a list of types, each with its path; else the schema itself."""
    if {"enum", "const"} & set(schema):
        return [(schema, place)]
    if "anyOf" in schema:
        return [(inner, f"{place}.anyOf[{i}]") for i, inner in enumerate(schema["anyOf"])]
    if not isinstance(schema.get("type"), list):
        return [(schema, place)]
    return [
        ({"type": kind, **{key: schema[key] for key in _KEYWORDS[kind] if key in schema}}, place)
        for kind in schema["type"]
    ]


def leaves(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The values of nested objects in their order; for anything else, the schema itself."""
    if schema.get("type") == "object" and not {"enum", "const", "anyOf"} & set(schema):
        for name, inner in schema["properties"].items():
            yield from leaves(inner, (*path, name))
    else:
        yield Leaf(path=path, schema=schema)


def choices(schema: Schema, place: str) -> list[object]:
    """The values of ``enum`` or ``const``, without those that do not fit a ``type`` beside it."""
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{place}.enum: expected a list of values, got {values!r:.40}")
    if "type" not in schema:
        return values
    kinds = _types(schema, place)
    fitting = [v for v in values if any(_is(v, kind) for kind in kinds)]
    if not fitting:
        raise ValueError(f"{place}.enum: none of the values is of type {' or '.join(kinds)}")
    return fitting


def characters(schema: Schema, place: str) -> Expression:
    """The content of a string, without its quotes."""
    least, most = _count(schema, "minLength", place) or 0, _count(schema, "maxLength", place)
    if "pattern" not in schema:
        return Repeat(part=_ANY, least=least, most=_ordered(least, most, place, "Length"))
    if least or most is not None:
        raise ValueError(
            f"{place}.pattern: not supported together with minLength or maxLength; put the length in the pattern"
        )
    if not isinstance(schema["pattern"], str):
        raise ValueError(f"{place}.pattern: expected a regex, got {schema['pattern']!r:.40}")
    try:
        return parse_regex(schema["pattern"])
    except ValueError as error:
        raise ValueError(f"{place}.pattern: {error}") from error


def bounds(schema: Schema, place: str) -> tuple[int, int]:
    """The smallest and the largest integer."""
    low, high = _whole(schema, "minimum", place), _whole(schema, "maximum", place)
    above, below = _whole(schema, "exclusiveMinimum", place), _whole(schema, "exclusiveMaximum", place)
    least = max(v for v in (low, None if above is None else above + 1, -LARGEST) if v is not None)
    most = min(v for v in (high, None if below is None else below - 1, LARGEST) if v is not None)
    if least > most:
        raise ValueError(f"{place}: no integer lies between {least} and {most}")
    return least, most


def integers(low: int, high: int) -> Expression:
    """The integers ``low..high`` in decimal."""
    parts: list[Expression] = []
    if low < 0:
        parts.append(Concat(parts=(literal("-"), integers(max(1, -high), -low))))
    if high >= 0:
        begin = max(0, low)
        for digits in range(len(str(begin)), len(str(high)) + 1):
            first, last = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1
            parts += _same_length(str(max(begin, first)), str(min(high, last)))
    return Alternation(parts=tuple(parts))


def _same_length(low: str, high: str) -> list[Expression]:
    """The integers from ``low`` to ``high``, which have equally many digits."""
    if len(low) == 1:
        return [CharClass(ranges=((ord(low), ord(high)),))]
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [
            Concat(parts=(CharClass(ranges=((ord(low[0]), ord(high[0])),)), Repeat(part=_DIGIT, least=rest, most=rest)))
        ]
    if low[0] == high[0]:
        return [Concat(parts=(literal(low[0]), Alternation(parts=tuple(_same_length(low[1:], high[1:])))))]
    parts = []
    if low[1:] != "0" * rest:
        parts += _same_length(low, low[0] + "9" * rest)
        low = str(int(low[0]) + 1) + "0" * rest
    if high[1:] != "9" * rest:
        parts += _same_length(high[0] + "0" * rest, high)
        high = str(int(high[0]) - 1) + "9" * rest
    return parts + (_same_length(low, high) if low <= high else [])


def _numbers(schema: Schema, place: str) -> Expression:
    low, high = bounds(schema, place)
    fraction = Concat(parts=(literal("."), Repeat(part=_DIGIT, least=1, most=FRACTION)))
    parts: list[Expression] = [integers(low, high)]
    if high > max(low, 0):
        parts.append(Concat(parts=(integers(max(low, 0), high - 1), fraction)))
    if low < min(high, 0):
        parts.append(Concat(parts=(literal("-"), integers(max(-high, 0), -low - 1), fraction)))
    return Alternation(parts=tuple(parts))


def _array(schema: Schema, place: str) -> Expression:
    if "items" not in schema:
        raise ValueError(f"{place}: an array without items could hold anything; add items")
    least, most = _count(schema, "minItems", place) or 0, _count(schema, "maxItems", place)
    most = _ordered(least, most, place, "Items")
    one = json_texts(schema["items"], f"{place}.items")
    if most == 0:
        return literal("[]")
    more = Repeat(
        part=Concat(parts=(literal(", "), one)), least=max(0, least - 1), most=None if most is None else most - 1
    )
    some = Concat(parts=(one, more))
    return Concat(parts=(literal("["), optional(some) if least == 0 else some, literal("]")))


def _object(schema: Schema, place: str) -> Expression:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise ValueError(f"{place}: an object without properties could hold anything; add properties")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ValueError(f"{place}.required: expected a list of names, got {json.dumps(required, default=str)[:40]}")
    missing = [name for name in required if name not in properties]
    if missing:
        raise ValueError(f"{place}.required: {missing[0]!r} is not among the properties")
    parts: list[Expression] = []
    for number, (name, inner) in enumerate(properties.items()):
        before = (", " if number else "{") + json.dumps(name) + ": "
        parts += [literal(before), json_texts(inner, f"{place}.properties.{name}")]
    return Concat(parts=(*parts, literal("}")))


def _rule(schema: object, place: str) -> str:
    """The keyword or type that decides how a schema is read; ValueError for a keyword that this rule does not support."""
    if not isinstance(schema, Mapping):
        raise ValueError(f'{place}: expected a schema, got {json.dumps(schema, default=str)[:40]}; write {{"type": …}}')
    if {"enum", "const"} & set(schema):
        rule, allowed = "enum", ("enum", "const", "type")
    elif "anyOf" in schema:
        rule, allowed = "anyOf", ("anyOf",)
        if not (isinstance(schema["anyOf"], list) and schema["anyOf"]):
            raise ValueError(f"{place}.anyOf: expected a list of schemas, got {schema['anyOf']!r:.40}")
    else:
        kinds = _types(schema, place)
        rule = "anyOf" if isinstance(schema["type"], list) else kinds[0]
        allowed = ("type", *(key for kind in kinds for key in _KEYWORDS[kind]))
    unknown = [key for key in schema if key not in allowed and key not in ANNOTATIONS]
    if unknown:
        raise ValueError(
            f"{place}.{unknown[0]}: this keyword is not supported here; remove it, or use {', '.join(allowed)}"
        )
    return rule


def _types(schema: Schema, place: str) -> list[str]:
    """The types of a schema that has neither enum, const nor anyOf."""
    given, known = schema.get("type"), ", ".join(_KEYWORDS)
    kinds = given if isinstance(given, list) and given else [given]
    if all(isinstance(kind, str) and kind in _KEYWORDS for kind in kinds):
        return kinds
    strange = [key for key in schema if key not in ANNOTATIONS and not any(key in keys for keys in _KEYWORDS.values())]
    if "type" not in schema and strange:
        raise ValueError(
            f"{place}.{strange[0]}: this keyword is not supported here; use a type ({known}), enum, const or anyOf"
        )
    raise ValueError(
        f"{place}.type: {json.dumps(given, default=str)} is not supported; use one of {known}, or enum, const, anyOf"
    )


def _is(value: object, kind: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    wanted = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}.get(kind, ())
    return isinstance(value, wanted)


def _dumps(value: object, place: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair has no UTF-8
        return text
    except ValueError as error:
        raise ValueError(f"{place}.enum: {value!r:.40} cannot be written as JSON") from error


def _count(schema: Schema, name: str, place: str) -> int | None:
    value = schema.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000):
        raise ValueError(f"{place}.{name}: expected a whole number from 0 to 1000, got {value!r:.40}")
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
        raise ValueError(f"{place}.{name}: expected a number, got {value!r:.40}")
    if int(value) != value:
        raise ValueError(
            f"{place}.{name}: only whole numbers are supported as bounds, got {value!r}; use {round(value)}"
        )
    return int(value)


def _ordered(least: int, most: int | None, place: str, what: str) -> int | None:
    if most is not None and most < least:
        raise ValueError(f"{place}: min{what} is {least} and max{what} {most}; the minimum must not exceed the maximum")
    return most
