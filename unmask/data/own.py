"""Training batches from a user's own data. Public idea: ``OwnData``, a source of {task: batch}.

A ``Format`` turns samples of one task into rows, with the functions that build the model's requests (``tasks.examples``); a caption, for
example, trains image generation and description. Batch number ``step`` is a pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from unmask.data.opening import Data
from unmask.data.order import Order
from unmask.data.samples import Broken, BrokenRows, DataError, Sample
from unmask.sequence import Batch, Sequence, collate

_MOST_TRIES = 100  # rows that replace a broken one before the run gives up
_REPLACED = 2**40  # sample numbers of replacements start here, far beyond those of any run


@dataclass(frozen=True, kw_only=True)
class Format:
    """Samples of ``task`` as training rows called ``name``. ``row(sample, rng)``: a sequence with its true ids, or why there is none.

    ``share``: rows per batch relative to the other formats · ``suits(sample)``: whether a sample is used at all; None: all of the task.
    """

    name: str
    task: str
    row: Callable[[Sample, Random], Sequence | Broken]
    share: float = 1.0
    suits: Callable[[Sample], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """{format: batch} of every format that the data has samples for. Each format shuffles its samples anew in every epoch.

    ``batch``: rows of a step, divided among the formats by their shares, at least one each · ``most_broken``: largest share of broken
    rows. A broken row is replaced by another of the same task and counted in ``broken``; DataError if there are too many, or if the
    data has no sample for any format.
    """

    data: Data
    formats: tuple[Format, ...]
    seed: int
    batch: int = 16
    most_broken: float = 0.05
    broken: BrokenRows = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"the batch must have at least 1 row, got {self.batch}; give a number such as 16")
        object.__setattr__(self, "broken", BrokenRows(total=len(self.data), most=self.most_broken))

    @cached_property
    def used(self) -> tuple[Format, ...]:
        """The formats that the data has samples for."""
        found = tuple(f for f in self.formats if self._rows.get(f.name))
        if not found:
            has = ", ".join(sorted(self._by_task)) or "no usable rows"
            wants = ", ".join(dict.fromkeys(f.task for f in self.formats)) or "nothing"
            raise DataError(f"{self.data.name} has {has}, but this model trains {wants}; check the data")
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Rows per batch of every used format."""
        whole = sum(f.share for f in self.used)
        return {f.name: max(1, round(self.batch * f.share / whole)) for f in self.used}

    def __call__(self, step: int) -> dict[str, Batch]:
        return {f.name: self._batch(f, step * self.sizes[f.name], self.sizes[f.name]) for f in self.used}

    def every(self, most: int = 64) -> dict[str, Batch]:
        """The first ``most`` samples of every format in the order of the data, for validation. Broken rows are left out."""
        found = {}
        for f in self.used:
            rows = [self._row(f, i, Random(f"every/{f.name}/{i}")) for i in self._rows[f.name][:most]]
            if kept := [row for row in rows if isinstance(row, Sequence)]:
                found[f.name] = collate(kept, range(len(kept)))
        return found

    def _batch(self, format: Format, first: int, size: int) -> Batch:
        return collate([self._sample(format, first + i) for i in range(size)], range(size))

    def _sample(self, format: Format, number: int) -> Sequence:
        """Sample ``number`` of a run, or the first usable one of its replacements."""
        for again in range(_MOST_TRIES):
            place = number if again == 0 else _REPLACED + number * _MOST_TRIES + again
            index = self._rows[format.name][self._orders[format.name](place)[1]]
            row = self._row(format, index, Random(f"own/{self.seed}/{format.name}/{number}"))
            if isinstance(row, Sequence):
                return row
        self.broken.refuse()
        raise AssertionError("refuse() raises")

    def _row(self, format: Format, index: int, rng: Random) -> Sequence | Broken:
        sample = self.data[index]
        row = sample if isinstance(sample, Broken) else format.row(sample, rng)
        if isinstance(row, Broken):
            self.broken.add(row)
        return row

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """The numbers of the rows of every format."""
        return {f.name: [i for i in self._by_task.get(f.task, ()) if self._suits(f, i)] for f in self.formats}

    def _suits(self, format: Format, index: int) -> bool:
        """Broken rows count as suitable here: they are replaced when they come up."""
        sample = self.data[index] if format.suits else None
        return format.suits is None or isinstance(sample, Broken) or (sample is not None and format.suits(sample))

    @cached_property
    def _by_task(self) -> dict[str, list[int]]:
        """The numbers of the rows of every task. A row without a task counts as broken now."""
        found: dict[str, list[int]] = {}
        for i in range(len(self.data)):
            task = self.data.task(i)
            if task is not None:
                found.setdefault(task, []).append(i)
            elif isinstance(row := self.data[i], Broken):
                self.broken.add(row)
        return found

    @cached_property
    def _orders(self) -> dict[str, Order]:
        return {
            f.name: Order(sizes=(len(self._rows[f.name]),), weights=(1.0,), seed=self.seed + place)
            for place, f in enumerate(self.used)
        }
