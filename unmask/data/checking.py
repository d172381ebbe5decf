"""Read all of a data set once and say what is in it and what is wrong with it.

Public idea: ``check(data) -> Report``: samples by task, sizes of pictures, lengths of texts, duplicates, broken rows with reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from PIL import Image

from unmask.data.samples import TASKS, Boxes, Broken, Sample, pictures_of, task_of, texts_of
from unmask.json_types import Json
from unmask.tokens.pictures import draw_boxes, read_image
from unmask.tokens.sources import ImageError

_LISTED = 20  # broken rows and duplicates that a report names
_SHOWN = 8  # samples of a task on the sheet
_THUMB = 320  # pixels
_AHEAD = 64  # rows that are read at a time


class Samples(Protocol):
    """``opening.Data`` or ``order.Mixture``."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample | Broken: ...

    def key(self, i: int, /) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, middle and greatest value."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """None for no values."""
        ranked = sorted(values)
        return cls(least=ranked[0], median=ranked[len(ranked) // 2], most=ranked[-1]) if ranked else None

    def to_json(self) -> Json:
        return {"least": self.least, "median": self.median, "most": self.most}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sample with its pictures made small, for the sheet. ``lines``: its texts."""

    task: str
    pictures: tuple[Image.Image, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set holds.

    rows: rows that were read · tasks: good samples by task · sizes: width and height of pictures · square: share of square pictures ·
    texts: characters of a sample, by task · duplicate_keys, duplicate_pictures (the same bytes), duplicate_texts: what occurs more than
    once, with how often · broken: all broken rows.
    """

    rows: int
    tasks: dict[str, int]
    pictures: int
    sizes: dict[str, Spread]
    square: float
    texts: dict[str, Spread]
    duplicate_keys: dict[str, int]
    duplicate_pictures: dict[str, int]
    duplicate_texts: dict[str, int]
    broken: tuple[Broken, ...]
    examples: tuple[Example, ...] = field(default=(), repr=False)

    @property
    def share(self) -> float:
        """Broken rows as a share of all."""
        return len(self.broken) / max(1, self.rows)

    def to_json(self) -> Json:
        """Counts, spreads, and the first 20 duplicates and broken rows."""
        doubled = {"keys": self.duplicate_keys, "pictures": self.duplicate_pictures, "texts": self.duplicate_texts}
        return {
            "rows": self.rows,
            "tasks": self.tasks,
            "pictures": self.pictures,
            "sizes": {name: spread.to_json() for name, spread in self.sizes.items()},
            "square": round(self.square, 4),
            "texts": {task: spread.to_json() for task, spread in self.texts.items()},
            "duplicates": {n: {"count": len(d), "first": dict(islice(d.items(), _LISTED))} for n, d in doubled.items()},
            "broken": {
                "count": len(self.broken),
                "share": round(self.share, 6),
                "first": [{"key": b.key, "reason": b.reason} for b in self.broken[:_LISTED]],
            },
        }


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A row that was read: its sample or why it is broken; of every picture the name, fingerprint and size."""

    key: str
    sample: Sample | Broken
    pictures: tuple[tuple[str, str, tuple[int, int]], ...] = ()
    thumbs: tuple[Image.Image, ...] = ()


def check(
    data: Samples,
    *,
    limit: int | None = None,
    workers: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Read every row, or ``limit`` rows evenly spread, and decode all their pictures in ``workers`` threads."""
    count = len(data) if limit is None else min(limit, len(data))
    numbers = [i * len(data) // count for i in range(count)]
    tally = _Tally()
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(numbers)
        while group := list(islice(waiting, _AHEAD)):
            for read in pool.map(lambda i: _read(data, i), group):
                tally.add(read)
            on_progress(tally.rows, count)
    return tally.report()


def _read(data: Samples, i: int) -> _Read:
    sample, key = data[i], data.key(i)
    if isinstance(sample, Broken):
        return _Read(key=key, sample=sample)
    found, thumbs = [], []
    try:
        for ref in pictures_of(sample):
            content = ref.open()
            found.append((ref.name, ref.fingerprint(), content.size))
            content.thumbnail((_THUMB, _THUMB))
            thumbs.append(content)
    except ImageError as error:
        return _Read(key=key, sample=Broken(key=key, reason=f"{key}: {str(error).partition('; ')[0]}"))
    return _Read(key=key, sample=sample, pictures=tuple(found), thumbs=tuple(thumbs))


class _Tally:
    """Counts while rows are read."""

    def __init__(self) -> None:
        self.rows = 0
        self.keys: Counter[str] = Counter()
        self.prints: Counter[str] = Counter()
        self.names: dict[str, str] = {}
        self.texts: Counter[str] = Counter()
        self.lengths: dict[str, list[int]] = {}
        self.sizes: list[tuple[int, int]] = []
        self.broken: list[Broken] = []
        self.examples: list[Example] = []

    def add(self, read: _Read) -> None:
        self.rows += 1
        self.keys[read.key] += 1
        if isinstance(read.sample, Broken):
            self.broken.append(read.sample)
            return
        task, texts = task_of(read.sample), texts_of(read.sample)
        self.lengths.setdefault(task, []).append(sum(map(len, texts)))
        self.texts[f"{task}: {' / '.join(texts)}"[:200]] += 1
        for name, fingerprint, size in read.pictures:
            self.prints[fingerprint] += 1
            self.names.setdefault(fingerprint, name)
            self.sizes.append(size)
        if sum(e.task == task for e in self.examples) < _SHOWN:
            self.examples.append(_example(task, read, texts))

    def report(self) -> Report:
        wide, high = [w for w, _ in self.sizes], [h for _, h in self.sizes]
        sizes = {"width": Spread.of(wide), "height": Spread.of(high)}
        texts = {task: Spread.of(self.lengths[task]) for task in TASKS if task in self.lengths}
        return Report(
            rows=self.rows,
            tasks={task: len(self.lengths[task]) for task in TASKS if task in self.lengths},
            pictures=len(self.sizes),
            sizes={name: spread for name, spread in sizes.items() if spread},
            square=sum(w == h for w, h in self.sizes) / max(1, len(self.sizes)),
            texts={task: spread for task, spread in texts.items() if spread},
            duplicate_keys=dict(_doubled(self.keys)),
            duplicate_pictures={self.names[p]: n for p, n in _doubled(self.prints)},
            duplicate_texts=dict(_doubled(self.texts)),
            broken=tuple(self.broken),
            examples=tuple(sorted(self.examples, key=lambda e: list(TASKS).index(e.task))),
        )


def _doubled(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    return ((name, n) for name, n in counts.most_common() if n > 1)


def _example(task: str, read: _Read, texts: tuple[str, ...]) -> Example:
    pictures = read.thumbs
    if isinstance(read.sample, Boxes) and pictures:
        wide, high = pictures[0].size
        boxes = [(p, (b[0] * wide, b[1] * high, b[2] * wide, b[3] * high)) for p, b in read.sample.phrases[:8]]
        pictures = (read_image(draw_boxes(pictures[0], boxes)),)
    return Example(task=task, pictures=pictures, lines=(read.key, *texts[:4]))
