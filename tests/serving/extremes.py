"""Extreme values of a field, made from its schema. Public idea: ``extremes(schema, root)``: valid and invalid values, each once.

They are the bounds of every number, length and list, one beyond each bound, every member of an enumeration, and a value of every type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_MOST = 12  # members of an enumeration, and items of a list that are tried
_OF_EVERY_TYPE = (
    *(None, True, False, 0, 1, -1, 2.0, 0.5, 1e300, 10**20, "", "\t\u200b\U000e0041", "a", "null", "true", "1"),
    *([], [None], [""], {}, {"a": 1}),
)


def extremes(schema: Any, root: Any) -> list[Any]:
    """Values for a field of this schema. ``root``: the document."""
    found = {json.dumps(value): value for value in (*_OF_EVERY_TYPE, *_of(schema, root, 3))}
    return list(found.values())


def _of(schema: Any, root: Any, depth: int) -> Iterator[Any]:
    if not isinstance(schema, dict) or not depth:
        return
    if "$ref" in schema:
        yield from _of(_resolved(schema["$ref"], root), root, depth)
    for choice in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from _of(choice, root, depth)
    yield from schema.get("enum", ())[:_MOST]
    if "const" in schema:
        yield schema["const"]
    yield from _numbers(schema)
    yield from _strings(schema)
    yield from _lists(schema, root, depth)
    yield from _objects(schema, root, depth)


def _resolved(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def _numbers(schema: Any) -> Iterator[Any]:
    step = 1 if schema.get("type") == "integer" else 0.001
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if name in schema:
            yield from (schema[name] - step, schema[name], schema[name] + step)


def _strings(schema: Any) -> Iterator[str]:
    for name in ("minLength", "maxLength"):
        if name in schema:
            if schema[name] < 1000:  # a text of more characters has too many tokens
                yield from ("a" * max(0, schema[name] + more) for more in (-1, 0, 1))
            elif name == "maxLength":
                yield "a" * (schema[name] + 1)


def _lists(schema: Any, root: Any, depth: int) -> Iterator[list[Any]]:
    if schema.get("type") != "array":
        return
    first = [list(_of(one, root, depth - 1)) for one in schema.get("prefixItems", ())]
    items = list(_of(schema.get("items"), root, depth - 1))
    for number in range(max(map(len, first), default=0)):
        yield [values[number % len(values)] for values in first if values]
    for value in items[:_MOST]:
        yield [value]
        yield [value, value]
        for name in ("minItems", "maxItems"):
            if name in schema and schema[name] < 300:
                yield from ([value] * max(0, schema[name] + more) for more in (-1, 0, 1))


def _objects(schema: Any, root: Any, depth: int) -> Iterator[dict[str, Any]]:
    properties = schema.get("properties", {})
    if schema.get("type") != "object" or not properties:
        return
    values = {name: list(_of(one, root, depth - 1)) for name, one in properties.items()}
    whole = {name: found[0] for name, found in values.items() if found and name in schema.get("required", properties)}
    yield whole
    for name, found in values.items():
        yield {k: v for k, v in whole.items() if k != name}
        yield from ({**whole, name: value} for value in found[:_MOST])
    yield {**whole, "unknown": 1}
