"""Open a user's data, whatever holds it.

Public idea: ``open_data("pets/") -> Data`` with ``len(data)``, ``data[i] -> Sample | Broken`` and ``data.task(i)``. Opening lists files or
lines and reads no picture. docs/data.md describes the containers. ``usable(data, kind)`` yields samples of a kind with their pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from unmask.data.folders import FolderRows
from unmask.data.manifests import LineRows, json_rows
from unmask.data.regions import RowBoxes
from unmask.data.rows import MOST_TEXT, PicturesIn, Row
from unmask.data.samples import (
    Boxes,
    Broken,
    BrokenRows,
    Caption,
    Chat,
    Critique,
    DataError,
    EditPair,
    Interleaved,
    Sample,
    opened,
)
from unmask.data.tables import hub, parquet, saved
from unmask.data.tars import TarRows

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
_CONTAINERS = (
    "a folder of pictures with .txt or .json beside them, .jsonl, .json, .parquet, .tar, or owner/name on the hub"
)


class Rows(Protocol):
    """The rows of one container, in a fixed order."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str: ...

    def task(self, i: int) -> str | None: ...

    def row(self, i: int) -> Row | Broken: ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows whose key's hash, a number from 0 to 1, is at least ``start`` and below ``stop``.

    Rows that are added later do not move others to another split.
    """

    start: float = 0.0
    stop: float = 1.0

    def holds(self, key: str) -> bool:
        return self.start <= place_of(key) < self.stop


def holdout(share: float) -> tuple[Split, Split]:
    """(training, validation): the second has about ``share`` of the rows. ValueError unless it is at least 0 and below 1."""
    if not 0 <= share < 1:
        raise ValueError(f"the validation share is {share}; give a number from 0 to below 1, such as 0.05")
    return Split(start=share), Split(stop=share)


def place_of(key: str) -> float:
    """The hash of a key as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples by number. ``units``: of boxes that do not state theirs; None: from their values · ``most_text``: characters of all texts
    of a row · ``chosen``: the numbers of the rows that belong to it, int64; None: all.
    """

    name: str
    rows: Rows
    units: RowBoxes | None = None
    most_text: int = MOST_TEXT
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def __getitem__(self, i: int) -> Sample | Broken:
        """Sample ``i``, with pictures that are not opened yet (``samples.opened``), or why there is none. IndexError beyond the end."""
        row = self.rows.row(self._number(i))
        return row if isinstance(row, Broken) else row.sample(self.units, self.most_text)

    def key(self, i: int) -> str:
        """The key of row ``i``: its ``id``, or its place."""
        return self.rows.key(self._number(i))

    def task(self, i: int) -> str | None:
        """The task that the fields of row ``i`` belong to; None for none or several. Values are not checked: the row may be broken."""
        return self.rows.task(self._number(i))

    def subset(self, chosen: Sequence[int] | np.ndarray) -> Data:
        """The samples with these numbers, in this order."""
        numbers = np.asarray(chosen, np.int64)
        return replace(self, chosen=numbers if self.chosen is None else self.chosen[numbers])

    def split(self, part: Split) -> Data:
        """The samples of a split. Reads every key."""
        return self.subset([i for i in range(len(self)) if part.holds(self.key(i))])

    def _number(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, numbered from 0; asked for {i}")
        return i if self.chosen is None else int(self.chosen[i])


def open_data(
    place: str | Path,
    *,
    split: Split | None = None,
    pictures: Path | None = None,
    units: RowBoxes | None = None,
    most_text: int = MOST_TEXT,
    part: str = "train",
    download: bool = False,
) -> Data:
    """Data in a folder, a file, files that match a pattern, or on the hub (with ``download``). DataError for anything else.

    ``pictures``: the folder of pictures that a manifest names; None: the manifest's, or ``images`` in it · ``part``: the published split
    of a Hugging Face dataset or of RefCOCO. See ``Data`` for the rest.
    """
    found = Data(name=str(place), rows=_rows(str(place), pictures, part, download), units=units, most_text=most_text)
    if split is None:
        return found
    chosen = found.split(split)
    if not len(chosen):
        raise DataError(f"no row of {place} is in the split {split.start:g} to {split.stop:g}; choose a larger share")
    return chosen


def _rows(place: str, pictures: Path | None, part: str, download: bool) -> Rows:
    path = Path(place)
    if pictures is not None and not pictures.is_dir():
        raise DataError(f"there is no folder {pictures}; check the folder of the pictures")
    if path.is_dir():
        return _in_folder(path, pictures, part)
    if path.is_file():
        return _in_files([path], pictures, part)
    if any(c in place for c in "*?["):
        matches = sorted(p for p in path.parent.glob(path.name) if p.is_file())
        if not matches:
            raise DataError(f"no file matches {place}; check the pattern and the folder")
        return _in_files(matches, pictures, part)
    if _HUB_NAME.fullmatch(place) and not path.suffix:
        if not download:
            raise DataError(
                f"there is no folder {place}; to load it from the hub, allow it with --download (download=True)"
            )
        return hub(place, part)
    raise DataError(f"there is no file or folder {place}; data are {_CONTAINERS}")


def _in_folder(folder: Path, pictures: Path | None, part: str) -> Rows:
    """The kind of a folder, from the files in it. DataError if it has several kinds."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return saved(folder, part)
    found = {kind: sorted(p for p in folder.glob(f"*.{kind}") if p.is_file()) for kind in ("tar", "parquet", "jsonl")}
    lists = [p for p in sorted(folder.glob("*.json")) if _is_list(p)]
    kinds = {kind: paths for kind, paths in {**found, "json": lists}.items() if paths}
    if len(kinds) > 1 or any(len(kinds.get(kind, [])) > 1 for kind in ("jsonl", "json")):
        named = ", ".join(p.name for paths in kinds.values() for p in paths[:2])
        raise DataError(
            f"{folder} holds several sets of data ({named}); name the one to use, or several with their weights"
        )
    for paths in kinds.values():
        return _in_files(paths, pictures, part)
    return FolderRows(folder)


