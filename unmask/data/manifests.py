"""Manifests: JSON Lines, a JSON list (as LLaVA's), and RefCOCO's refs with ``instances.json`` beside it.

Public idea: ``LineRows(path, find)`` indexes the lines and parses one when it is read; ``ListRows`` holds a parsed list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unmask.data.published import FormatError
from unmask.data.refcoco import Expression, read_refcoco
from unmask.data.row_errors import RowError, printable, shown
from unmask.data.rows import PicturesIn, Row, key_in
from unmask.data.samples import Broken, DataError
from unmask.json_types import Json

_CHUNK = 2**24
MOST_LINE = 64 * 2**20  # bytes of one line
MOST_LIST = 4 * 2**30  # bytes of a JSON list, which is read as a whole; twice to four times as much memory


class LineRows:
    """One JSON object per line; blank lines are skipped. Opening reads the file once for its line ends. DataError if it is empty."""

    def __init__(self, path: Path, find: PicturesIn) -> None:
        self.path, self.find = path, find
        self.starts, self.stops, self.numbers = _lines(path)
        if not len(self.starts):
            raise DataError(f"{path} is empty; write one JSON object per line")

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, i: int) -> str:
        try:
            return key_in(self._fields(i), self._otherwise(i))
        except RowError:
            return self._otherwise(i)

    def task(self, i: int) -> str | None:
        row = self.row(i)
        return row.task() if isinstance(row, Row) else None

    def row(self, i: int) -> Row | Broken:
        place = f"{self.path.name}, line {self.numbers[i] + 1}"
        try:
            fields = self._fields(i)
        except RowError as error:
            return Broken(key=self._otherwise(i), reason=printable(f"{place}: {error}"))
        return Row(key=key_in(fields, self._otherwise(i)), place=place, fields=fields, find=self.find)

    def _otherwise(self, i: int) -> str:
        return f"{self.path.name}:{self.numbers[i] + 1}"

    def _fields(self, i: int) -> Json:
        start, stop = int(self.starts[i]), int(self.stops[i])
        if stop - start > MOST_LINE:
            raise RowError(f"the line has {stop - start:,} bytes, more than {MOST_LINE:,}")
        with self.path.open("rb") as file:
            file.seek(start)
            line = file.read(stop - start)
        try:
            return _object(json.loads(line.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise RowError(f"not text in UTF-8 (byte {error.start})") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise RowError(f"not valid JSON ({error})") from error


class ListRows:
    """A list of objects that is in memory. ``name``: of its file."""

    def __init__(self, rows: Sequence[object], name: str, find: PicturesIn) -> None:
        self.rows, self.name, self.find = rows, name, find
        if not rows:
            raise DataError(f"{name} is an empty list; write one JSON object per row")

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, i: int) -> str:
        found = self.rows[i]
        return key_in(found, self._otherwise(i)) if isinstance(found, dict) else self._otherwise(i)

    def task(self, i: int) -> str | None:
        row = self.row(i)
        return row.task() if isinstance(row, Row) else None

    def row(self, i: int) -> Row | Broken:
        place = f"{self.name}[{i}]"
        try:
            fields = _object(self.rows[i])
        except RowError as error:
            return Broken(key=self._otherwise(i), reason=printable(f"{place}: {error}"))
        return Row(key=self.key(i), place=place, fields=fields, find=self.find)

    def _otherwise(self, i: int) -> str:
        return f"{self.name}:{i}"


def json_rows(path: Path, find: PicturesIn, part: str) -> LineRows | ListRows:
    """The rows of a .json file: a list, JSON Lines under this name, or RefCOCO's refs. DataError for anything else."""
    if (size := path.stat().st_size) > MOST_LIST:
        raise DataError(
            f"{path} has {size / 2**30:.1f} GiB and would be read as a whole; write JSON Lines: jq -c '.[]' {path.name} > rows.jsonl"
        )
    try:
        found = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and error.lineno > 1:
            return LineRows(path, find)
        raise DataError(f"{path} is not valid JSON ({error}); write a list of objects, or JSON Lines") from error
    if isinstance(found, dict) and "conversations" in found or isinstance(found, dict) and "image" in found:
        found = [found]
    if not isinstance(found, list):
        raise DataError(f"{path} holds {shown(found)}, not a list of objects; write a list, or JSON Lines")
    if is_refcoco(found):
        return ListRows(_refcoco(path, part), path.name, find)
    return ListRows(found, path.name, find)


def is_refcoco(rows: Sequence[object]) -> bool:
    """Whether a list has the form of RefCOCO's refs, whose boxes are in another file."""
    first = rows[0] if rows else None
    return (
        isinstance(first, dict)
        and {"sentences", "ann_id", "image_id"} <= set(first)
        and not {"bbox", "box"} & set(first)
    )


def _refcoco(path: Path, part: str) -> list[Json]:
    """One row per picture with all its expressions of the published split ``part``. DataError if it has none."""
    try:
        expressions = read_refcoco(path)
    except FormatError as error:
        raise DataError(str(error)) from error
    chosen: dict[str, list[Expression]] = {}
    for one in expressions:
        if one.split == part:
            chosen.setdefault(one.picture, []).append(one)
    if not chosen:
        splits = sorted({e.split for e in expressions})
        raise DataError(f"{path} has no split {part!r}; choose one of {', '.join(splits)}")
    return [
        {
            "id": picture,
            "task": "boxes",
            "image": picture,
            "box_units": "pixels",
            "boxes": [{"phrase": e.phrase, "box": list(e.box)} for e in group],
        }
        for picture, group in chosen.items()
    ]


def _object(value: object) -> Json:
    if not isinstance(value, dict):
        raise RowError(f"{shown(value)} is not an object")
    return value


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, stop and number of every line that is not blank, int64."""
    ends: list[np.ndarray] = []
    at, last = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            values = np.frombuffer(chunk, np.uint8)
            ends.append(np.flatnonzero(values == ord("\n")) + at)
            at, last = at + len(chunk), chunk[-1:]
    stops = np.concatenate(ends) if ends else np.empty(0, np.int64)
    if at and last != b"\n":
        stops = np.append(stops, at)
    starts = np.concatenate(([0], stops[:-1] + 1)) if len(stops) else stops
    numbers = np.arange(len(stops))
    kept = stops - starts > 2
    with path.open("rb") as file:
        for i in np.flatnonzero(~kept):  # at most two bytes: read them
            file.seek(int(starts[i]))
            kept[i] = bool(file.read(int(stops[i] - starts[i])).strip())
    return starts[kept], stops[kept], numbers[kept]
