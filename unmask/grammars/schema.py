"""JSON schemas as sets of texts: the valid JSON, as far as a finite automaton can express it.

``json_texts(schema)`` is the set of valid JSON texts, spaced as ``json.dumps`` spaces them; ``leaves(schema)`` lists the values inside an
object, each with its path. Both take a schema from ``references.expanded``.

Supported: ``enum``, ``const``, ``anyOf``, ``oneOf`` (where the alternatives exclude each other); ``type`` (or a list of types) string on
one line (``pattern``, or ``format``, or ``minLength`` and ``maxLength``), integer and number (``minimum``, ``maximum``,
``exclusiveMinimum``, ``exclusiveMaximum``), boolean, null, array (``items``, ``prefixItems``, ``minItems``, ``maxItems``) and object
(``properties``: all of them, in their order, whatever ``required`` says). Annotations such as ``title`` and ``default`` are ignored. Any
other keyword is a ValueError that names the keyword and its path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

from unmask.grammars.automaton import Alternation, CharClass, Concat, Expression, Repeat, literal, optional
from unmask.grammars.disjoint import exclusive
from unmask.grammars.formats import FORMATS
from unmask.grammars.merging import ANNOTATIONS, value_key
from unmask.grammars.numbers import UNIT, decimals, integers
from unmask.grammars.regex import json_escaped, lengths, parse_regex

Schema = Mapping[str, Any]
_UNIONS = ("anyOf", "oneOf")
_LONGEST = 1000  # characters of a string and items of an array, where a schema limits them
LARGEST = 10**15 - 1  # an integer has at most 15 digits, so that every JSON reader holds it exactly
_ANY = CharClass(ranges=((0x20, 0xD7FF), (0xE000, 0x10FFFF)))
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KEYWORDS = {
    "string": ("pattern", "format", "minLength", "maxLength"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
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
        parts = tuple(json_texts(s, where) for s, where in alternatives(schema, place))
        if "oneOf" in schema:
            _refuse_overlap(schema, place)
        return Alternation(parts=parts)
    if rule == "string":
        return Concat(parts=(literal('"'), json_escaped(characters(schema, place)), literal('"')))
    if rule == "integer":
        return integers(*bounds(schema, place))
    if rule == "number":
        return decimals(*bounds(schema, place, UNIT))
    if rule == "boolean":
        return Alternation(parts=(literal("true"), literal("false")))
    if rule == "null":
        return literal("null")
    return _array(schema, place) if rule == "array" else _object(schema, place)


def alternatives(schema: Schema, place: str) -> list[tuple[Schema, str]]:
    """The schemas of ``anyOf`` or ``oneOf``, or one for every type in a list of types, each with its path; else the schema itself."""
    if {"enum", "const"} & set(schema):
        return [(schema, place)]
    for name in _UNIONS:
        if name in schema:
            return [(inner, f"{place}.{name}[{i}]") for i, inner in enumerate(schema[name])]
    if not isinstance(schema.get("type"), list):
        return [(schema, place)]
    return [
        ({"type": kind, **{key: schema[key] for key in _KEYWORDS[kind] if key in schema}}, place)
        for kind in schema["type"]
    ]


def leaves(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The values of nested objects in their order; for anything else and for an object without properties, the schema itself."""
    nested = schema.get("type") == "object" and not {"enum", "const", *_UNIONS} & set(schema)
    if nested and schema["properties"]:
        for name, inner in schema["properties"].items():
            yield from leaves(inner, (*path, name))
    else:
        yield Leaf(path=path, schema=schema)


def choices(schema: Schema, place: str) -> list[object]:
    """The values of ``enum`` or ``const``, or of both, without those that do not fit a ``type`` beside them."""
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list) or not values:
        raise ValueError(f"{place}.enum: expected a list of values, got {values!r:.40}")
    if "const" in schema:
        values = [v for v in values if value_key(v) == value_key(schema["const"])]
        if not values:
            raise ValueError(
                f"{place}.const: {schema['const']!r:.40} is not among the values of enum; remove one of both"
            )
    if "type" not in schema:
        return values
    kinds = _types(schema, place)
    fitting = [v for v in values if any(_is(v, kind) for kind in kinds)]
    if not fitting:
        raise ValueError(f"{place}.enum: none of the values is of type {' or '.join(kinds)}")
    return fitting


