"""How anything is measured: items in batches, every verdict on record, so that a measurement that was stopped goes on.

Public idea: ``measure(model, part, plan, record) -> Measured``. A *part* (drawing, grounding, …) makes its items from
the plan alone, finds out about them in batches, and sums up. A verdict counts for the same weights, settings
and words alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from PIL import Image
from torch import nn

from unmask.checkpoints.quantise import restored
from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.writing import append_line, write_whole

T = TypeVar("T")
ItemT = TypeVar("ItemT", bound="Item")
Row = Json
Figures = Json  # by name: figures, or groups of figures
OnProgress = Callable[[str, int, int], None]  # (name of the part, items done, items in all)
Pictures = Callable[[str, str], np.ndarray]  # (key of an item, name of a picture) -> uint8 [S, S, 3]
PictureLayout = Callable[[str], Path]  # key of an item -> where its one picture lies in a folder


def one_folder(key: str) -> Path:
    """``images/KEY.png``: a layout for scripts that read every file of a folder as a picture."""
    return Path("images") / f"{key}.png"


@dataclass(frozen=True, kw_only=True)
class EvalPlan:
    """What to measure: ``n`` items per part (prompts, pictures, questions, edits), divided among its kinds."""

    level: str = "grid"
    split: str = "test"
    n: int = 600
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise ValueError(f"n and batch must be at least 1, got {self.n} and {self.batch}")

    def each(self, kinds: int) -> int:
        """Items per kind."""
        return -(-self.n // kinds)


def in_turns(lists: Sequence[Sequence[T]]) -> list[T]:
    """The lists interleaved, so that an interrupted run has covered every kind. ValueError for unequal lengths."""
    return list(itertools.chain.from_iterable(zip(*lists, strict=True)))


class Item(Protocol):
    """One item to measure. ``key`` is unique in its part; ``text`` is the prompt."""

    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one item: a row for the record, and pictures by name."""

    row: Row
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class EvalPart(Protocol[ItemT]):
    """One table of the report, keyed ``name``. ``settings``: everything besides weights and items that affects a verdict."""

    @property
    def name(self) -> str: ...
    def items(self, plan: EvalPlan) -> Sequence[ItemT]: ...
    def settings(self, model: Model) -> object: ...
    def find(self, model: Model, items: Sequence[ItemT]) -> list[Finding]: ...
    def figures(self, plan: EvalPlan, items: Sequence[ItemT], rows: Sequence[Row], pictures: Pictures) -> Figures: ...


class Record:
    """Verdicts of past and present runs: ``verdicts.jsonl`` and PNG files in a folder, or in memory alone (None).

    ``layout``: pictures lie as others expect them, so that the folder holds one run alone. ValueError where it holds something else.
    """

    def __init__(self, folder: Path | None = None, layout: PictureLayout | None = None) -> None:
        self.folder, self._layout = folder, layout if folder else None
        self._rows: dict[tuple[str, str], Row] = {}
        self._pictures: dict[tuple[str, str, str], np.ndarray] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "verdicts.jsonl"
        if layout and not self._path.exists():
            if any(folder.iterdir()):
                raise ValueError(f"{folder} holds other files; choose an empty or new folder")
            self._path.touch()
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.exists() else [""]
        for line in lines:
            row = _parsed(line)
            if row:
                self._rows[row.pop("run"), row["key"]] = row
        if lines[-1]:  # a run was interrupted while writing a line
            append_line(self._path, "")

    def claim(self, run: str) -> None:
        """ValueError if this folder's layout holds one run only, and it belongs to another one."""
        if self._layout and any(other != run for other, _ in self._rows):
            raise ValueError(
                f"{self.folder} holds pictures of other weights, settings, seed or prompts; choose another folder"
            )

    def get(self, run: str, item: Item) -> Row | None:
        """The recorded verdict of a run on this item, if its picture still exists."""
        row = self._rows.get((run, item.key))
        if row is None or row["text"] != item.text:
            return None
        return row if not self._layout or self._file(run, item.key, "").exists() else None

    def add(self, run: str, item: Item, finding: Finding) -> None:
        """Writes pictures first, so that every recorded verdict has its pictures."""
        for name, picture in finding.pictures.items():
            if self.folder is None:
                self._pictures[run, item.key, name] = picture
            else:
                path = self._file(run, item.key, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda part, picture=picture: Image.fromarray(picture).save(part, "PNG"))
        row = {"key": item.key, "text": item.text, **finding.row}
        self._rows[run, item.key] = row
        if self.folder is not None:
            append_line(self._path, json.dumps({"run": run, **row}))

    def picture(self, run: str, key: str, name: str) -> np.ndarray:
        """A picture that was added, uint8 [S, S, 3]. KeyError or FileNotFoundError if there is none."""
        if self.folder is None:
            return self._pictures[run, key, name]
        with Image.open(self._file(run, key, name)) as image:
            return np.asarray(image.convert("RGB"))

    def _file(self, run: str, key: str, name: str) -> Path:
        assert self.folder is not None
        own = Path("pictures") / run / f"{key}-{name}.png"
        return self.folder / (self._layout(key) if self._layout else own)


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line) if line else None
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and {"run", "key", "text"} <= row.keys() else None


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[ItemT]):
    """The measurement of one part: figures, items, verdicts, and access to pictures."""

    name: str
    figures: Figures
    items: Sequence[ItemT]
    rows: Sequence[Row]
    pictures: Pictures


def measure(
    model: Model, part: EvalPart[ItemT], plan: EvalPlan, record: Record, progress: OnProgress = lambda *_: None
) -> Measured[ItemT]:
    """Measure all items that are not recorded yet, then compute the figures."""
    items = part.items(plan)
    run = fingerprint(model, part.name, plan.level, plan.split, plan.seed, part.settings(model))
    record.claim(run)
    missing = [item for item in items if record.get(run, item) is None]
    progress(part.name, len(items) - len(missing), len(items))
    for start in range(0, len(missing), plan.batch):
        some = missing[start : start + plan.batch]
        for item, finding in zip(some, part.find(model, some), strict=True):
            record.add(run, item, finding)
        progress(part.name, len(items) - len(missing) + start + len(some), len(items))
    rows = [row for item in items if (row := record.get(run, item))]

    def pictures(key: str, name: str) -> np.ndarray:
        return record.picture(run, key, name)

    figures = part.figures(plan, items, rows, pictures)
    return Measured(name=part.name, figures=figures, items=items, rows=rows, pictures=pictures)


def fingerprint(model: Model, *settings: object) -> str:
    """Twelve hex digits that identify the weights and everything else that affects a verdict."""
    digest = hashlib.blake2b(json.dumps(settings, default=str, sort_keys=True).encode(), digest_size=6)
    for module in (model.parts.net, model.parts.vq):
        if not any(weight.is_meta for weight in module.parameters()):  # a model that only reads has no image tokenizer
            digest.update(weights_digest(module))
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> bytes:
    """A digest of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(restored(tensor.detach()).cpu().float().numpy().tobytes())
    return digest.digest()
