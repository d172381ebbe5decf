"""The order of samples in training, and mixtures of several data sets by weight.

Public idea: ``Order(sizes, weights, seed)(n) -> (set, index)`` for the n-th sample of a run: a pure function of (seed, n), so that it does
not depend on the number of processes or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unmask.data.opening import Data
from unmask.data.samples import Broken, DataError, Sample

_BLOCK = 1000  # samples in which every set has its share; more for more than 99 sets


@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set of a mixture. ``weight``: samples of it relative to the other sets; None: its number of rows."""

    name: str
    data: Data
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several data sets as one: row numbers run through all sets, ``order`` draws from them by weight.

    DataError if there is no set, for two sets of the same name, and for weights that are not positive.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise DataError("a mixture of no data; give at least one set")
        names = [part.name for part in self.parts]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"two data sets are called {doubled!r}; give each a name of its own")
        for part in self.parts:
            if part.weight is not None and not 0 < part.weight < float("inf"):
                raise DataError(f"the weight of {part.name} is {part.weight}; give a number above 0")

    def __len__(self) -> int:
        return sum(len(part.data) for part in self.parts)

    def __getitem__(self, i: int) -> Sample | Broken:
        part, index = self._at(i)
        return part.data[index]

    def key(self, i: int) -> str:
        """The key of row ``i``, which is unique within its set."""
        part, index = self._at(i)
        return part.data.key(index)

    def task(self, i: int) -> str | None:
        """As of ``Data.task``."""
        part, index = self._at(i)
        return part.data.task(index)

    def order(self, seed: int) -> Order:
        """The order of training with these sets and weights."""
        sizes = tuple(len(part.data) for part in self.parts)
        weights = tuple(len(p.data) if p.weight is None else p.weight for p in self.parts)
        return Order(sizes=sizes, weights=weights, seed=seed)

    def _at(self, i: int) -> tuple[Part, int]:
        left = i
        for part in self.parts:
            if 0 <= left < len(part.data):
                return part, left
            left -= len(part.data)
        raise IndexError(f"the mixture has {len(self)} rows, numbered from 0; asked for {i}")


@dataclass(frozen=True, kw_only=True)
class Order:
    """(set, index) of the n-th sample. Of every 1,000 samples each set has its share by weight, in random order; each set is shuffled anew
    in every epoch and repeats none of its samples before all were used.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    _kept: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights) or not self.sizes or min(self.sizes) < 1:
            raise DataError(f"cannot order sets of {self.sizes} rows with weights {self.weights}; give non-empty sets")

    def __call__(self, n: int) -> tuple[int, int]:
        """``n``: number of the sample in the run, from 0."""
        block, at = divmod(n, self._block())
        counts = self._counts()
        places = self._shuffled((-1, block), np.repeat(np.arange(len(counts)), counts))
        chosen = int(places[at])
        before = block * counts[chosen] + int((places[:at] == chosen).sum())
        epoch, index = divmod(before, self.sizes[chosen])
        return chosen, int(self._shuffled((chosen, epoch), np.arange(self.sizes[chosen]))[index])

    def _counts(self) -> list[int]:
        """Samples of each set in a block: rounded so that they sum to the block and no set has none."""
        block = self._block()
        exact = np.array(self.weights) / sum(self.weights) * block
        counts = np.maximum(np.floor(exact), 1).astype(int)
        while (missing := block - int(counts.sum())) != 0:
            lacking = (exact - counts) * np.sign(missing)
            counts[int(np.argmax(np.where((counts > 1) | (missing > 0), lacking, -np.inf)))] += int(np.sign(missing))
        return counts.tolist()

    def _block(self) -> int:
        return _BLOCK * (1 + len(self.sizes) // 100)

    def _shuffled(self, key: tuple[int, int], values: np.ndarray) -> np.ndarray:
        """The values in the random order of ``key``, kept for the next samples."""
        if key not in self._kept:
            for old in [k for k in self._kept if k[0] == key[0]]:
                del self._kept[old]
            stream = np.random.Generator(np.random.PCG64([self.seed % 2**63, key[0] + 1, key[1]]))
            self._kept[key] = stream.permutation(values)
        return self._kept[key]


def open_mixture(words: Sequence[str], opener: Callable[[str], Data]) -> Mixture:
    """``PATH`` or ``PATH=WEIGHT`` of every data set, opened with ``opener``. DataError for a weight that is not a number.

    A file whose name contains ``=`` is taken as it is if it exists.
    """
    parts = []
    for word in words:
        path, separator, text = word.rpartition("=")
        if not separator or Path(word).exists():
            parts.append(Part(name=word, data=opener(word)))
            continue
        try:
            weight = float(text)
        except ValueError:
            raise DataError(
                f"the weight in {word!r} is {text!r}, not a number; write PATH=WEIGHT, such as {path}=2"
            ) from None
        parts.append(Part(name=path, data=opener(path), weight=weight))
    return Mixture(parts=tuple(parts))
