"""JSON schemas: the grammar accepts valid documents and no others, and unsupported keywords are named with their paths."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any
from uuid import UUID

import pytest
from pydantic import AnyUrl, TypeAdapter

from unmask.grammars.automaton import TooLarge, compile_automaton
from unmask.grammars.formats import FORMATS
from unmask.grammars.schema import json_texts, leaves

COLOURS = {"enum": ["red", 'b"l', 3, None, True, [1], "é"]}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "boolean"}, [True, False], [None, 0, "true"]),
    ({"type": "null"}, [None], [False]),
    (COLOURS, COLOURS["enum"], ["green", False, 1, []]),
    ({"const": 4, "type": "integer"}, [4], [5, "4"]),
    ({"enum": [1, "a", 2.5], "type": "number"}, [1, 2.5], ["a"]),
    ({"type": "integer", "minimum": 3, "exclusiveMaximum": 12}, [3, 11], [2, 12, "3"]),
    ({"type": "integer", "maximum": -3.0}, [-3, -(10**14)], [-2, 0, 3]),
    ({"type": "integer"}, [0, -7, 10**15 - 1], [10**15, 1.5]),
    ({"type": "number", "minimum": -2, "maximum": 3}, [-2, -1.5, -0.25, 0, 0.5, 2.999999, 3], [-2.5, 3.5, 4, -3]),
    ({"type": "number", "minimum": 2, "maximum": 2}, [2], [2.5, 1.5]),
    ({"type": "number", "maximum": -1}, [-1, -1.5, -20.25], [-0.5, 0, 1.5]),
    ({"type": "string", "minLength": 1, "maxLength": 3}, ["a", "é€😀", '"\\é'], ["", "abcd", 1, "\n"]),
    ({"type": "string", "pattern": '^[a-c"]+$'}, ["a", 'c"b'], ["", "d"]),
    ({"type": ["string", "null"], "maxLength": 2}, ["", "ab", None], ["abc", 1]),
    ({"type": ["string", "null"], "enum": ["a", 1, None]}, ["a", None], [1, "b"]),
    ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]}, [None, 0, 9], [10, "0"]),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        [[True], [True, False]],
        [[], [True] * 3, True],
    ),
    ({"type": "array", "items": {"type": "null"}}, [[], [None] * 5], [[1]]),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}]},
        [[], [1], [1, None]],
        [[None], [1, None, None]],
    ),
    (
        {
            "type": "array",
            "prefixItems": [{"const": 1}, {"const": 2}],
            "items": {"const": 3},
            "minItems": 1,
            "maxItems": 4,
        },
        [[1], [1, 2], [1, 2, 3], [1, 2, 3, 3]],
        [[], [2], [1, 3], [1, 2, 3, 3, 3]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2, "maxItems": 2},
        [[1, 2]],
        [[], [1], [1, 2, 3]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "maxItems": 1},
        [[], [1]],
        [[1, 2]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 3}, "minItems": 3},
        [[1, 3, 3], [1, 3, 3, 3]],
        [[1, 3]],
    ),
    ({"type": "array", "items": False}, [[]], [[1]]),
    ({"type": "object", "properties": {}, "additionalProperties": False}, [{}], [{"a": 1}, []]),
    ({"type": "integer", "minimum": 0.5, "maximum": 2.5}, [1, 2], [0, 3]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2}, [0.0001, 0.5, 1, 1.999999], [0, 2, -1, 2.5]),
    ({"type": "number", "minimum": 0.1, "maximum": 0.25}, [0.1, 0.2, 0.25, 0.249999], [0.09, 0.3, 0.250001, 0, 1]),
    ({"type": "number", "minimum": -1.5, "maximum": 1.25}, [-1.5, -1, 0, -0.7, 1.25, 1.2, 1], [-1.6, -2, 1.3, 2]),
    ({"type": "number", "minimum": -2.75, "maximum": -1.5}, [-2.75, -2, -1.5, -1.6], [-1.4, -1, -3, 2]),
    ({"type": "number", "minimum": 0.5, "maximum": 0.5}, [0.5], [0, 0.4, 0.6, 1]),
    (
        {"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}, {"type": ["null", "integer"]}]},
        ["a", "b", None, 3],
        ["c"],
    ),
    ({"type": "string", "format": "date"}, ["2024-02-28", "1999-12-31"], ["2024-02-30", "2023-04-31", "x"]),
    (
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        ["https://a.bc", "http://x.y.de/z"],
        ["a"],
    ),
    ({"type": "string", "format": "a-format-of-ours", "maxLength": 1}, ["", "x"], ["xy"]),
    ({"type": "string", "pattern": "a{2}", "maxLength": 3, "minLength": 2}, ["aa"], ["a"]),
    ({"type": "string", "maxLength": 1.0}, ["a"], ["ab"]),
    ({"type": "integer", "format": "int32", "maximum": 3, "minimum": 3}, [3], [4]),
    ({"enum": [1, 2], "const": 1.0}, [1], [2]),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, [[]], [[None]]),
    (
        {
            "type": "object",
            "title": "t",
            "required": ["a"],
            "additionalProperties": False,
            "properties": {"a": {"type": "boolean"}, 'b"': {"type": "object", "properties": {"c": {"const": 1}}}},
        },
        [{"a": True, 'b"': {"c": 1}}],
        [{"a": True}, {}, {'b"': {"c": 1}, "a": True}],
    ),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=lambda v: json.dumps(v)[:50])
def test_the_valid_values_are_accepted_and_no_others(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    automaton = compile_automaton(json_texts(schema))
    for value in valid:
        assert automaton.accepts(json.dumps(value, ensure_ascii=False).encode()), value
    for value in invalid:
        assert not automaton.accepts(json.dumps(value, ensure_ascii=False).encode()), value


WRONG: list[tuple[Any, str]] = [
    (True, "schema: expected a schema"),
    ({}, "schema: this schema allows values of any type; add a type"),
    ({"type": None}, "schema.type: null is not supported"),
    ({"type": ["string", "tuple"]}, "schema.type"),
    ({"type": []}, "schema.type: [] is not supported"),
    ({"type": ["string", "null"], "items": {}}, "schema.items: this keyword is not supported here"),
    ({"enum": ["a"], "type": [["a"]]}, "schema.type"),
    ({"type": "string", "pattern": 3}, "schema.pattern: expected a regex"),
    ({"enum": ["\ud800"]}, "cannot be written as JSON"),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": None},
        "schema.required: expected a list of names, got null",
    ),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": [["a"]]},
        "schema.required: expected a list",
    ),
    ({"type": "integer", "multipleOf": 2}, "schema.multipleOf: this keyword is not supported here"),
    ({"$ref": "#/x"}, "schema.$ref: this keyword is not supported here"),
    ({"type": "object"}, "without properties"),
    ({"type": "string", "format": "date", "minLength": 11}, "schema.format: not supported together with a minLength"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "patternProperties": {}}, "schema.patternProperties"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b' is not among the properties"),
    ({"type": "array"}, "schema: an array without items"),
    ({"type": "array", "items": {"type": "x"}}, "schema.items.type"),
    ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "minItems is 3 and maxItems 2"),
    ({"type": "string", "maxLength": -1}, "schema.maxLength: expected a whole number"),
    ({"type": "string", "maxLength": 10**9}, "schema.maxLength"),
    ({"type": "string", "maxLength": 1.5}, "schema.maxLength"),
    ({"type": "string", "pattern": "(?=a)"}, "schema.pattern: regex"),
    ({"type": "string", "pattern": "a*", "maxLength": 3}, "put the length in the pattern"),
    (
        {"type": "integer", "minimum": 5, "maximum": 4},
        "no integer of at most 15 digits fits the bounds minimum 5, maximum 4",
    ),
    (
        {"type": "integer", "minimum": 0.5, "maximum": 0.6},
        "no integer of at most 15 digits fits the bounds minimum 0.5",
    ),
    ({"type": "number", "minimum": 10**4000, "maximum": -1}, "no number with 6 digits after the point of at most 15"),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-7}, "fits the bounds maximum 1e-07, exclusiveMinimum 0"),
    ({"type": "number", "exclusiveMinimum": True}, "schema.exclusiveMinimum: expected a number, got true"),
    ({"type": "integer", "minimum": float("nan")}, "expected a number"),
    ({"type": "integer", "minimum": "0"}, "expected a number"),
    ({"enum": []}, "schema.enum"),
    ({"enum": ["a"], "type": "integer"}, "none of the values is of type integer"),
    ({"enum": [float("inf")]}, "cannot be written as JSON"),
    ({"anyOf": []}, "schema.anyOf"),
    ({"oneOf": {}}, "schema.oneOf: expected a list of schemas"),
    ({"oneOf": [{"type": "null"}, {"oneOf": "#"}]}, "schema.oneOf[1].oneOf: expected a list of schemas"),
    ({"oneOf": [{"type": "null"}, {"type": [1]}]}, "schema.oneOf[1].type: [1] is not supported"),
    ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "schema.oneOf: two of the alternatives may fit the same value"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "schema.oneOf: two"),
    ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "schema.oneOf: two"),
    ({"oneOf": [{"type": ["string", "null"]}, {"type": "null"}]}, "schema.oneOf: two"),
    ({"enum": [1], "const": True}, "schema.const: True is not among the values of enum"),
    ({"type": "array", "prefixItems": {"type": "null"}}, "schema.prefixItems: expected a list"),
    (
        {"type": "array", "prefixItems": [{"type": "null"}], "minItems": 2},
        "schema.minItems: 2 items, but prefixItems has 1",
    ),
    ({"type": "array", "prefixItems": [True]}, "schema.prefixItems[0]: expected a schema, got true"),
    ({"anyOf": [{"type": "null"}, {"type": "tuple"}]}, "schema.anyOf[1].type"),
]


@pytest.mark.parametrize(("schema", "said"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_not_supported_is_named_with_its_path(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=".") as wrong:
        json_texts(schema)
    assert said in str(wrong.value)


def test_leaves_are_the_values_in_their_order() -> None:
    inner = {"type": "object", "properties": {"y": {"type": "null"}, "z": {"enum": [1]}}}
    schema = {"type": "object", "properties": {"x": inner, "w": {"type": "array", "items": inner}}}
    assert [leaf.path for leaf in leaves(schema)] == [("x", "y"), ("x", "z"), ("w",)]
    assert [leaf.place for leaf in leaves(schema)][0] == "schema.properties.x.properties.y"


FORMATTED = {
    "date": ("2024-02-28", "2024-00-01", lambda text: date.fromisoformat(text)),
    "time": ("23:59:59Z", "24:00:00Z", lambda text: time.fromisoformat(text)),
    "date-time": ("2024-01-31T00:00:00.5+01:00", "2024-01-31", lambda text: datetime.fromisoformat(text)),
    "duration": ("P1DT2H3M4S", "P", lambda text: TypeAdapter(timedelta).validate_python(text)),
    "uuid": ("123e4567-e89b-42d3-a456-426614174000", "123e4567", lambda text: UUID(text)),
    "email": ("a.b@c.org", "a.b", lambda text: None),
    "hostname": ("a-b.example.org", "-a.org", lambda text: None),
    "ipv4": ("255.0.19.1", "256.0.0.1", lambda text: IPv4Address(text)),
    "ipv6": ("fe80:0:0:0:0:0:0:1", "fe80::1::", lambda text: IPv6Address(text)),
    "uri": ("https://example.org/a/b.html", "example", lambda text: TypeAdapter(AnyUrl).validate_python(text)),
}


def test_every_format_that_is_kept_is_tested() -> None:
    assert set(FORMATTED) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATTED)
def test_texts_of_a_format_are_read_by_its_readers(name: str) -> None:
    """Random walks through the automaton, which prefer states they have not been to."""
    valid, invalid, read = FORMATTED[name]
    automaton = compile_automaton(json_texts({"type": "string", "format": name}))
    assert automaton.accepts(f'"{valid}"'.encode()) and not automaton.accepts(f'"{invalid}"'.encode())
    rng = Random(0)
    for _ in range(50):
        state, text = 0, b""
        while not (automaton.ends[state] and text):
            byte = rng.choice([b for b, to in enumerate(automaton.table[state].tolist()) if to < automaton.states])
            state, text = int(automaton.table[state, byte]), text + bytes([byte])
        read(json.loads(text))


def test_bounds_of_numbers_are_exact() -> None:
    """Against arithmetic, for all multiples of a tenth around random bounds."""
    rng = Random(0)
    for _ in range(40):
        low, high = sorted(rng.sample(range(-35, 36), 2))
        least, most = rng.choice(("minimum", "exclusiveMinimum")), rng.choice(("maximum", "exclusiveMaximum"))
        automaton = compile_automaton(json_texts({"type": "number", least: low / 10, most: high / 10}))
        for tenths in range(-40, 41):
            fits = low + (least != "minimum") <= tenths <= high - (most != "maximum")
            text = str(tenths // 10) if tenths % 10 == 0 else str(tenths / 10)
            assert automaton.accepts(text.encode()) == fits, (low, least, high, most, tenths)


def test_a_union_with_a_discriminator_is_one_of_its_objects() -> None:
    def tagged(kind: str, **more: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": kind}, **more}}

    schema = {
        "oneOf": [tagged("cat", lives={"const": 9}), tagged("dog")],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}},
    }
    automaton = compile_automaton(json_texts(schema))
    assert automaton.accepts(b'{"kind": "cat", "lives": 9}') and automaton.accepts(b'{"kind": "dog"}')
    assert not automaton.accepts(b'{"kind": "dog", "lives": 9}')
    with pytest.raises(ValueError, match="may fit the same value"):
        json_texts({"oneOf": [tagged("cat"), {"type": "object", "properties": {"lives": {"const": 9}}}]})


@pytest.mark.parametrize("pattern", ["((){1000}){1000}", "(a?){1000}(a?){1000}(a?){1000}"])
def test_patterns_that_would_take_long_are_refused(pattern: str) -> None:
    with pytest.raises(TooLarge, match="takes too long to build"):
        compile_automaton(json_texts({"type": "string", "pattern": pattern}))
