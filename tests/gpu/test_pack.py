"""Shards of a folder: their sizes, what is left out, and that they are read back or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))
from pack import MOST, SHARD, SHARDS, pack, shards, unpack  # noqa: E402

sys.path.pop(0)
KIB = 2**10


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("run", "out", "staging"):
        (tmp_path / name).mkdir()
    return tmp_path / "run", tmp_path / "out", tmp_path / "staging"


def written(folder: Path, name: str, size: int, age: int) -> bytes:
    content = os.urandom(size)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (10**9 - age, 10**9 - age))
    return content


def test_eight_files_of_16_mib_and_60_together() -> None:
    assert SHARD < 16 * 2**20 and SHARDS + 4 <= 8 and SHARDS * SHARD <= 60 * 2**20 and MOST < SHARDS * SHARD


def test_there_and_back(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, out, staging = folders
    files = {
        name: written(run, name, 30 * KIB, age) for age, name in enumerate(("state", "sub/metrics.jsonl", "empty"))
    }
    assert pack(run, out, "small.tar", staging, shard=40 * KIB, most=10**6) == []
    assert [p.stat().st_size <= 40 * KIB for p in shards(out, "small.tar")] == [True] * 3
    assert unpack(out, tmp_path / "again", "small.tar") == 3
    assert {name: (tmp_path / "again" / name).read_bytes() for name in files} == files
    plain = subprocess.run("cat out/small.tar.* | tar tf -", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert set(plain.stdout.split()) == {*files, "contents.json"}


def test_the_newest_files_come_first(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, out, staging = folders
    for age, name in enumerate(("new", "old", "oldest")):
        written(run, name, 40 * KIB, age)
    written(run, "half.part", KIB, 0)
    assert sorted(pack(run, out, "small.tar", staging, most=90 * KIB)) == ["half.part", "oldest"]
    unpack(out, tmp_path / "again", "small.tar")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["new", "old"]


def test_fewer_shards_than_before_leave_none_of_the_old_ones(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, out, staging = folders
    written(run, "large", 200 * KIB, 0)
    pack(run, out, "small.tar", staging, shard=50 * KIB)
    assert len(shards(out, "small.tar")) == 5
    (run / "large").write_bytes(b"little")
    pack(run, out, "small.tar", staging, shard=50 * KIB)
    assert len(shards(out, "small.tar")) == 1 and unpack(out, tmp_path / "again", "small.tar") == 1


def test_shards_of_two_moments_are_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, out, staging = folders
    written(run, "state", 200 * KIB, 0)
    pack(run, out, "small.tar", staging, shard=50 * KIB)
    second = (out / "small.tar.1").read_bytes()
    written(run, "state", 200 * KIB, 0)
    pack(run, out, "small.tar", staging, shard=50 * KIB)
    (out / "small.tar.1").write_bytes(second)
    with pytest.raises(ValueError, match="not of one run"):
        unpack(out, tmp_path / "again", "small.tar")
    (out / "small.tar.2").unlink()
    with pytest.raises(ValueError, match="damaged|not of one run"):
        unpack(out, tmp_path / "again", "small.tar")


def test_without_shards_nothing_is_unpacked(tmp_path: Path) -> None:
    assert unpack(tmp_path, tmp_path / "again", "small.tar") == 0 and not (tmp_path / "again").exists()
