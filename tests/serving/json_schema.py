"""The part of JSON Schema that /openapi.json uses. Public idea: ``fits(value, schema, root) -> bool``.

A string of the format image-data-url must be an image. KeyError for a keyword that is not implemented, so that a new one in the document
cannot pass unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from unmask.serving.data_urls import picture_of
from unmask.serving.picture_reader import PictureReader

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == v // 1,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}
_NOTES = frozenset(("title", "description", "default", "examples", "then", "else"))


def fits(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value is valid. ``root``: the document, for references."""
    if isinstance(schema, bool):
        return schema
    return all(name in _NOTES or _RULES[name](value, rule, schema, root) for name, rule in schema.items())


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True) or (
        _TYPES["number"](a) and _TYPES["number"](b) and a == b
    )


def _reference(value: Any, rule: str, schema: Any, root: Any) -> bool:
    found = root
    for part in rule.removeprefix("#/").split("/"):
        found = found[part]
    return fits(value, found, root)


def _properties(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, dict) or all(fits(value[k], s, root) for k, s in rule.items() if k in value)


def _others(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    known = schema.get("properties", {})
    return not isinstance(value, dict) or all(fits(v, rule, root) for k, v in value.items() if k not in known)


def _items(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, list) or all(fits(v, rule, root) for v in value[len(schema.get("prefixItems", [])) :])


def _first(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, list) or all(fits(v, s, root) for v, s in zip(value, rule, strict=False))


def _condition(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return fits(value, schema.get("then" if fits(value, rule, root) else "else", True), root)


def _dependent(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, dict) or all(fits(value, s, root) for k, s in rule.items() if k in value)


@cache
def _is_image(url: str) -> bool:
    try:
        picture_of(url, "image", PictureReader())
    except ValueError:
        return False
    return True


_RULES: dict[str, Callable[[Any, Any, Any, Any], bool]] = {
    "$ref": _reference,
    "type": lambda v, rule, s, root: any(_TYPES[t](v) for t in ([rule] if isinstance(rule, str) else rule)),
    "enum": lambda v, rule, s, root: any(_same(v, one) for one in rule),
    "const": lambda v, rule, s, root: _same(v, rule),
    "anyOf": lambda v, rule, s, root: any(fits(v, one, root) for one in rule),
    "oneOf": lambda v, rule, s, root: sum(fits(v, one, root) for one in rule) == 1,
    "allOf": lambda v, rule, s, root: all(fits(v, one, root) for one in rule),
    "not": lambda v, rule, s, root: not fits(v, rule, root),
    "if": _condition,
    "properties": _properties,
    "additionalProperties": _others,
    "required": lambda v, rule, s, root: not isinstance(v, dict) or set(rule) <= set(v),
    "minProperties": lambda v, rule, s, root: not isinstance(v, dict) or len(v) >= rule,
    "maxProperties": lambda v, rule, s, root: not isinstance(v, dict) or len(v) <= rule,
    "propertyNames": lambda v, rule, s, root: not isinstance(v, dict) or all(fits(name, rule, root) for name in v),
    "dependentSchemas": _dependent,
    "items": _items,
    "prefixItems": _first,
    "contains": lambda v, rule, s, root: not isinstance(v, list) or any(fits(one, rule, root) for one in v),
    "minItems": lambda v, rule, s, root: not isinstance(v, list) or len(v) >= rule,
    "maxItems": lambda v, rule, s, root: not isinstance(v, list) or len(v) <= rule,
    "uniqueItems": lambda v, rule, s, root: not isinstance(v, list) or len({json.dumps(i) for i in v}) == len(v),
    "minLength": lambda v, rule, s, root: not isinstance(v, str) or len(v) >= rule,
    "maxLength": lambda v, rule, s, root: not isinstance(v, str) or len(v) <= rule,
    "pattern": lambda v, rule, s, root: not isinstance(v, str) or bool(re.search(rule, v)),
    "format": lambda v, rule, s, root: rule != "image-data-url" or not isinstance(v, str) or _is_image(v),
    "minimum": lambda v, rule, s, root: not _TYPES["number"](v) or v >= rule,
    "maximum": lambda v, rule, s, root: not _TYPES["number"](v) or v <= rule,
    "exclusiveMinimum": lambda v, rule, s, root: not _TYPES["number"](v) or v > rule,
    "exclusiveMaximum": lambda v, rule, s, root: not _TYPES["number"](v) or v < rule,
}
