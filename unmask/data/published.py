"""What the readers of published prompt files share: one record after the other, and errors that name file and line.

Public idea: ``json_lines(path) -> [Entry]``; ``entry.get("prompt", str)`` gives a field of the wanted type or says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

T = TypeVar("T")
_NAMES: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


class FormatError(ValueError):
    """A file is not in its published format. The message says where, what came and what was wanted."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One JSON object of a file. ``place``: where it stands, for errors (``prompts.jsonl, line 3``) · ``text``: its line, if it has one."""

    value: dict[str, Any]
    place: str
    text: str = ""

    def get(self, name: str, kind: type[T]) -> T:
        """A field that must be there. A text must not be empty, and True is no number."""
        if name not in self.value:
            raise self.wrong(f"there is no {name!r}", f"wanted {_NAMES[kind]}, {name!r}")
        found = self.value[name]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.wrong(f"{name!r} is {short(found)}", f"wanted {_NAMES[kind]}")
        if isinstance(found, str) and not found.strip():
            raise self.wrong(f"{name!r} is empty", "wanted a text")
        return found

    def count(self, name: str) -> int:
        """A whole number from 1."""
        found = self.get(name, int)
        if found < 1:
            raise self.wrong(f"{name!r} is {found}", "wanted at least 1")
        return found

    def objects(self, name: str) -> list[Entry]:
        """A list of objects; an empty one where the field is not there."""
        found = self.get(name, list) if name in self.value else []
        return [entry_of(value, f"{self.place}, {name}[{i}]") for i, value in enumerate(found)]

    def wrong(self, what: str, wanted: str) -> FormatError:
        return FormatError(f"{self.place}: {what}; {wanted}")


def entry_of(value: Any, place: str) -> Entry:
    """FormatError where a value is no object."""
    if not isinstance(value, dict):
        raise FormatError(f"{place}: {short(value)} is no object; wanted {{…}} with named fields")
    return Entry(value=value, place=place)


def text_of(path: Path) -> str:
    """A file as text. OSError where it cannot be opened, FormatError where it is empty or no text in UTF-8."""
    try:
        found = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text in UTF-8 (byte {error.start}); is it the right file?") from error
    if not found.strip():
        raise FormatError(f"{path} is empty; was it downloaded whole?")
    return found


def json_lines(path: Path) -> list[Entry]:
    """One object a line; lines of nothing but spaces are passed over."""
    entries = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            entries.append(replace(entry_of(_parsed(line, place), place), text=line.strip()))
    return entries


def json_of(path: Path) -> Any:
    """One JSON value. A key that stands twice in an object is refused: the first one would be lost."""
    return _parsed(text_of(path), path.name)


def _parsed(text: str, place: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if doubled := first_twice([name for name, _ in pairs]):
            raise FormatError(f"{place}: the key {doubled!r} stands there twice; keys must be unique")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise FormatError(f"{place} is not JSON ({error.msg} at {at}); wanted the file as it was published") from error


def first_twice(names: Sequence[T]) -> T | None:
    """The first that stands there a second time."""
    seen: set[T] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def inside(name: str, place: str) -> str:
    """A path below a folder, as it was given. FormatError for one that leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise FormatError(f"{place}: the path {name!r} leads out of the folder; wanted one like animal/0001.jpg")
    return name


def file_stem(name: str, place: str) -> str:
    """An id that a file can be named after. FormatError for any other."""
    if name.startswith(".") or any(c in name for c in "/\\\0"):
        raise FormatError(f"{place}: no file can be named after the id {name!r}; wanted one without / and \\")
    return name


def require_files(folder: Path, names: Sequence[str]) -> None:
    """FormatError naming the first file that is not in ``folder``."""
    wanted = tuple(dict.fromkeys(names))
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(wanted)} pictures are not in {folder}, for example {missing[0]}; "
            "give the folder below which these paths lie"
        )


def short(value: Any) -> str:
    """A value as it stands in an error."""
    told = json.dumps(value, ensure_ascii=False, default=str)
    return told if len(told) <= 60 else told[:59] + "…"
