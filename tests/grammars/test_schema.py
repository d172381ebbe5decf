"""JSON schemas: what is valid is in the language, what is not is not, and what is not supported is named with its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unmask.grammars.automaton import compile_automaton
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
    ({}, "schema.type: null is not supported"),
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
    ({"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}, "schema.properties.a.format"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "patternProperties": {}}, "schema.patternProperties"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b' is not among the properties"),
    ({"type": "array"}, "schema: an array without items"),
    ({"type": "array", "items": {"type": "x"}}, "schema.items.type"),
    ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "minItems is 3 and maxItems 2"),
    ({"type": "string", "maxLength": -1}, "schema.maxLength: expected a whole number"),
    ({"type": "string", "maxLength": 10**9}, "schema.maxLength"),
    ({"type": "string", "pattern": "(?=a)"}, "schema.pattern: regex"),
    ({"type": "string", "pattern": "a*", "maxLength": 3}, "put the length in the pattern"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer lies between 5 and 4"),
    ({"type": "integer", "minimum": 0.5}, "only whole numbers are supported as bounds"),
    ({"type": "integer", "minimum": float("nan")}, "expected a number"),
    ({"type": "integer", "minimum": "0"}, "expected a number"),
    ({"type": "number", "exclusiveMinimum": 0}, "schema.exclusiveMinimum"),
    ({"enum": []}, "schema.enum"),
    ({"enum": ["a"], "type": "integer"}, "none of the values is of type integer"),
    ({"enum": [float("inf")]}, "cannot be written as JSON"),
    ({"anyOf": []}, "schema.anyOf"),
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
