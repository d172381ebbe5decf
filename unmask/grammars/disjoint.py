"""Whether the alternatives of ``oneOf`` exclude each other, so that a text valid for one is invalid for the others.

``exclusive(schemas)`` decides by types, listed values and the tags of objects; it says False where that does not decide. This is what
discriminated unions of pydantic and enumerations with titles need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.grammars.merging import value_key

_MOST_PAIRS = 200  # alternatives that are compared with each other one by one


def exclusive(schemas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no object, array or value fits two of the schemas, which are expanded and have no alternatives inside."""
    listed = [value_key(value) for schema in schemas for value in _values(schema)]
    if len(set(listed)) < len(listed):
        return False
    rest = [schema for schema in schemas if not _values(schema)]
    if len(rest) > _MOST_PAIRS:
        return False
    kinds = {kind for schema in schemas for value in _values(schema) for kind in _kinds_of(value)}
    return not any(_kind(schema) in kinds for schema in rest) and all(
        _apart(a, b) for i, a in enumerate(rest) for b in rest[:i]
    )


def _apart(a: object, b: object) -> bool:
    """Whether no text that is written for one schema is valid for the other."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return False
    if _values(a) and _values(b):
        return not {value_key(v) for v in _values(a)} & {value_key(v) for v in _values(b)}
    if _values(a) or _values(b):
        values, other = (_values(a), b) if _values(a) else (_values(b), a)
        return bool(_kind(other)) and all(_kind(other) not in _kinds_of(value) for value in values)
    first, second = _kind(a), _kind(b)
    if not first or not second:
        return False
    if first == second == "object":
        own, others = a.get("properties"), b.get("properties")
        return (
            isinstance(own, Mapping)
            and isinstance(others, Mapping)
            and any(_apart(own[name], others[name]) for name in own if name in others)
        )
    return first != second and {first, second} != {"integer", "number"}


def _values(schema: Mapping[str, Any]) -> list[object]:
    """The listed values of a schema, those of other types included; [] if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _kind(schema: Mapping[str, Any]) -> str:
    """Its only type; "" where there are several or none."""
    kind = schema.get("type")
    return kind if isinstance(kind, str) and not {"anyOf", "oneOf", "enum", "const"} & set(schema) else ""


def _kinds_of(value: object) -> tuple[str, ...]:
    if value is None or isinstance(value, bool):
        return ("null",) if value is None else ("boolean",)
    if isinstance(value, int | float):
        return ("number", "integer")
    return ("string",) if isinstance(value, str) else ("array",) if isinstance(value, list) else ("object",)
