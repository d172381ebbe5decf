"""Measured arrays and their weights are stored packed: ``tests/golden/packed/X.packed`` holds ``tests/golden/X``, which git ignores.

``make`` and pytest restore them before anything else; ``python -m tests.packed`` does it by hand. ``python -m tests.packed FOLDER`` packs
the safetensors files of a folder under tests/golden; a new folder must also stand in ``.gitignore``.

A packed file is xz of the file's bytes by place: every first byte of four, then every second, third and fourth. The exponents of float32
stand together there and compress; mantissas do not. ``SHA256SUMS`` says what each file must restore to, in the format of ``sha256sum``.
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.writing import write_text, write_whole

if TYPE_CHECKING:
    import pytest

GOLDEN = Path(__file__).parent / "golden"
_WIDTH = 4  # bytes of a float32
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]


def pack(data: bytes) -> bytes:
    whole = len(data) // _WIDTH * _WIDTH
    planes = np.frombuffer(data[:whole], np.uint8).reshape(-1, _WIDTH).T.tobytes()
    return lzma.compress(planes + data[whole:], filters=_FILTERS)


def unpack(packed: bytes) -> bytes:
    data = lzma.decompress(packed)
    whole = len(data) // _WIDTH * _WIDTH
    return np.frombuffer(data[:whole], np.uint8).reshape(_WIDTH, -1).T.tobytes() + data[whole:]


def given_or_own(config: pytest.Config, name: str) -> Path:
    """A family's fixture: of ``--golden DIR`` (DIR/NAME, or NAME beside DIR) where it is there, else ours."""
    given = Path(str(config.getoption("--golden")))
    return next((f for f in (given / name, given.parent / name) if (f / "config.json").exists()), GOLDEN / name)


def packed_path(name: str, golden: Path = GOLDEN) -> Path:
    """Where the packed form of ``golden / name`` is."""
    return golden / "packed" / f"{name}.packed"


def sums(path: Path) -> dict[str, str]:
    """Name -> SHA-256; {} where the file does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def restore(golden: Path = GOLDEN) -> list[str]:
    """Restore missing files, and those whose packed form has changed since; return their names. Other files stay: they may be a twin's.

    Each file appears whole, so several processes may do this at a time. ValueError if a packed file is damaged.
    """
    recorded, done = golden / "packed" / "SHA256SUMS", golden / "packed" / ".restored"
    wanted, before = sums(recorded), sums(done)
    names = [n for n, digest in wanted.items() if not (golden / n).exists() or before.get(n, digest) != digest]
    for name in names:
        data = unpack(packed_path(name, golden).read_bytes())
        if hashlib.sha256(data).hexdigest() != wanted[name]:
            raise ValueError(
                f"{packed_path(name, golden)} does not restore to its SHA-256 in {recorded}; check it out again"
            )
        (golden / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(golden / name, lambda part, data=data: part.write_bytes(data))
    if before != wanted:
        write_text(done, recorded.read_text())
    return names


def store(folder: Path, golden: Path = GOLDEN) -> list[str]:
    """Pack every safetensors file of a folder under ``golden`` and record its SHA-256; return the names."""
    known = sums(golden / "packed" / "SHA256SUMS")
    made = {path.relative_to(golden).as_posix(): path.read_bytes() for path in folder.resolve().rglob("*.safetensors")}
    for name, data in made.items():
        packed_path(name, golden).parent.mkdir(parents=True, exist_ok=True)
        packed_path(name, golden).write_bytes(pack(data))
        known[name] = hashlib.sha256(data).hexdigest()
    write_text(golden / "packed" / "SHA256SUMS", "".join(f"{known[name]}  {name}\n" for name in sorted(known)))
    return sorted(made)


if __name__ == "__main__":
    for changed in [store(Path(given)) for given in sys.argv[1:]] or [restore()]:
        print(*changed, sep="\n")
