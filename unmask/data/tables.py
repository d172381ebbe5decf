"""Tables: Parquet files, and Hugging Face datasets from a folder or the hub, read through the package ``datasets``.

Public idea: ``TableRows``. The table is memory-mapped; pictures in it are read when they are opened. ``datasets`` is imported when a table
is opened: ``pip install 'unmask[data]'``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.rows import IMAGE, KEYS, PicturesIn, Row, key_in, tasks_in
from unmask.data.samples import Broken, DataError, ImageRef, PackageMissing
from unmask.json_types import Json


def need(package: str, what: str) -> Any:
    """An imported package of the extra ``data``. PackageMissing if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0]:
            raise
        raise PackageMissing(f"{what} needs the package {package!r}; pip install 'unmask[data]'") from error


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture in ``row`` of a table of one column: ``item`` of a list, or the value itself."""

    column: Any
    row: int
    item: int | None = None

    def read(self) -> bytes:
        found = self.column[self.row].column(0)[0]
        found = (found if self.item is None else found[self.item]).as_py()
        if isinstance(found, bytes):
            return found
        content = found.get("bytes") if found else None
        if content is None and found and found.get("path"):
            return Path(found["path"]).read_bytes()
        return content or b""


class TableRows:
    """The rows of a ``datasets.Dataset``. DataError if it is empty, or if its columns belong to no task.

    ``name``: for keys and errors · ``folder``: of pictures that a column names by path.
    """

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        if not len(dataset):
            raise DataError(f"{name} has no rows; give another file or split")
        self.name, self.find = name, PicturesIn(folder=folder)
        _refuse_columns(dataset.column_names, name)
        kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
        table = dataset.with_format("arrow")  # nothing is decoded
        # Selecting columns takes 1 ms, reading a row of a selection 0.03 ms: select once.
        self.pictures = {c: table.select_columns([c]) for c in dataset.column_names if "binary" in kinds[c]}
        light = [c for c in dataset.column_names if c not in self.pictures]
        self.light = table.select_columns(light) if light else None
        named = [c for c in light if c in KEYS]
        self.keys = table.select_columns(named) if named else None
        self.rows = len(dataset)

    def __len__(self) -> int:
        return self.rows

    def key(self, i: int) -> str:
        return key_in(self.keys[i].to_pylist()[0] if self.keys is not None else {}, f"{self.name}:{i}")

    def task(self, i: int) -> str | None:
        row = self.row(i)
        return row.task() if isinstance(row, Row) else None

    def row(self, i: int) -> Row | Broken:
        fields: Json = self.light[i].to_pylist()[0] if self.light is not None else {}
        fields |= {column: self._refs(column, i) for column in self.pictures}
        key, kept = (
            key_in(fields, f"{self.name}:{i}"),
            {name: value for name, value in fields.items() if value is not None},
        )
        return Row(key=key, place=f"{self.name}, row {i}", fields=kept, find=self.find)

    def _refs(self, column: str, i: int) -> ImageRef | list[ImageRef] | None:
        view = self.pictures[column]
        value = view[i].column(0)[0]
        if not value.is_valid:
            return None
        place = f"{self.name}, row {i}, {column}"
        if "list" not in str(value.type):
            return ImageRef(name=place, source=Cell(column=view, row=i))
        return [ImageRef(name=f"{place}[{n}]", source=Cell(column=view, row=i, item=n)) for n in range(len(value))]


def _refuse_columns(columns: Sequence[str], name: str) -> None:
    if "task" in columns or tasks_in(dict.fromkeys(columns, "")):
        return
    lacking = (
        "a text (a column 'text' or 'caption')" if any(c in columns for c in IMAGE) else "a picture (a column 'image')"
    )
    hint = (
        "download the pictures first, for example with img2dataset" if {"url", "URL"} & set(columns) else "rename one"
    )
    raise DataError(
        f"the columns of {name} ({', '.join(columns[:12])}) belong to no task: {lacking} is missing; {hint}"
    )


# -- opening ----------------------------------------------------------------------------------------------------------


def parquet(paths: Sequence[Path], folder: Path) -> TableRows:
    """Parquet files, one after the other. DataError if one is damaged or their columns differ."""
    datasets = need("datasets", "a Parquet file")
    name = paths[0].name if len(paths) == 1 else paths[0].parent.name
    if not sum(_rows_of(path) for path in paths):
        raise DataError(f"{name} has no rows; give another file")
    with _quiet(datasets):
        try:
            found = datasets.Dataset.from_parquet([str(p) for p in paths])
        except Exception as error:
            raise DataError(f"{name} cannot be read as Parquet ({_reason(error)}); write it again") from error
    return TableRows(found, name, folder)


def _rows_of(path: Path) -> int:
    """From the end of the file. DataError if it is damaged."""
    try:
        return need("pyarrow.parquet", "a Parquet file").read_metadata(path).num_rows
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(f"{path} cannot be read as Parquet ({_reason(error)}); write it again") from error


def saved(folder: Path, part: str) -> TableRows:
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote; of the latter the split ``part``."""
    datasets = need("datasets", "a Hugging Face dataset")
    with _quiet(datasets):
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise DataError(
                f"{folder} cannot be read as a Hugging Face dataset ({_reason(error)}); save it again"
            ) from error
    if isinstance(found, datasets.DatasetDict):
        if part not in found:
            raise DataError(f"{folder} has no split {part!r}; choose one of {', '.join(found)}")
        found = found[part]
    return TableRows(found, folder.name, folder)


def hub(name: str, part: str) -> TableRows:
    """A dataset of the hub, ``owner/name`` or ``owner/name:subset``, downloaded to the cache of ``datasets``."""
    datasets = need("datasets", "a dataset of the hub")
    owned, _, subset = name.partition(":")
    with _quiet(datasets):
        try:
            found = datasets.load_dataset(owned, subset or None, split=part)
        except Exception as error:
            raise DataError(
                f"the dataset {name} cannot be loaded ({_reason(error)}); check its name, subset, split, and the connection"
            ) from error
    return TableRows(found, owned, Path())


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:160] or type(cause).__name__


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """The progress bars of ``datasets`` off, and on again as they were."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
