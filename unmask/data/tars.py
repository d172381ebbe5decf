"""WebDataset tars: files that share a name up to the first dot are one row, as in ``0001.jpg`` with ``0001.txt`` or ``0001.json``.

Public idea: ``TarRows(paths)``. Python's tarfile reads the headers once; a row is then read by its place, in any order. The index of a tar
is kept in ``~/.cache/unmask/tars`` (45 µs per member to build). Nothing is unpacked.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.data.beside import fields_of, known_ending, task_in
from unmask.data.row_errors import RowError, printable
from unmask.data.rows import PicturesIn, Row, safe_name
from unmask.data.samples import Broken, ByteSource, DataError, FilePart
from unmask.tokens.pictures import write_whole

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}
_VERSION = 1  # of the index files


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """Members of a tar. ``names``: paths · ``starts`` [N], ``sizes`` [N]: bytes; a size of -1 marks a member that is not a plain file."""

    path: Path
    names: tuple[str, ...]
    starts: np.ndarray
    sizes: np.ndarray


class TarRows:
    """The rows of tars in order. DataError if a tar is compressed, damaged or empty. The key of a row is TAR/NAME."""

    def __init__(self, paths: Sequence[Path], cache: Path | None = None) -> None:
        self.shards = [_Shard(index_of(path, cache or Path.home() / ".cache" / "unmask" / "tars")) for path in paths]
        self.ends = np.cumsum([len(s.names) for s in self.shards]).tolist()
        if not self.ends or not self.ends[-1]:
            raise DataError(
                f"there are no rows in {', '.join(map(str, paths[:3]))}; a row is a picture with a .txt or .json"
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def key(self, i: int) -> str:
        shard, name = self._at(i)
        return printable(f"{shard.index.path.stem}/{name}")

    def task(self, i: int) -> str | None:
        shard, name = self._at(i)
        try:
            return task_in(shard.members(name), name)
        except RowError:
            return None

    def row(self, i: int) -> Row | Broken:
        shard, name = self._at(i)
        place = f"{shard.index.path.name}, {name}"
        try:
            fields = fields_of(shard.members(name), name)
        except RowError as error:
            return Broken(key=self.key(i), reason=printable(f"{place}: {error}"))
        return Row(key=self.key(i), place=place, fields=fields, find=PicturesIn(folder=shard.index.path.parent))

    def _at(self, i: int) -> tuple[_Shard, str]:
        number = bisect.bisect_right(self.ends, i)
        shard = self.shards[number]
        return shard, shard.names[i - (self.ends[number - 1] if number else 0)]


class _Shard:
    """One tar: the names of its rows in order, and their members."""

    def __init__(self, index: TarIndex) -> None:
        self.index = index
        self.groups: dict[str, list[int]] = {}
        for i, member in enumerate(index.names):
            name, ending = _split(member)
            if known_ending(ending) or not safe_name(member):
                self.groups.setdefault(name, []).append(i)
        self.names = list(self.groups)

    def members(self, name: str) -> dict[str, ByteSource]:
        """{ending: bytes} of a row. RowError for unsafe names, links, and a member that is there twice."""
        found: dict[str, ByteSource] = {}
        for i in self.groups[name]:
            member, size = self.index.names[i], int(self.index.sizes[i])
            if not safe_name(member):
                raise RowError(f"the name {member!r} leads out of the archive")
            if size < 0:
                raise RowError(f"{member} is a link or a device, not a file")
            ending = _split(member)[1]
            if ending in found:
                raise RowError(f"{member} is in the archive twice")
            found[ending] = FilePart(path=self.index.path, start=int(self.index.starts[i]), size=size)
        return found


def _split(member: str) -> tuple[str, str]:
    """(name, ending) as WebDataset splits them: at the first dot after the last slash."""
    folder, slash, file = member.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def index_of(path: Path, cache: Path) -> TarIndex:
    """The index of a tar, from ``cache`` if its size and time fit. DataError if it is compressed or damaged."""
    stat = path.stat()
    stamp = f"{_VERSION}/{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}"
    kept = cache / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.npz"
    with contextlib.suppress(Exception):  # missing, or left damaged by a full disk
        with np.load(kept, allow_pickle=False) as found:
            names = tuple(found["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
            return TarIndex(path=path, names=names, starts=found["starts"], sizes=found["sizes"])
    made = _read(path)
    packed = np.frombuffer("".join(f"{n}\0" for n in made.names).encode("utf-8", "surrogateescape"), np.uint8)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        write_whole(kept, lambda part: _save(part, packed, made))
    return made


def _save(part: Path, packed: np.ndarray, made: TarIndex) -> None:
    with part.open("wb") as file:
        np.savez(file, names=packed, starts=made.starts, sizes=made.sizes)


def _read(path: Path) -> TarIndex:
    with path.open("rb") as file:
        head = file.read(2)
    if head in _COMPRESSED:
        raise DataError(
            f"{path} is compressed, so that its rows cannot be read in any order; run {_COMPRESSED[head]} first"
        )
    names, starts, sizes, end = [], [], [], 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                if member.isdir():
                    continue
                names.append(member.name)
                starts.append(member.offset_data)
                sizes.append(member.size if member.isreg() and not member.issparse() else -1)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a complete tar ({error}); download or write it again") from error
    if path.stat().st_size < end + 512:  # tarfile does not miss the empty block at the end
        raise DataError(f"{path} is not a complete tar (it has no end); download or write it again")
    return TarIndex(path=path, names=tuple(names), starts=np.array(starts, np.int64), sizes=np.array(sizes, np.int64))
