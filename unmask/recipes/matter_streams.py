"""Streams of words and vectors, or of words and bins, for molecules and crystals (``recipes.unigenx``).

Public ideas: ``streamed(structures, bins)``; ``Matter`` is a source of batches; ``scaled`` and ``unscaled`` give numbers a common size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.data.matter import ELEMENTS, KINDS, MOLECULE, Structure, crystals, molecules, turned
from unmask.methods.unigenx import Stream

NUMBERS, END, PAD = "numbers", "end", "pad"
_LENGTH, _CELL = 3.0, 5.0  # units of the numbers of molecules and of cells, Angstrom
WORDS = (PAD, END, NUMBERS, "vector", *KINDS, *ELEMENTS)


def id_of(word: str) -> int:
    try:
        return WORDS.index(word)
    except ValueError:
        raise ValueError(f"{word!r} is no kind and no element; give a kind and elements: rocksalt Na Cl") from None


VECTOR = WORDS.index("vector")  # the id of a slot that is a vector


def scaled(one: Structure) -> np.ndarray:
    """Vectors as the network reads them, about -1..2."""
    if one.kind == MOLECULE:
        return one.vectors / _LENGTH
    return np.concatenate([one.vectors[:3] / _CELL, 2 * one.vectors[3:] - 1])


def unscaled(kind: str, elements: tuple[str, ...], vectors: np.ndarray) -> Structure:
    if kind == MOLECULE:
        return Structure(kind=kind, elements=elements, vectors=vectors * _LENGTH)
    whole = np.concatenate([vectors[:3] * _CELL, (vectors[3:] + 1) / 2])
    return Structure(kind=kind, elements=elements, vectors=whole)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Numbers in -2..2 as ``count`` equal bins, whose ids follow the words."""

    count: int

    def ids(self, x: Tensor) -> Tensor:
        return ((x.clamp(-1.999, 1.999) + 2) / 4 * self.count).long() + len(WORDS)

    def values(self, ids: Tensor) -> Tensor:
        return (ids - len(WORDS) + 0.5) / self.count * 4 - 2


def streamed(some: list[Structure], bins: int) -> Stream:
    """Rows with padding at their ends."""
    rows, vectors = [], [torch.from_numpy(scaled(one)).float() for one in some]
    for one, own in zip(some, vectors, strict=True):
        body = Bins(count=bins).ids(own).flatten().tolist() if bins else [VECTOR] * len(own)
        rows.append([*map(id_of, one.words), id_of(NUMBERS), *body, id_of(END)])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [id_of(PAD)] * (longest - len(row)) for row in rows])
    return Stream(ids=ids, is_vector=ids == VECTOR, vectors=torch.zeros(0, 3) if bins else torch.cat(vectors))


@dataclass(frozen=True, kw_only=True)
class Matter:
    """Batches, half molecules in new turns, half crystals."""

    seed: int
    bins: int = 0
    batch: int = 32

    def __call__(self, step: int) -> Stream:
        rng = np.random.default_rng((self.seed, step, 5))
        whole, cells = molecules(), crystals("train")
        some = [turned(whole[i], rng.uniform(0, 2 * np.pi)) for i in rng.integers(len(whole), size=self.batch // 2)]
        some += [cells[i] for i in rng.integers(len(cells), size=self.batch - len(some))]
        return streamed(some, self.bins)
