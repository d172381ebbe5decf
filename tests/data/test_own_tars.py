"""WebDataset tars: written by webdataset, by the program tar, and malicious ones."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from unmask.data.opening import open_data
from unmask.data.samples import Caption, Chat, DataError, EditPair, Interleaved

from .own import LLAVA, good_samples, png, reasons, save


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of tars go to the cache in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def test_a_webdataset_of_several_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=2, verbose=0) as writer:
        for i in range(5):
            writer.write({"__key__": f"{i:04d}", "jpg": png(), "txt": f"number {i}"})
        writer.write({"__key__": "0005", "png": png(), "json": {"conversations": LLAVA["conversations"]}})
        writer.write(
            {"__key__": "0006", "source.png": png(), "target.png": png("blue"), "instruction.txt": "make it blue"}
        )
        turns = [{"role": "user", "content": "draw"}, {"role": "assistant", "content": "<image>"}]
        writer.write({"__key__": "0007", "0.png": png(), "json": {"messages": turns}, "cls": 3})
    found = good_samples(open_data(str(tmp_path / "s-*.tar")))
    assert [type(s) for s in found] == [Caption] * 5 + [Chat, EditPair, Interleaved]
    assert [s.key for s in found][:3] == ["s-000/0000", "s-000/0001", "s-001/0002"]
    assert good_samples(open_data(tmp_path)) == found
    # the library reads the same rows from the same files
    theirs = list(wds.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))
    assert [r["__key__"] for r in theirs] == [s.key.partition("/")[2] for s in found]
    assert theirs[3]["txt"].decode() == found[3].text and theirs[3]["jpg"] == found[3].image.read()


def test_a_tar_that_the_program_tar_made(tmp_path: Path) -> None:
    save(tmp_path / "pets" / "cat.png"), (tmp_path / "pets" / "cat.txt").write_text("a cat")
    long = "n" * 120  # longer than a field of the header
    save(tmp_path / "pets" / f"{long}.png"), (tmp_path / "pets" / f"{long}.txt").write_text("long")
    subprocess.run(["tar", "cf", "pets.tar", "pets"], cwd=tmp_path, check=True)
    assert sorted(s.key for s in good_samples(open_data(tmp_path / "pets.tar"))) == [
        "pets/pets/cat",
        f"pets/pets/{long}",
    ]


def test_unsafe_members_are_broken_rows_and_nothing_is_unpacked(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "t.tar",
        ("good.png", png()), ("good.txt", b"x"),
        ("../../evil.png", png()), ("../../evil.txt", b"x"),
        ("/etc/evil.png", png()), ("C:\\evil.png", png()),
        ("twice.png", png()), ("twice.png", png("blue")), ("twice.txt", b"x"),
        ("none.txt", b"x"), ("other.bin", b"x"),
    )  # fmt: skip
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "link.txt", b"x")
    data = open_data(path)
    assert reasons(data) == {
        "t/../../evil": "t.tar, ../../evil: the name '../../evil.png' leads out of the archive",
        "t//etc/evil": "t.tar, /etc/evil: the name '/etc/evil.png' leads out of the archive",
        "t/C:\\evil": "t.tar, C:\\evil: the name 'C:\\\\evil.png' leads out of the archive",
        "t/twice": "t.tar, twice: twice.png is in the archive twice",
        "t/none": "t.tar, none: there is no picture beside none.txt",
        "t/link": "t.tar, link: link.png is a link or a device, not a file",
    }
    assert len(data) == 7 and sorted(p.name for p in tmp_path.iterdir()) == ["t.tar"]


def test_the_index_of_a_tar_is_kept_until_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "t.tar", ("a.png", png()), ("a.txt", b"one"))
    first = good_samples(open_data(path))
    with monkeypatch.context() as patch:
        patch.setattr("unmask.data.tars.tarfile.open", lambda *_: pytest.fail("read again"))
        assert good_samples(open_data(path)) == first
    (kept,) = (Path.home() / ".cache" / "unmask" / "tars").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])  # a full disk
    assert good_samples(open_data(path)) == first
    os.utime(tar_of(path, ("a.png", png()), ("a.txt", b"another")), (1, 1))
    assert [s.text for s in good_samples(open_data(path))] == ["another"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a complete tar|there are no rows"),
        (b"hello", "is not a complete tar"),
        (b"\x1f\x8b0000", "is compressed, so that its rows cannot be read in any order; run gunzip first"),
        (b"(\xb5/\xfd", "run unzstd first"),
    ],
)
def test_tars_that_cannot_be_opened(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_data(tmp_path / "t.tar")


def test_a_truncated_tar_and_an_empty_one(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "t.tar", ("a.png", png()), ("a.txt", b"one"), ("b.png", png("red", (900, 900)) * 9), ("b.txt", b"x")
    )
    for size in (700, 1300, 2048 + 1500):
        (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match="is not a complete tar"):
            open_data(tmp_path / "cut.tar")
    with pytest.raises(DataError, match="there are no rows"):
        open_data(tar_of(tmp_path / "e.tar"))
    with pytest.raises(DataError, match="there are no rows"):
        open_data(tar_of(tmp_path / "f.tar", ("a.bin", b"x")))
