"""Fields of a request that are not in its schema. Public idea: ``sort_fields(data, policy) -> (kept, ignored)``.

Clients of OpenAI's API send many fields. One that has no meaning here is dropped. One that would change the answer and is not supported is
an error, unless its value changes nothing. One that resembles a known field is an error, because it is misspelt. Any other is dropped,
and named in the answer's warnings. ``null`` counts as absent.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from unmask.json_types import Json

_ALIKE = 0.75  # similarity of two names (difflib), from which an unknown one counts as a misspelling
_MOST_NAME = 50  # characters of a name in a message


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A field that would change the answer. ``reason``: why it is not supported · ``neutral``: values that ask for nothing."""

    reason: str
    neutral: tuple[object, ...] = ()
    hint: str = "leave it out"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """``known``: fields of the schema · ``harmless``: dropped silently · ``unsupported``: refused unless neutral."""

    known: Collection[str]
    harmless: Collection[str] = ()
    unsupported: Mapping[str, Unsupported] = field(default_factory=dict)


def sort_fields(data: Mapping[str, Any], policy: Policy) -> tuple[Json, tuple[str, ...]]:
    """The known fields that have a value, and the names of the fields that were ignored. ValidationError names a field that is refused."""
    kept: Json = {}
    ignored: list[str] = []
    for name, value in data.items():
        if value is None or name in policy.harmless:
            continue
        if name in policy.known:
            kept[name] = value
        elif name in policy.unsupported:
            _check_neutral(name, value, policy.unsupported[name])
        else:
            _check_spelling(name, policy.known)
            ignored.append(name[:_MOST_NAME])
    return kept, tuple(ignored)


def check_kinds(data: Mapping[str, Any], kinds: Mapping[str, frozenset[type]], *, as_texts: bool = False) -> None:
    """ValidationError for a boolean where a number belongs, the reverse, and a text for either: a validator that also reads forms takes one
    for the other.

    ``kinds``: the types that each field takes · ``as_texts``: texts may stand for numbers and booleans, as in a form.
    """
    for name, value in data.items():
        taken = kinds.get(name, frozenset())
        wanted = "a number" if float in taken else "an integer" if int in taken else "true or false"
        if isinstance(value, str) and not as_texts and str not in taken and taken & {bool, int, float}:
            raise refuse_field(name, value, f"must be {wanted}, got {json.dumps(value[:_MOST_NAME])}")
        if isinstance(value, bool) and bool not in taken and taken & {int, float}:
            raise refuse_field(name, value, f"must be {wanted}, got {str(value).lower()}")
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and bool in taken
            and not taken & {int, float}
        ):
            raise refuse_field(name, value, f"must be {wanted}, got {value}")


def refuse_text(value: object) -> object:
    """ValueError for a text or a boolean in place of a number."""
    if isinstance(value, str | bool):
        raise ValueError(f"must be a number, got {json.dumps(value)[:_MOST_NAME]}")
    return value


def ignored_warning(names: Collection[str]) -> tuple[str, ...]:
    """The warning for fields that were ignored; none without any."""
    shown = ", ".join(ascii(name)[1:-1] for name in list(names)[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"unknown fields were ignored: {shown}{more}",) if names else ()


def refuse_field(name: str, value: object, message: str) -> ValidationError:
    """A validation error at one field."""
    wrong = PydanticCustomError("value_error", "{message}", {"message": message})
    error = InitErrorDetails(type=wrong, loc=(name,), input=value)
    return ValidationError.from_exception_data("request", [error])


def _check_neutral(name: str, value: object, known: Unsupported) -> None:
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known.neutral):
        raise refuse_field(name, value, f"not supported: {known.reason}; {known.hint}")


def misspelt(name: str, known: Collection[str]) -> str:
    """The known field that an unknown one resembles; "" if there is none."""
    near = difflib.get_close_matches(name[:_MOST_NAME], known, 1, _ALIKE)
    return near[0] if near else ""


def _check_spelling(name: str, known: Collection[str]) -> None:
    if near := misspelt(name, known):
        raise refuse_field(name[:_MOST_NAME], None, f"there is no field {name[:_MOST_NAME]!r}; did you mean {near}?")
