"""SHA-256 of the weight files in our layout, kept in config.json, so that a flipped bit is named before it is used.

Public idea: ``write_sums(folder)`` at the end of a save, ``refuse_changed(sums, files)`` before weights are read. A folder without
checksums, such as that of a run in progress, is not checked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError, files_of
from unmask.writing import write_text

FIELD = "sha256"  # of config.json: file -> checksum
_PARTS = ("model", "vq")
_THREADS = 4


def write_sums(folder: Path) -> None:
    """Put the checksums of a folder's weight files into its config.json, or those of now in place of earlier ones."""
    path = folder / "config.json"
    files = [file for part in _PARTS for file in files_of(folder, part)]
    raw = read_json(path) | {FIELD: {file.name: sha256(file) for file in files}}
    write_text(path, json.dumps(raw, indent=1) + "\n")


def forget_sums(folder: Path) -> None:
    """Take the checksums out of a folder's config.json, before its weights are replaced."""
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        raw = read_json(path)
    except CheckpointError:
        return  # reading it reports what is wrong
    if raw.pop(FIELD, None) is not None:
        write_text(path, json.dumps(raw, indent=1) + "\n")


def refuse_changed(sums: Mapping[str, str], files: Iterable[Path]) -> None:
    """CheckpointError for a file that is not the one whose checksum was written; nothing where there are no checksums."""
    wanted = sorted(set(files)) if sums else []
    for file in wanted:
        if file.name not in sums:
            raise CheckpointError(
                f"{file.parent / 'config.json'} has no {FIELD} of {file.name}; use the config.json that was saved with the weights"
            )
    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        for file, found in zip(wanted, threads.map(sha256, wanted), strict=True):
            if found != sums[file.name]:
                wanted_sum = f"{FIELD} in config.json is {sums[file.name][:12]}…"
                raise CheckpointError(
                    f"{file} has changed since it was saved: its SHA-256 is {found[:12]}…, {wanted_sum}; copy or download it again"
                )


def sha256(path: Path) -> str:
    """Of a file, hexadecimal. Computed once for each state of the file."""
    about = os.stat(path)
    return _sha256(path, about.st_size, about.st_mtime_ns, about.st_ino)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed: int, number: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
