"""Schemas with their references expanded: ``$ref`` into ``$defs``, as pydantic and OpenAI's structured outputs write them.

``expanded(schema)`` returns the same schema without ``$ref`` and ``allOf``: what they name is merged with the keywords beside them
(``merging``). Keywords that are null count as absent. Definitions that nothing refers to are never read, so they may hold anything. Only
JSON pointers into the same schema (``#/$defs/Name``) are followed. An automaton has no stack, so a recursive schema is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from unmask.grammars.merging import ANNOTATIONS, merged

MAX_DEPTH = 32  # schemas inside schemas
_MAX_CHAIN = 100  # references that lead to references
_MAX_SCHEMAS = 5_000  # after expansion: definitions that refer to each other twice double at every level
_MAX_CHARACTERS = (
    80_000  # values, names and patterns after expansion: an automaton of 20,000 states holds about as many
)
_MAY_BE_NULL = ("const", "default", "examples", "type")  # null is a value of these; as a type it is an error


def expanded(schema: object) -> Any:
    """The schema with every reference replaced by what it refers to. ValueError names the keyword and its path."""
    return _Expansion(schema).schema(schema, "schema", (), 0)


class _Expansion:
    def __init__(self, root: object) -> None:
        self.root, self.count, self.characters = root, 0, 0

    def schema(self, schema: object, place: str, active: tuple[str, ...], depth: int) -> object:
        """``active``: the references being expanded, outermost first."""
        self._limit(schema, place, active, depth)
        if not isinstance(schema, Mapping):
            return schema  # the translation says what is wrong with it
        own = {key: value for key, value in schema.items() if _counts(key, value)}
        nullable = own.pop("nullable", False) is True  # the form of OpenAPI 3.0
        parts = []
        if "$ref" in own:
            target, inside = self._target(own.pop("$ref"), place, active)
            parts.append(self.schema(target, place, inside, depth))
        if "allOf" in own:
            parts += self._each(own.pop("allOf"), f"{place}.allOf", active, depth)
        for union in ("anyOf", "oneOf"):
            if isinstance(own.get(union), list) and len(own[union]) == 1:
                parts += self._each(own.pop(union), f"{place}.{union}", active, depth)
        whole = merged([*parts, self._own(own, place, active, depth)], place)
        return _or_null(whole) if nullable and isinstance(whole, Mapping) else whole

    def _own(self, schema: dict[str, Any], place: str, active: tuple[str, ...], depth: int) -> dict[str, Any]:
        """A schema without references of its own: those of the schemas inside it are expanded."""
        if isinstance(schema.get("type"), list) and len(schema["type"]) == 1:
            schema["type"] = schema["type"][0]
        if not {"type", "enum", "const", "anyOf", "oneOf"} & set(
            schema
        ):  # any type is allowed, so take the one that is described
            described = (
                "object" if "properties" in schema else "array" if {"items", "prefixItems"} & set(schema) else None
            )
            schema |= {"type": described} if described else {}
        if isinstance(schema.get("items"), list):  # the form before 2020-12
            schema["prefixItems"] = schema.pop("items")
            if "additionalItems" in schema:
                schema["items"] = schema.pop("additionalItems")
        if isinstance(schema.get("properties"), Mapping):
            schema["properties"] = {
                name: self.schema(inner, f"{place}.properties.{name}", active, depth + 1)
                for name, inner in schema["properties"].items()
            }
        if "items" in schema:
            schema["items"] = self.schema(schema["items"], f"{place}.items", active, depth + 1)
        for name in ("anyOf", "oneOf", "prefixItems"):
            if isinstance(schema.get(name), list):
                schema[name] = self._each(schema[name], f"{place}.{name}", active, depth)
        return schema

    def _each(self, schemas: object, place: str, active: tuple[str, ...], depth: int) -> list[object]:
        if not (isinstance(schemas, list) and schemas):
            raise ValueError(f"{place}: expected a list of schemas, got {json.dumps(schemas, default=str)[:40]}")
        return [self.schema(inner, f"{place}[{i}]", active, depth + 1) for i, inner in enumerate(schemas)]

    def _limit(self, schema: object, place: str, active: tuple[str, ...], depth: int) -> None:
        """Count what an automaton is built from, before it is built. ValueError beyond a limit."""
        self.count += 1
        if self.count > _MAX_SCHEMAS:
            raise ValueError(f"{place}: more than {_MAX_SCHEMAS} schemas after expanding $ref; use fewer references")
        if depth > MAX_DEPTH:
            raise ValueError(f"{place}: schemas are nested more than {MAX_DEPTH} deep; make it flatter")
        if len(active) > _MAX_CHAIN:
            raise ValueError(f"{place}: more than {_MAX_CHAIN} references follow each other; refer to the last one")
        if isinstance(schema, Mapping):
            names = schema.get("properties")
            own = [
                schema.get("enum"),
                schema.get("const"),
                schema.get("pattern"),
                list(names) if isinstance(names, Mapping) else 0,
            ]
            self.characters += len(json.dumps(own, default=str)) - len("[null, null, null, 0]")
        if self.characters > _MAX_CHARACTERS:
            raise ValueError(
                f"{place}: more than {_MAX_CHARACTERS} characters of values, names and patterns after expanding $ref; use fewer"
            )

    def _target(self, reference: object, place: str, active: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ValueError(
                f"{place}.$ref: {json.dumps(reference, default=str)[:80]} is not a path inside this schema; "
                "only references such as #/$defs/Name are supported, so copy the definition into $defs"
            )
        steps = unquote(reference).split("/")[1:]
        pointer = "/".join(["#", *steps])
        if pointer in active:
            raise ValueError(
                f"{place}.$ref: {reference[:80]} refers to itself; recursive schemas are not supported, "
                "because an answer has a fixed number of tokens; write out as many levels as you need"
            )
        found = self.root
        for step in steps:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(found):
                found = found[int(name[:9])]
            else:
                raise ValueError(f"{place}.$ref: {reference[:80]} is not in this schema; {self._known()}")
        return found, (*active, pointer)

    def _known(self) -> str:
        """The definitions there are, for an error message."""
        for key in ("$defs", "definitions"):
            definitions = self.root.get(key) if isinstance(self.root, Mapping) else None
            if isinstance(definitions, Mapping) and definitions:
                return f"{key} has {', '.join(map(str, list(definitions)[:10]))}"
        return "it has no $defs"


def _counts(key: object, value: object) -> bool:
    """Whether a keyword is there: null counts as absent, as do extensions (``x-…``) and a ``uniqueItems`` that asks for nothing."""
    return (
        (value is not None or key in _MAY_BE_NULL)
        and not str(key).startswith("x-")
        and (key, value) != ("uniqueItems", False)
    )


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    notes = {key: value for key, value in schema.items() if key in ANNOTATIONS}
    return {"anyOf": [schema, {"type": "null"}], **notes}
