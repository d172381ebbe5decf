"""A folder of pictures with a ``.txt`` or ``.json`` beside each.

Public idea: ``FolderRows(folder)``. Files in folders inside it belong to it; the key of a row is its path without the ending.
"""

from __future__ import annotations

import os
from pathlib import Path

from unmask.data.beside import FIELDS, PICTURES, fields_of, known_ending, task_in
from unmask.data.row_errors import RowError, printable
from unmask.data.rows import PicturesIn, Row
from unmask.data.samples import Broken, ByteSource, DataError, FileBytes

_NOT_ROWS = (
    "codes.json",
    "features.json",
    "dataset_info.json",
    "dataset_infos.json",
    "config.json",
)  # beside data, no data
_NO_CAPTIONS = ("readme", "license", "licence", "notice", "requirements")  # texts that belong to no picture


class FolderRows:
    """The rows of a folder, sorted by key. Lists the files; opens none. DataError if there is no picture, or none has a text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = _grouped(folder)
        self.keys = sorted(self.members)
        groups = list(self.members.values())
        with_picture = [g for g in groups if any(e.rpartition(".")[2] in PICTURES for e in g)]
        if not with_picture and not any("json" in g for g in groups):
            what = "has texts but no picture" if groups else "holds no pictures"
            raise DataError(f"{folder} {what}; put pictures with a .txt or .json of the same name in it")
        if all(e.rpartition(".")[2] in PICTURES for g in groups for e in g):
            raise DataError(
                f"none of the {len(with_picture):,} pictures in {folder} has a text; "
                f"write it in a .txt of the same name, such as {self.keys[0]}.txt"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        return printable(self.keys[i])

    def task(self, i: int) -> str | None:
        return task_in(self._sources(i), self.keys[i])

    def row(self, i: int) -> Row | Broken:
        name = self.keys[i]
        try:
            fields = fields_of(self._sources(i), os.path.basename(name))
        except RowError as error:
            return Broken(key=self.key(i), reason=printable(f"{name}: {error}"))
        here = (self.folder / name).parent
        return Row(key=self.key(i), place=name, fields=fields, find=PicturesIn(folder=here, spare=self.folder))

    def _sources(self, i: int) -> dict[str, ByteSource]:
        name = self.keys[i]
        return {e: FileBytes(path=self.folder / file) for e, file in self.members[name].items()}


def _grouped(folder: Path) -> dict[str, dict[str, str]]:
    """{path without ending: {ending: path}} of all pictures, texts and JSON files; hidden files and folders are left out."""
    found: dict[str, dict[str, str]] = {}
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        prefix = os.path.relpath(place, folder)
        for file in sorted(files):
            stem, _, last = file.rpartition(".")
            ending = last.lower()
            if not stem or file.startswith(".") or file in _NOT_ROWS or not known_ending(ending):
                continue
            if ending not in PICTURES and stem.lower().startswith(_NO_CAPTIONS):
                continue
            name, dot, field = stem.rpartition(".")
            if dot and name and field in FIELDS:
                stem, ending = name, f"{field}.{ending}"
            path = file if prefix == "." else f"{Path(prefix).as_posix()}/{file}"
            key = stem if prefix == "." else f"{Path(prefix).as_posix()}/{stem}"
            found.setdefault(key, {}).setdefault(ending, path)
    return found
