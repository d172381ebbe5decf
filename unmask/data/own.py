"""Training batches from a user's own data. Public idea: ``OwnData``, a source of {task: batch}.

A ``Format`` turns samples of one task into rows, with the functions that build the model's requests (``tasks.examples``); a caption, for
example, trains image generation and description. Batch number ``step`` is a pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from unmask.data.order import Mixture, Order
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
    """{format: batch} of every format that the data has samples for. Each format draws from the sets of the mixture by their weights, and
    shuffles the samples of each set anew in every epoch.

    ``batch``: rows of a step, divided among the formats by their shares, at least one each · ``most_broken``: largest share of broken
    rows. A broken row is replaced by another of the same task and counted in ``broken``; DataError if there are too many, or if the
    data has no sample for any format.
    """

    data: Mixture
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
            has = ", ".join(sorted({task for task in self._tasks if task})) or "no usable rows"
            wants = ", ".join(dict.fromkeys(f.task for f in self.formats)) or "nothing"
            raise DataError(f"{self._name} has {has}, but this model trains {wants}; check the data")
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Rows per batch of every used format."""
        whole = sum(f.share for f in self.used)
        return {f.name: max(1, round(self.batch * f.share / whole)) for f in self.used}

    def __call__(self, step: int) -> dict[str, Batch]:
        return {f.name: self._batch(f, step * self.sizes[f.name], self.sizes[f.name]) for f in self.used}

    def rows(self, name: str, first: int, size: int) -> Batch:
        """Rows ``first`` to ``first + size - 1`` of a run, of the format ``name`` alone."""
        return self._batch(next(f for f in self.used if f.name == name), first, size)

    def weight(self, name: str) -> float:
        """The weights of the sets that have samples for the format ``name``; of a set without a weight, its number of such samples."""
        return sum(weight for weight, _ in self._sets.get(name, ()))

    def every(self, most: int = 64) -> dict[str, Batch]:
        """The first ``most`` samples of every format in the order of the data, for validation. Broken rows are left out."""
        found = {}
        for f in self.used:
            rows = [self._row(f, i, Random(f"every/{f.name}/{i}")) for i in sum(self._rows[f.name], [])[:most]]
            if kept := [row for row in rows if isinstance(row, Sequence)]:
                found[f.name] = collate(kept, range(len(kept)))
        return found

    def _batch(self, format: Format, first: int, size: int) -> Batch:
        return collate([self._sample(format, first + i) for i in range(size)], range(size))

    def _sample(self, format: Format, number: int) -> Sequence:
        """Sample ``number`` of a run, or the first usable one of its replacements."""
        for again in range(_MOST_TRIES):
            place = number if again == 0 else _REPLACED + number * _MOST_TRIES + again
            part, index = self._orders[format.name](place)
            index = self._rows[format.name][part][index]
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

    @property
    def _name(self) -> str:
        return ", ".join(part.name for part in self.data.parts)

    @cached_property
    def _rows(self) -> dict[str, list[list[int]]]:
        """The numbers of the rows of every format, by set; sets without any are left out."""
        return {name: [rows for _, rows in sets] for name, sets in self._sets.items()}

    @cached_property
    def _sets(self) -> dict[str, list[tuple[float, list[int]]]]:
        """(weight, rows) of every set that has rows of a format, by format. A set without a weight counts by its number of rows."""
        found: dict[str, list[tuple[float, list[int]]]] = {}
        first = 0
        for part in self.data.parts:
            numbers = range(first, first + len(part.data))
            first = numbers.stop
            for f in self.formats:
                if rows := [i for i in numbers if self._tasks[i] == f.task and self._suits(f, i)]:
                    found.setdefault(f.name, []).append((len(rows) if part.weight is None else part.weight, rows))
        return found

    def _suits(self, format: Format, index: int) -> bool:
        """Broken rows count as suitable here: they are replaced when they come up."""
        sample = self.data[index] if format.suits else None
        return format.suits is None or isinstance(sample, Broken) or (sample is not None and format.suits(sample))

    @cached_property
    def _tasks(self) -> list[str | None]:
        """The task of every row. A row without a task counts as broken now."""
        found = [self.data.task(i) for i in range(len(self.data))]
        for i in (i for i, task in enumerate(found) if task is None):
            if isinstance(row := self.data[i], Broken):
                self.broken.add(row)
        return found

    @cached_property
    def _orders(self) -> dict[str, Order]:
        sets = {f.name: self._sets[f.name] for f in self.used}
        return {
            name: Order(
                sizes=tuple(len(rows) for _, rows in found),
                weights=tuple(weight for weight, _ in found),
                seed=self.seed + place,
            )
            for place, (name, found) in enumerate(sets.items())
        }
