"""Random schemas, valid and malformed, from a seed: what clients send by habit, by mistake and with intent."""

from __future__ import annotations

from random import Random
from typing import Any

TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
KEYWORDS = (
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions", "properties", "required"),
    *("additionalProperties", "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "pattern"),
    *("minLength", "maxLength", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("title", "description", "default", "examples", "discriminator", "nullable", "if", "then", "$id", "$anchor", "$dynamicRef"),
)  # fmt: skip
REFERENCES = (
    *("#", "#/", "#/$defs/A", "#/$defs/B", "#/$defs/C", "#/definitions/A", "#/$defs/a~1b", "#/$defs/a~0b", "#/$defs/a%25b"),
    *("#/properties/a", "#/$defs/A/anyOf/0", "#/$defs/A/enum/0", "#A", "", "https://example.org/x.json", "#/$defs/%", "#/$defs/~2"),
)  # fmt: skip
TEXTS = (
    "",
    "a",
    "red",
    "blue",
    "yes",
    "1",
    "two",
    "é",
    "日本",
    "😀",
    "\ud800",
    "\x00",
    "a\nb",
    '"',
    "\\",
    "a" * 300,
    "$ref",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    9,
    0.5,
    -0.0,
    1e-9,
    1e15,
    1e16,
    1e300,
    10**30,
    -(10**400),
    float("inf"),
    float("nan"),
    2.0,
    1000,
    1001,
)
PATTERNS = (
    "a*",
    "[a-z]+",
    "^a$",
    "(a|b){2,3}",
    "(?=a)",
    "(",
    "[",
    "a{1000}",
    "((a?){30}){30}",
    "(){1000}",
    "\\d{3}",
    "é+",
    "[^a]",
)
FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "uri", "duration", "int32", "nonsense", "")


def random_schema(rng: Random) -> Any:
    """A schema with definitions; one in two is malformed in one to three places."""
    found = valid(rng, rng.randint(0, 4))
    if isinstance(found, dict) and rng.random() < 0.7:
        names = rng.sample(("A", "B", "C", "a/b", "a~b", "a%b"), rng.randint(1, 3))
        found[rng.choice(("$defs", "$defs", "definitions"))] = {name: valid(rng, 2) for name in names}
    for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
        found = damaged(found, rng)
    return found


def valid(rng: Random, depth: int) -> Any:
    """A schema that is meant well, at most ``depth`` levels deep; references may lead nowhere or in a circle."""
    kind = rng.choice(
        ("enum", "const", "ref", *TYPES, "list") if depth < 1 else ("enum", "ref", "anyOf", "oneOf", "allOf", *TYPES)
    )
    out = _of_kind(rng, kind, depth - 1)
    for name in ("title", "description", "default", "examples"):
        if rng.random() < 0.1:
            out[name] = any_value(rng, 1)
    return out


def _of_kind(rng: Random, kind: str, depth: int) -> dict[str, Any]:
    if kind == "enum":
        return {"enum": [any_value(rng, 1) for _ in range(rng.randint(1, 5))]}
    if kind == "const":
        return {"const": any_value(rng, 1)}
    if kind == "ref":
        return {"$ref": rng.choice(REFERENCES[:12])}
    if kind == "list":
        return {"type": rng.sample(TYPES[:5], rng.randint(1, 3))}
    if kind in ("anyOf", "oneOf", "allOf"):
        return {kind: [valid(rng, depth) for _ in range(rng.randint(1, 3))]}
    if kind == "array":
        return _array(rng, depth)
    return {"type": kind, **(_object(rng, depth) if kind == "object" else _limits(rng, kind))}


def _array(rng: Random, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.8:
        out["items"] = valid(rng, depth)
    if rng.random() < 0.3:
        out["prefixItems"] = [valid(rng, depth) for _ in range(rng.randint(1, 3))]
    for name in ("minItems", "maxItems"):
        if rng.random() < 0.4:
            out[name] = rng.choice((0, 1, 2, 3, 5, 1000))
    return out


def _object(rng: Random, depth: int) -> dict[str, Any]:
    names = rng.sample(("a", "b", "c", "é", "", "a.b", "$ref", "type", '"'), rng.randint(0, 4))
    out: dict[str, Any] = {"properties": {name: valid(rng, depth) for name in names}}
    if rng.random() < 0.6:
        out["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.4:
        out["additionalProperties"] = rng.choice((False, True, {}, {"type": "string"}))
    return out


def _limits(rng: Random, kind: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if kind == "string" and rng.random() < 0.6:
        out = rng.choice(
            ({"pattern": rng.choice(PATTERNS)}, {"format": rng.choice(FORMATS)}, {"minLength": rng.randint(0, 9)})
        )
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if kind in ("integer", "number") and rng.random() < 0.3:
            out[name] = rng.choice(NUMBERS)
    return out


def any_value(rng: Random, depth: int) -> Any:
    """Any JSON value, the numbers that Python's json reads beside it included."""
    kind = rng.randrange(8 if depth else 5)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return [any_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {rng.choice(TEXTS): any_value(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return deep(rng)


def deep(rng: Random) -> Any:
    """A value inside many lists or schemas."""
    out: Any = rng.choice((1, {"type": "null"}))
    wrap = rng.choice(
        (lambda v: [v], lambda v: {"items": v, "type": "array"}, lambda v: {"anyOf": [v]}, lambda v: {"allOf": [v]})
    )
    for _ in range(rng.choice((3, 30, 40, 150))):
        out = wrap(out)
    return out


def damaged(schema: Any, rng: Random) -> Any:
    """The schema with one place replaced, removed, renamed or added."""
    if isinstance(schema, dict) and schema and rng.random() < 0.85:
        name = rng.choice(list(schema))
        how = rng.random()
        if how < 0.1:
            return {key: value for key, value in schema.items() if key != name}
        if how < 0.2:
            return {(rng.choice(KEYWORDS) if key == name else key): value for key, value in schema.items()}
        if how < 0.35:
            return {
                **schema,
                rng.choice(KEYWORDS): rng.choice(
                    (any_value(rng, 2), valid(rng, 1), [valid(rng, 1)], rng.choice(REFERENCES))
                ),
            }
        return {**schema, name: damaged(schema[name], rng)}
    if isinstance(schema, list) and schema and rng.random() < 0.8:
        at = rng.randrange(len(schema))
        return [*schema[:at], damaged(schema[at], rng), *schema[at + 1 :]]
    return rng.choice((any_value(rng, 2), valid(rng, 1), rng.choice(REFERENCES), rng.choice(TYPES)))
