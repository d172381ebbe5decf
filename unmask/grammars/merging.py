"""Several schemas that all apply to one value, as one schema: those of ``allOf``, and a ``$ref`` with the keywords beside it.

``merged(schemas, place)`` takes expanded schemas. Keywords that only one of them has are kept; two limits become the tighter one, two
lists of types or values what they share, two sets of properties their union. Any other disagreement is a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format")
    + ("unevaluatedProperties", "unevaluatedItems")  # an answer has only what the schema names
    + ("$schema", "$id", "$comment", "$defs", "definitions")
)
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def merged(schemas: Sequence[object], place: str) -> Any:
    """One schema for all. Of annotations the last counts. ValueError names the keyword on which two of them disagree."""
    whole: dict[str, Any] = {}
    for part in schemas:
        if isinstance(part, Mapping):
            whole = _both(whole, part, place)
        elif part is not True:
            return part  # the translation says what is wrong with it
    return whole


def value_key(value: object) -> str:
    """A text that is the same for values that JSON counts as equal: 1 and 1.0, but not 1 and true."""
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _both(a: Mapping[str, Any], b: Mapping[str, Any], place: str) -> dict[str, Any]:
    _refuse_apart(a, b, place)
    _refuse_apart(b, a, place)
    out = dict(a)
    for key, value in b.items():
        if key not in a or key in ANNOTATIONS:
            out[key] = value
        elif value_key(a[key]) != value_key(value):
            out[key] = _one(key, a[key], value, place)
    return out


def _refuse_apart(a: Mapping[str, Any], b: Mapping[str, Any], place: str) -> None:
    """ValueError for keywords that depend on their neighbours, which merging would change."""
    names, others = a.get("properties"), b.get("properties")
    own, foreign = (set(n) if isinstance(n, Mapping) else set() for n in (names, others))
    if a.get("additionalProperties", True) is not True and foreign - own:
        raise ValueError(
            f"{place}.additionalProperties: forbids {sorted(foreign - own)[0]!r}, a property of another part of this schema; "
            "write one schema with all properties"
        )
    if "prefixItems" in a and "items" in b and "prefixItems" not in b:
        raise ValueError(f"{place}.items: applies to all items, and another part has prefixItems; write one schema")


def _one(key: str, a: Any, b: Any, place: str) -> Any:
    """What two values of one keyword have in common."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    if key in (*_LEAST, *_MOST) and numbers:
        return max(a, b) if key in _LEAST else min(a, b)
    if key == "required" and isinstance(a, list) and isinstance(b, list):
        return [*a, *(name for name in b if name not in a)]
    if key == "properties" and isinstance(a, Mapping) and isinstance(b, Mapping):
        both = {name: merged([a[name], b[name]], f"{place}.properties.{name}") for name in a if name in b}
        return {**a, **b, **both}
    if key == "additionalProperties" and False in (a, b):
        return False
    if key == "enum" and isinstance(a, list) and isinstance(b, list):
        shared = {value_key(value) for value in b}
        return [value for value in a if value_key(value) in shared]
    if key == "type" and (kinds := _kinds(a, b)):
        return kinds if len(kinds) > 1 else kinds[0]
    raise ValueError(
        f"{place}.{key}: two parts of this schema (allOf, or a $ref and the keywords beside it) disagree; write one schema"
    )


def _kinds(a: Any, b: Any) -> list[Any]:
    """The types in both; an integer is a number."""
    first, second = (v if isinstance(v, list) else [v] for v in (a, b))
    wider = [*second, *(["integer"] if "number" in second else [])]
    narrowed = ["integer"] if "number" in first and "number" not in second and "integer" in second else []
    return [kind for kind in first if kind in wider] + [kind for kind in narrowed if kind not in first]