def characters(schema: Schema, place: str) -> Expression:
    """The content of a string, without its quotes."""
    name = "pattern" if "pattern" in schema else "format"
    pattern = schema["pattern"] if "pattern" in schema else _format(schema)
    largest = _LONGEST if pattern is None else LARGEST  # beside a pattern, lengths are only compared
    least, most = (_count(schema, length, place, largest) for length in ("minLength", "maxLength"))
    least, most = least or 0, _ordered(least or 0, most, place, "Length")
    if pattern is None:
        return Repeat(part=_ANY, least=least, most=most)
    if not isinstance(pattern, str):
        raise ValueError(f"{place}.pattern: expected a regex, got {pattern!r:.40}")
    try:
        found = parse_regex(pattern)
    except ValueError as error:
        raise ValueError(f"{place}.pattern: {error}") from error
    shortest, longest = lengths(found)
    if least > shortest or (most is not None and (longest is None or most < longest)):
        raise ValueError(
            f"{place}.{name}: not supported together with a minLength or maxLength that shortens it; put the length in the pattern"
        )
    return found


def _format(schema: Schema) -> str | None:
    """The pattern of a format that is kept; None for others, which do not constrain a string."""
    name = schema.get("format")
    return FORMATS.get(name) if isinstance(name, str) else None


def bounds(schema: Schema, place: str, unit: int = 1) -> tuple[int, int]:
    """The smallest and the largest number, in units of 1 / ``unit``."""
    low, high, above, below = (_bound(schema, name, place) for name in _BOUNDS)
    lows = [None if low is None else ceil(low * unit), None if above is None else floor(above * unit) + 1]
    highs = [None if high is None else floor(high * unit), None if below is None else ceil(below * unit) - 1]
    least = max(v for v in (*lows, -LARGEST * unit) if v is not None)
    most = min(v for v in (*highs, LARGEST * unit) if v is not None)
    if least > most:
        given = ", ".join(f"{name} {json.dumps(schema[name])[:40]}" for name in _BOUNDS if schema.get(name) is not None)
        kind = "integer" if unit == 1 else "number with 6 digits after the point"
        raise ValueError(f"{place}: no {kind} of at most 15 digits fits the bounds {given}; change one of them")
    return least, most


def _array(schema: Schema, place: str) -> Expression:
    first, rest = schema.get("prefixItems", []), schema.get("items", not schema.get("prefixItems"))
    if not isinstance(first, list):
        raise ValueError(f"{place}.prefixItems: expected a list of schemas, got {first!r:.40}")
    if rest is True:
        raise ValueError(f"{place}: an array without items could hold anything; add items")
    least, most = _count(schema, "minItems", place) or 0, _count(schema, "maxItems", place)
    most = _ordered(least, most, place, "Items")
    if rest is False:  # nothing after prefixItems; where it is absent, nothing more is written
        if least > len(first):
            raise ValueError(f"{place}.minItems: {least} items, but prefixItems has {len(first)}; add items")
        most = len(first) if most is None else min(most, len(first))
    ones = [json_texts(inner, f"{place}.prefixItems[{i}]") for i, inner in enumerate(first)]
    other = json_texts(rest, f"{place}.items") if rest is not False else None
    return Concat(parts=(literal("["), _listed(ones, other, least, most), literal("]")))


def _listed(ones: Sequence[Expression], other: Expression | None, least: int, most: int | None) -> Expression:
    """``least`` to ``most`` items: first ``ones``, one after the other, then any number of ``other``."""
    ones = ones if most is None else ones[:most]
    if other is not None and not ones and most != 0:
        ones = [other]
    inside: Expression = Concat()
    if other is not None and (most is None or most > len(ones)):
        more = Concat(parts=(literal(", "), other))
        inside = Repeat(part=more, least=max(0, least - len(ones)), most=None if most is None else most - len(ones))
    for i, one in reversed(list(enumerate(ones))):
        inside = Concat(parts=(literal(", "), one, inside) if i else (one, inside))
        inside = inside if i < least else optional(inside)
    return inside


