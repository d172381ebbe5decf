"""Image codes that are computed once and kept, in memory and in a file. Public idea: ``KeptCodes(encode, made_by)``.

The file is an SQLite database, so that several processes can use it and a killed one leaves it whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask.data.codes import MadeBy, Shards

_MOST = 20_000  # pictures in memory
_TABLE = "create table if not exists codes (key text primary key, rows integer, ids blob)"


@dataclass(frozen=True, kw_only=True)
class KeptCodes:
    """``encode``: pixels [3, H, W] -> codes [h, w] · ``made_by``: what the codes depend on; other ones share none · ``shards``: codes that
    ``unmask data encode`` has made, which are looked up first · ``path``: the file; None: memory only.
    """

    encode: Callable[[Tensor], Tensor]
    made_by: MadeBy
    shards: Shards | None = None
    path: Path | None = None
    known: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, picture: str, pixels: Callable[[], Tensor]) -> Tensor:
        """Codes [h, w] of the picture with this fingerprint. ``pixels`` is called only if they are not known."""
        if self.shards is not None and (made := self.shards.get(picture)) is not None:
            return made
        key = f"{picture} {self.made_by.weights} {self.made_by.side} {self.made_by.square}"
        if key not in self.known:
            found = self._read(key)
            if found is None:
                found = self.encode(pixels()).cpu().numpy().astype(np.int32)
                self._write(key, found)
            if len(self.known) >= _MOST:
                self.known.clear()
            self.known[key] = found
        return torch.from_numpy(self.known[key].astype(np.int64))

    def _read(self, key: str) -> np.ndarray | None:
        if self.path is None or not self.path.exists():
            return None
        with _open(self.path) as file:
            row = file.execute("select rows, ids from codes where key = ?", (key,)).fetchone()
        file.close()
        return None if row is None else np.frombuffer(row[1], np.int32).reshape(row[0], -1)

    def _write(self, key: str, codes: np.ndarray) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _open(self.path) as file:
            file.execute("insert or ignore into codes values (?, ?, ?)", (key, len(codes), codes.tobytes()))
        file.close()


def _open(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=60)
    file.execute(_TABLE)
    return file