def _is_list(path: Path) -> bool:
    """Whether a JSON file is a manifest: a list, and no picture of the same name beside it."""
    if any(path.with_suffix(f".{ending}").exists() for ending in ("jpg", "jpeg", "png", "webp")):
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _in_files(paths: Sequence[Path], pictures: Path | None, part: str) -> Rows:
    endings = {p.suffix.lower() for p in paths}
    if len(endings) > 1:
        raise DataError(f"the files have several kinds ({', '.join(sorted(endings))}); give one kind at a time")
    (ending,) = endings
    folder = pictures or paths[0].parent
    if ending == ".tar":
        return TarRows(paths)
    if ending == ".parquet":
        return parquet(paths, folder)
    if len(paths) > 1:
        raise DataError(f"{len(paths)} {ending} files match; give one, or several with their weights")
    find = PicturesIn(folder=folder, spare=None if pictures else folder / "images")
    if ending in (".jsonl", ".ndjson"):
        return LineRows(paths[0], find)
    if ending == ".json":
        return json_rows(paths[0], find, part)
    compressed = " (decompress it first)" if ending in (".gz", ".zip", ".zst", ".tgz", ".xz", ".bz2") else ""
    raise DataError(f"{paths[0]} is not one of the known containers{compressed}; they are {_CONTAINERS}")


T = TypeVar("T", Caption, Chat, Boxes, EditPair, Critique, Interleaved)


def usable(
    data: str, kind: type[T], *, most: int | None = None, wrong: Callable[[T], str] = lambda sample: ""
) -> Iterator[tuple[T, tuple[Image.Image, ...]]]:
    """The samples of a kind among the first ``most`` rows of ``open_data(data)``, with their pictures. Other kinds are left out.

    ``wrong``: why a sample cannot be used, "" if it can. DataError where too many rows are broken or wrong.
    """
    rows = open_data(data)
    broken = BrokenRows(total=len(rows))
    for i in range(len(rows) if most is None else min(len(rows), most)):
        sample = rows[i]
        pictures = sample if isinstance(sample, Broken) else opened(sample)
        if isinstance(pictures, Broken):
            broken.add(pictures)
        elif isinstance(sample, kind):
            if reason := wrong(sample):
                broken.add(Broken(key=sample.key, reason=reason))
            else:
                yield sample, pictures