def _object(schema: Schema, place: str) -> Expression:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
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
    return Concat(parts=(*parts, literal("}" if parts else "{}")))


def _rule(schema: object, place: str) -> str:
    """The keyword or type that decides how a schema is read; ValueError for a keyword that this rule does not support."""
    if not isinstance(schema, Mapping):
        raise ValueError(f'{place}: expected a schema, got {json.dumps(schema, default=str)[:40]}; write {{"type": …}}')
    if {"enum", "const"} & set(schema):
        rule, allowed = "enum", ("enum", "const", "type")
    elif union := next((name for name in _UNIONS if name in schema), None):
        rule, allowed = "anyOf", (union, "discriminator")
        if not (isinstance(schema[union], list) and schema[union]):
            raise ValueError(f"{place}.{union}: expected a list of schemas, got {schema[union]!r:.40}")
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


def _refuse_overlap(schema: Schema, place: str) -> None:
    """ValueError for a ``oneOf`` whose alternatives, all of them valid schemas, may overlap."""
    if not exclusive([inner for inner, _ in flattened(schema, place)]):
        raise ValueError(
            f"{place}.oneOf: two of the alternatives may fit the same value; use anyOf, or give each object its own const"
        )


def flattened(schema: Schema, place: str) -> list[tuple[Schema, str]]:
    """The alternatives of a schema, those inside them included; a schema without alternatives is the only one."""
    inside = alternatives(schema, place)
    return inside if inside == [(schema, place)] else [option for one in inside for option in flattened(*one)]


def _types(schema: Schema, place: str) -> list[str]:
    """The types of a schema that has neither enum, const nor anyOf."""
    given, known = schema.get("type"), ", ".join(_KEYWORDS)
    kinds = given if isinstance(given, list) and given else [given]
    if all(isinstance(kind, str) and kind in _KEYWORDS for kind in kinds):
        return kinds
    strange = [key for key in schema if key not in ANNOTATIONS and not any(key in keys for keys in _KEYWORDS.values())]
    if "type" not in schema and strange:
        raise ValueError(
            f"{place}.{strange[0]}: this keyword is not supported here; use a type ({known}), enum, const, anyOf or oneOf"
        )
    if "type" not in schema:
        raise ValueError(
            f"{place}: this schema allows values of any type; add a type ({known}), enum, const, anyOf or oneOf"
        )
    raise ValueError(
        f"{place}.type: {json.dumps(given, default=str)[:80]} is not supported; use one of {known}, or enum, const, anyOf or oneOf"
    )


def _is(value: object, kind: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    wanted = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}.get(kind, ())
    return isinstance(value, wanted)


def _dumps(value: object, place: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair has no UTF-8
        return text
    except ValueError as error:
        raise ValueError(f"{place}.enum: {value!r:.40} cannot be written as JSON") from error


def _count(schema: Schema, name: str, place: str, largest: int = _LONGEST) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if not _is(value, "integer") or not 0 <= value <= largest:
        raise ValueError(f"{place}.{name}: expected a whole number from 0 to {largest}, got {value!r:.40}")
    return int(value)


def _bound(schema: Schema, name: str, place: str) -> Fraction | None:
    """A bound of a number as written: 0.1 is a tenth."""
    value = schema.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value
        or value in (float("inf"), -float("inf"))
    ):
        raise ValueError(f"{place}.{name}: expected a number, got {json.dumps(value, default=str)[:40]}")
    return Fraction(str(value)) if isinstance(value, float) else Fraction(value)


def _ordered(least: int, most: int | None, place: str, what: str) -> int | None:
    if most is not None and most < least:
        raise ValueError(f"{place}: min{what} is {least} and max{what} {most}; the minimum must not exceed the maximum")
    return most
