"""A folder as a few files of limited size, and back.

Public idea: ``pack(folder, out, "small.tar")`` writes small.tar.0, small.tar.1 …, parts of one tar, and ``unpack`` reads them; so does
``cat small.tar.* | tar x``. The first member lists the others with their digests, so shards of two runs are not mixed up.

    python bench/gpu/pack.py OUT FOLDER      unpack what a run has left in OUT
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

SHARD = 15 * 2**20  # bytes of a shard: less than 16 MiB
SHARDS = 4
MOST = SHARDS * SHARD - 2**20  # of the files; the tar's own records and the other results need some room in 60 MiB
CONTENTS = "contents.json"


def pack(folder: Path, out: Path, name: str, staging: Path, *, shard: int = SHARD, most: int = MOST) -> list[str]:
    """Write a folder's files to ``out`` as ``name.0``, ``name.1`` …, the newest first and at most ``most`` bytes of them; returns what was
    left out. Files that vanish meanwhile are left out, too. ``staging``: a folder for shards that are not complete.
    """
    found = sorted((p for p in folder.rglob("*") if p.is_file()), key=_age)
    taken, left_out, size = dict[str, bytes](), list[str](), 0
    for path in found:
        inside = path.relative_to(folder).as_posix()
        try:
            if path.name.endswith((".part", ".lock")) or size + path.stat().st_size > most:
                left_out.append(inside)
                continue
            content = path.read_bytes()
        except FileNotFoundError:
            left_out.append(inside)
            continue
        taken[inside] = content
        size += len(content)
    whole = _tar(taken)
    pieces = [whole[i : i + shard] for i in range(0, len(whole), shard)]
    for number, piece in enumerate(pieces):
        (staging / f"{name}.{number}").write_bytes(piece)
    for number in range(len(pieces)):  # all are written before the first takes its place
        _moved(staging / f"{name}.{number}", out / f"{name}.{number}")
    for path in shards(out, name)[len(pieces) :]:
        path.unlink()
    return left_out


def unpack(out: Path, folder: Path, name: str) -> int:
    """Write what ``pack`` has packed into ``folder``; returns how many files. ValueError for shards that do not belong together."""
    pieces = shards(out, name)
    if not pieces:
        return 0
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        listed = json.loads(files.pop(CONTENTS))
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ValueError(f"the shards {name}.* in {out} are damaged or incomplete ({error}); remove them") from error
    if {inside: _digest(content) for inside, content in files.items()} != listed:
        raise ValueError(f"the shards {name}.* in {out} are not of one run; remove them")
    for inside, content in files.items():
        path = (folder / inside).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"the shards {name}.* in {out} have a file outside the folder: {inside}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(files)


def shards(out: Path, name: str) -> list[Path]:
    """The shards that are there, in order."""
    found = [p for p in out.glob(f"{name}.*") if p.suffix[1:].isdecimal()] if out.is_dir() else []
    return sorted(found, key=lambda p: int(p.suffix[1:]))


def replaced(path: Path, content: bytes, staging: Path) -> None:
    """Write a file so that a kill at any moment leaves the old or the new one."""
    (staging / path.name).write_bytes(content)
    _moved(staging / path.name, path)


def _moved(path: Path, place: Path) -> None:
    try:
        os.replace(path, place)
    except OSError:  # another file system, where a move is a copy
        beside = place.with_name(f".{place.name}")
        shutil.copyfile(path, beside)
        os.replace(beside, place)


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    listed = json.dumps({name: _digest(content) for name, content in files.items()}).encode()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in {CONTENTS: listed, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def _age(path: Path) -> tuple[float, str]:
    try:
        return -path.stat().st_mtime, str(path)
    except FileNotFoundError:
        return 0.0, str(path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    print(f"{unpack(Path(sys.argv[1]), Path(sys.argv[2]), 'small.tar')} files")
