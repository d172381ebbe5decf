"""Rasterised sprites in one file that all worker processes share.

Public idea: ``SpriteFile.create(folder)``, the argument ``sized`` of ``render``. Resizing a sprite takes longer than pasting it, and at
256 px there are 52,000 of them (2.7 GB): too many for each process to keep. The file is sparse, and whoever needs a sprite first writes it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from unmask.data.world.render import planes, rasterise
from unmask.data.world.vocabulary import CLASS_NAMES, COLOUR_NAMES
from unmask.writing import write_whole

_BYTES = 6  # per pixel: RGB, and alpha three times
_NUMBERS = {
    (name, colour): number
    for number, (name, colour) in enumerate((n, c) for n in CLASS_NAMES for c in ("", *COLOUR_NAMES))
}


def fresh(name: str, colour: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A sprite that nobody keeps, as ``render.Sized``."""
    return planes(rasterise(name, colour, side))


@dataclass(frozen=True, kw_only=True)
class SpriteFile:
    """Sprites of every class and colour at ``least`` to ``most`` pixels per side. Other sizes are rasterised every time.

    The file begins with one byte per sprite, 1 where the sprite is there. Two processes may write a sprite at the same time: they write
    the same bytes, and the first byte last.
    """

    path: Path
    least: int
    most: int

    @classmethod
    def create(cls, folder: Path, *, least: int = 51, most: int = 128) -> SpriteFile | None:
        """An empty file in ``folder``; None where the disk has less than twice the space that it may take."""
        made = cls(path=folder / "sprites.bin", least=least, most=most)
        if shutil.disk_usage(folder).free < 2 * made.bytes:
            return None
        write_whole(made.path, lambda part: _empty(part, made.bytes))
        return made

    @property
    def bytes(self) -> int:
        """The size of the file when every sprite is there."""
        return _offsets(self.least, self.most)[-1]

    def __call__(self, name: str, colour: str, side: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``render.Sized``."""
        if not self.least <= side <= self.most:
            return fresh(name, colour, side)
        whole = _opened(self.path)
        number, row = _NUMBERS[name, colour], side - self.least
        flag = row * len(_NUMBERS) + number
        start = _offsets(self.least, self.most)[row] + number * _BYTES * side * side
        rgb, alpha = whole[start : start + _BYTES * side * side].reshape(2, side, 3 * side)
        if not whole[flag]:
            rgb[:], alpha[:] = fresh(name, colour, side)
            whole[flag] = 1
        return rgb, alpha


def _empty(part: Path, size: int) -> None:
    with part.open("wb") as file:
        file.truncate(size)


@lru_cache(maxsize=4)
def _offsets(least: int, most: int) -> tuple[int, ...]:
    """Where the sprites of each size begin, and the size of the file."""
    found = [(most - least + 1) * len(_NUMBERS)]
    for side in range(least, most + 1):
        found.append(found[-1] + len(_NUMBERS) * _BYTES * side * side)
    return tuple(found)


@lru_cache(maxsize=4)
def _opened(path: Path) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
