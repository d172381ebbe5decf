"""Packed fixtures restore to the recorded bytes, and restoring leaves a twin's files alone."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .packed import GOLDEN, pack, packed_path, restore, store, sums, unpack
from .pages import ROOT

RECORDED = sums(GOLDEN / "packed" / "SHA256SUMS")


@pytest.mark.parametrize("name", RECORDED)
def test_a_packed_file_restores_to_its_sha256(name: str) -> None:
    assert hashlib.sha256(unpack(packed_path(name).read_bytes())).hexdigest() == RECORDED[name]


def test_every_packed_file_is_recorded_and_ignored_by_git() -> None:
    stored = {p.relative_to(GOLDEN / "packed").as_posix() for p in (GOLDEN / "packed").rglob("*.packed")}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert stored == {f"{name}.packed" for name in RECORDED}
    assert all(f"/tests/golden/{name.split('/')[0]}/**/*.safetensors" in ignored for name in RECORDED)


@pytest.mark.parametrize("size", [0, 1, 4, 7, 4096])
def test_any_size_is_packed(size: int) -> None:
    data = os.urandom(size)
    assert unpack(pack(data)) == data


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder of fixtures with one of two files, packed, and nothing restored."""
    golden = tmp_path.resolve() / "golden"
    for name, data in (("model", b"weights"), ("codec/model", b"codec")):
        path = golden / "a_tiny" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert store(golden / "a_tiny", golden) == ["a_tiny/codec/model.safetensors", "a_tiny/model.safetensors"]
    for path in (golden / "a_tiny").rglob("*.safetensors"):
        path.unlink()
    return golden


def test_what_is_missing_is_restored_once(golden: Path) -> None:
    assert len(restore(golden)) == 2
    assert (golden / "a_tiny" / "codec" / "model.safetensors").read_bytes() == b"codec"
    assert restore(golden) == []
    (golden / "a_tiny" / "model.safetensors").unlink()
    assert restore(golden) == ["a_tiny/model.safetensors"]


def test_a_file_that_was_put_there_stays(golden: Path) -> None:
    """In a new checkout and in one that is restored."""
    model = golden / "a_tiny" / "model.safetensors"
    for _ in range(2):
        model.write_bytes(b"a twin's")
        assert "a_tiny/model.safetensors" not in restore(golden) and model.read_bytes() == b"a twin's"


def test_a_changed_fixture_is_restored_again(golden: Path, tmp_path: Path) -> None:
    """As after ``git pull``: the packed file is another one."""
    restore(golden)
    model, before = golden / "a_tiny" / "model.safetensors", (golden / "packed" / ".restored").read_text()
    model.write_bytes(b"new weights")
    store(golden / "a_tiny", golden)
    model.write_bytes(b"weights")
    assert (golden / "packed" / ".restored").read_text() == before
    assert restore(golden) == ["a_tiny/model.safetensors"] and model.read_bytes() == b"new weights"


def test_a_damaged_file_is_refused(golden: Path) -> None:
    packed_path("a_tiny/model.safetensors", golden).write_bytes(pack(b"damaged"))
    with pytest.raises(ValueError, match="model.safetensors.packed does not restore to its SHA-256"):
        restore(golden)
    assert not (golden / "a_tiny" / "model.safetensors").exists()


def test_a_process_that_is_killed_leaves_no_half_file(golden: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tests import packed\n"
        "from unmask import writing\n"
        "writing.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "packed.restore(Path(sys.argv[1]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(golden)], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})
    assert ended.returncode == -signal.SIGKILL and not list((golden / "a_tiny").rglob("*.safetensors"))
    assert len(restore(golden)) == 2
