"""``python -m tests.thin FILE NAME ...`` keeps every n-th number of some arrays of a fixture (``unmask.evaluation.thinned``), in place.

For arrays that are so large that a part of their numbers, from every row and column, shows the same faults. Their tests thin what they
compute with ``Thinning.read(FILE)``. Then ``python -m tests.packed FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unmask.evaluation.thinned import Thinning

LEAST = 4000  # numbers that stay of an array


def thin(path: Path, names: list[str]) -> None:
    """ValueError if the file has thinned arrays already."""
    if Thinning.read(path).arrays:
        raise ValueError(f"{path} is thinned already; begin with the whole file")
    arrays = load_file(path)
    found = Thinning.of({name: arrays[name] for name in names}, LEAST)
    with safe_open(str(path), "pt") as opened:
        metadata = {**(opened.metadata() or {}), **found.metadata()}
    save_file({name: found.thin(name, one) for name, one in arrays.items()}, path, metadata=metadata)


if __name__ == "__main__":
    thin(Path(sys.argv[1]), sys.argv[2:])
