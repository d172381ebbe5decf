"""Schemas with their references expanded: ``$ref`` into ``$defs``, as pydantic and OpenAI's structured outputs write them.

``expanded(schema)`` returns the same schema without ``$ref`` and without ``allOf`` of a single schema. Definitions that nothing refers to
are never read, so they may hold anything. Only JSON pointers into the same schema (``#/$defs/Name``) are followed. An automaton has no
stack, so a recursive schema is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
    + ("$schema", "$id", "$comment", "$defs", "definitions")
)
MAX_DEPTH = 32  # schemas inside schemas
_MAX_SCHEMAS = 5_000  # after expansion: definitions that refer to each other twice double at every level


def expanded(schema: object) -> Any:
    """The schema with every reference replaced by what it refers to. ValueError names the keyword and its path."""
    return _Expansion(schema).schema(schema, "schema", (), 0)


class _Expansion:
    def __init__(self, root: object) -> None:
        self.root, self.count = root, 0

    def schema(self, schema: object, place: str, active: tuple[str, ...], depth: int) -> object:
        """``active``: the references being expanded, outermost first."""
        self.count += 1
        if self.count > _MAX_SCHEMAS:
            raise ValueError(f"{place}: more than {_MAX_SCHEMAS} schemas after expanding $ref; use fewer references")
        if depth > MAX_DEPTH:
            raise ValueError(f"{place}: schemas are nested more than {MAX_DEPTH} deep; make it flatter")
        schema, active = self._followed(schema, place, active)
        if not isinstance(schema, Mapping):
            return schema  # the translation says what is wrong with it
        out = dict(schema)
        if isinstance(schema.get("properties"), Mapping):
            out["properties"] = {
                name: self.schema(inner, f"{place}.properties.{name}", active, depth + 1)
                for name, inner in schema["properties"].items()
            }
        if "items" in schema:
            out["items"] = self.schema(schema["items"], f"{place}.items", active, depth + 1)
        if isinstance(schema.get("anyOf"), list):
            inside = enumerate(schema["anyOf"])
            out["anyOf"] = [self.schema(s, f"{place}.anyOf[{i}]", active, depth + 1) for i, s in inside]
        return out

    def _followed(self, schema: object, place: str, active: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
        """The schema behind ``$ref`` and ``allOf`` of one, with the annotations that stand beside them."""
        while isinstance(schema, Mapping) and ("$ref" in schema or "allOf" in schema):
            keyword = "$ref" if "$ref" in schema else "allOf"
            beside = {key: value for key, value in schema.items() if key != keyword}
            constraints = [key for key in beside if key not in ANNOTATIONS]
            if constraints:
                raise ValueError(
                    f"{place}.{constraints[0]}: this keyword is not supported beside {keyword}; move it into the schema"
                )
            if keyword == "allOf":
                target = _only(schema["allOf"], place)
            else:
                target, active = self._target(schema["$ref"], place, active)
            schema = {**target, **beside} if isinstance(target, Mapping) else target
        return schema, active

    def _target(self, reference: object, place: str, active: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ValueError(
                f"{place}.$ref: {json.dumps(reference, default=str)[:80]} is not a path inside this schema; "
                "only references such as #/$defs/Name are supported, so copy the definition into $defs"
            )
        if reference in active:
            raise ValueError(
                f"{place}.$ref: {reference} refers to itself; recursive schemas are not supported, "
                "because an answer has a fixed number of tokens; write out as many levels as you need"
            )
        found = self.root
        for step in reference.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if not (isinstance(found, Mapping) and name in found):
                raise ValueError(f"{place}.$ref: {reference} is not in this schema; {self._known()}")
            found = found[name]
        return found, (*active, reference)

    def _known(self) -> str:
        definitions = self.root.get("$defs") if isinstance(self.root, Mapping) else None
        names = list(definitions) if isinstance(definitions, Mapping) else []
        return f"$defs has {', '.join(map(str, names[:10]))}" if names else "it has no $defs"


def _only(schemas: object, place: str) -> object:
    if not isinstance(schemas, list) or len(schemas) != 1:
        raise ValueError(f"{place}.allOf: only a list of one schema is supported; merge the schemas into one")
    return schemas[0]
