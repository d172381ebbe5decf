"""Shared parts of the readers of published prompt files: records, and errors that name file and line.

Public idea: ``json_lines(path) -> [Entry]``; ``entry.get("prompt", str)`` returns a field of this type or raises FormatError.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from unmask.json_types import Json

T = TypeVar("T")
_NAMES: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


class FormatError(ValueError):
    """A file is not in its published format. The message names place, value and expectation."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One JSON object of a file. ``place``: location for errors (``prompts.jsonl, line 3``) · ``text``: its line in a JSON Lines file."""

    value: Json
    place: str
    text: str = ""

    def get(self, name: str, kind: type[T]) -> T:
        """A required field of type ``kind``. Strings must not be empty; bool is not an int."""
        if name not in self.value:
            raise self.wrong(f"the field {name!r} is missing", f"expected {_NAMES[kind]}, {name!r}")
        found = self.value[name]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.wrong(f"{name!r} is {short(found)}", f"expected {_NAMES[kind]}")
        if isinstance(found, str) and not found.strip():
            raise self.wrong(f"{name!r} is empty", "expected a text")
        return found

    def count(self, name: str) -> int:
        """A whole number from 1."""
        found = self.get(name, int)
        if found < 1:
            raise self.wrong(f"{name!r} is {found}", "expected at least 1")
        return found

    def objects(self, name: str) -> list[Entry]:
        """A list of objects; empty if the field is absent."""
        found = self.get(name, list) if name in self.value else []
        return [entry_of(value, f"{self.place}, {name}[{i}]") for i, value in enumerate(found)]

    def wrong(self, what: str, expected: str) -> FormatError:
        return FormatError(f"{self.place}: {what}; {expected}")


def entry_of(value: object, place: str) -> Entry:
    """Wrap a JSON object. FormatError for other values."""
    if not isinstance(value, dict):
        raise FormatError(f"{place}: {short(value)} is not an object; expected {{…}} with named fields")
    return Entry(value=value, place=place)


def text_of(path: Path) -> str:
    """Read a text file. OSError if it cannot be opened, FormatError if it is empty or not UTF-8."""
    try:
        found = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text in UTF-8 (byte {error.start}); is it the right file?") from error
    if not found.strip():
        raise FormatError(f"{path} is empty; is the download complete?")
    return found


def json_lines(path: Path) -> list[Entry]:
    """One object per line; blank lines are skipped."""
    entries = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            entries.append(replace(entry_of(_parsed(line, place), place), text=line.strip()))
    return entries


def json_of(path: Path) -> object:
    """Parse a JSON file. Duplicate keys of an object are an error, because the first value would be lost."""
    return _parsed(text_of(path), path.name)


def _parsed(text: str, place: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if doubled := first_twice([name for name, _ in pairs]):
            raise FormatError(f"{place}: duplicate key {doubled!r}; keys must be unique")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise FormatError(f"{place} is not valid JSON ({error.msg} at {at}); use the published file") from error


def first_twice(names: Sequence[T]) -> T | None:
    """The first repeated name, or None."""
    seen: set[T] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def inside(name: str, place: str) -> str:
    """A relative path, unchanged. FormatError if it leads out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise FormatError(f"{place}: the path {name!r} leads out of the folder; expected one like animal/0001.jpg")
    return name


def file_stem(name: str, place: str) -> str:
    """An id that is a safe file name, unchanged. FormatError for others."""
    if name.startswith(".") or any(c in name for c in "/\\\0"):
        raise FormatError(f"{place}: the id {name!r} is not a safe file name; expected one without / and \\")
    return name


def require_files(folder: Path, names: Sequence[str]) -> None:
    """FormatError if a file is not in ``folder``; it names the first one."""
    required = tuple(dict.fromkeys(names))
    missing = [name for name in required if not (folder / name).is_file()]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(required)} images are missing in {folder}, for example {missing[0]}; "
            "give the folder that contains these paths"
        )


def short(value: object) -> str:
    """A value, shortened for an error message."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:59] + "…"
