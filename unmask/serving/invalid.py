"""Validation errors in plain words. Public idea: ``invalid(errors, body) -> Invalid``: the message and the field that it is about.

The validator reports one error per branch of a union and names its own classes. A client knows neither: the path follows the keys and
indices of the request itself, and of a union only the branch is reported that the value comes closest to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

_PATTERNS = {r"^[^=]+=": "must have the form NAME=NUMBER, such as schedule.steps=8"}  # of the schema
_WANTED = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "bytes_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "iterable_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
}
_LIMITS: dict[str, Callable[[Any], str]] = {
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:.16g}",
    "multiple_of": lambda c: f"must be a multiple of {c['multiple_of']:g}",
    "string_too_short": lambda c: f"must have at least {_count(c['min_length'], 'character')}",
    "string_too_long": lambda c: f"must have at most {_count(c['max_length'], 'character')}",
    "too_short": lambda c: f"must have at least {_count(c['min_length'], 'item')}, got {c['actual_length']}",
    "too_long": lambda c: f"must have at most {_count(c['max_length'], 'item')}",
}
_SHOWN = 60  # characters of a rejected value


@dataclass(frozen=True, kw_only=True)
class Invalid:
    """``param``: dotted path of the field, None for the whole body."""

    message: str
    param: str | None


def invalid(errors: Sequence[Any], body: object = None) -> Invalid:
    """The first error, where a union counts as its closest branch only. ``body``: the validated value, which makes paths exact."""
    found: dict[Path, list[Any]] = {}
    for one in _closest([_located(e, body) for e in errors]):
        found.setdefault(one.path, []).append(one.error)
    if not found:
        return Invalid(message="the request is not valid", param=None)
    path, group = next(iter(found.items()))
    words = _words(group)
    if not path and all(e["type"] in _WANTED or e["type"] == "missing" for e in group):
        message = "the body must be a JSON object; send one, with the header content-type: application/json"
        return Invalid(message=message, param=None)
    more = f" ({_count(len(found) - 1, 'more error')})" if len(found) > 1 else ""
    place = ".".join(str(part)[:50] for part in path)
    return Invalid(message=f"{place}: {words}{more}" if place else words + more, param=place or None)


@dataclass(frozen=True, kw_only=True)
class _Located:
    """``path``: keys and indices of the request · ``branches``: the branches of unions on the way, each with the length of its path."""

    error: Any
    path: Path
    branches: tuple[tuple[int, str], ...]

    @property
    def of_kind(self) -> bool:
        """Whether the value is of another kind than the field, so that another branch of a union may fit it."""
        return self.error["type"] in _WANTED


def _located(error: Any, body: object) -> _Located:
    """An error with its path. Parts of its location that are no keys of the request are names of validators and of branches."""
    loc = [part for i, part in enumerate(error["loc"]) if not (i == 0 and part == "body")]
    if body is None:  # a flat form: the first part is the field
        path = tuple(part for i, part in enumerate(loc) if i == 0 or isinstance(part, int))
        return _Located(error=error, path=path, branches=())
    path, branches, value = [], [], body
    for i, part in enumerate(loc):
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(part)
            value = value[part]  # type: ignore[index]
        elif i == len(loc) - 1 and error["type"] == "missing":
            path.append(part)
        else:
            branches.append((len(path), str(part)))
    return _Located(error=error, path=tuple(path), branches=tuple(branches))


def _closest(errors: Sequence[_Located], level: int = 0) -> list[_Located]:
    """The errors without those of branches that the value does not come closest to. ``level``: number of unions that were resolved."""
    found: list[_Located] = []
    unions: dict[Path, dict[str, list[_Located]]] = {}
    for one in errors:
        if len(one.branches) <= level:
            found.append(one)
        else:
            depth, branch = one.branches[level]
            unions.setdefault(one.path[:depth], {}).setdefault(branch, []).append(one)
    for path, branches in unions.items():
        chosen = [_closest(group, level + 1) for group in branches.values()]
        ranks = [_distance(group, path) for group in chosen]
        found += [one for group, rank in zip(chosen, ranks, strict=True) if rank == min(ranks) for one in group]
    order = {id(one): i for i, one in enumerate(errors)}
    return sorted(found, key=lambda one: order[id(one)])


def _distance(errors: Sequence[_Located], union: Path) -> tuple[bool, bool, int]:
    """How far a value is from a branch: the branch is of another kind, everything in it is, and the number of wrong places."""
    at_top = any(one.path == union and one.of_kind for one in errors)
    return at_top, all(one.of_kind for one in errors), len({one.path for one in errors})


def _words(group: Sequence[Any]) -> str:
    """One sentence for the errors of one field, which has several if it is a union."""
    first = group[0]
    kind, about = first["type"], first.get("ctx") or {}
    if all(e["type"] in _WANTED for e in group):
        wanted = list(dict.fromkeys(_WANTED[e["type"]] for e in group))
        return f"must be {' or '.join(wanted)}, got {shown(first.get('input'))}"
    if kind == "missing":
        return "this field is required"
    if kind in _LIMITS:
        got = f", got {shown(first.get('input'))}" if isinstance(first.get("input"), int | float | str) else ""
        return _LIMITS[kind](about) + ("" if "string" in kind or kind.startswith("too") else got)
    if kind in ("literal_error", "enum"):
        return f"must be {str(about['expected']).replace(chr(39), '')}, got {shown(first.get('input'))}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(about["pattern"], f"does not have the required form, got {shown(first.get('input'))}")
    if kind in ("value_error", "assertion_error"):
        return str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ") or "is not allowed"
    if kind == "extra_forbidden":
        return "there is no such field; leave it out"
    if kind == "string_unicode":
        return "must be valid Unicode text"
    return f"is not allowed, got {shown(first.get('input'))}"


def shown(value: object) -> str:
    """A value in few words: short scalars themselves, others by kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bytes):
        return "bytes"
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)  # Infinity and NaN as they were sent
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_SHOWN else "a huge number"
    text = str(value)
    return json.dumps(text) if len(text) <= _SHOWN else f"a string of {len(text)} characters"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
