"""Every writer, with the disk failing at each of its calls: the old state or the new one is there, whole, and nothing is left behind.

In the manner of SQLite's tests: the calls of a writer to the system are counted, and the n-th fails, for every n.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from unmask import writing
from unmask.checkpoints import store
from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.data.drawn import Drawn, load_drawn, save_drawn
from unmask.data.world.scenes import Scene
from unmask.data.world.sprites import SpriteFile
from unmask.evaluation.evaluate import Finding, Record
from unmask.evaluation.history import Line, append
from unmask.tokens.pictures import save_image
from unmask.tokens.text import Text
from unmask.training import states
from unmask.training.saving import Single
from unmask.training.states import Saved
from unmask.writing import (
    InUse,
    append_line,
    copy_file,
    finish,
    lock,
    pending,
    refuse_full,
    remove_parts,
    whole_folder,
    write_tensors,
    write_together,
    write_whole,
)

torch.set_num_threads(1)
CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir")


class Killed(BaseException):
    """The process ends here: nothing after it runs, not even what tidies up."""


class Disk:
    """The calls of ``os`` that change a disk. The ``at``-th fails with ``error``, and with Killed every later one too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.count, self.at, self.error = 0, at, error
        for name in CALLS:
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))
        monkeypatch.setattr(io, "open", self.failing(io.open))
        monkeypatch.setattr(store, "save_file", self.half(store.save_file))
        monkeypatch.setattr("safetensors.torch.save_file", self.half(_TENSORS))

    def half(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The library's writing, which leaves half a file where it fails."""

        def save(tensors: dict[str, Tensor], path: str, *more: Any, **options: Any) -> None:
            self.count += 1
            if self.count >= self.at and (self.count == self.at or isinstance(self.error, Killed)):
                Path(path).with_name(".tmp123456").write_bytes(b"half")
                raise self.error
            real(tensors, path, *more, **options)

        return save

    def failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if (real is _OPEN and not args[1] & (os.O_WRONLY | os.O_CREAT)) or (real is _FILE and "r" in args[1]):
                return real(*args, **options)  # reading
            self.count += 1
            if self.count == self.at or (self.count > self.at and isinstance(self.error, Killed)):
                raise self.error
            return real(*args, **options)

        return call


_OPEN, _FILE, _TENSORS = os.open, io.open, safetensors.torch.save_file


def old_tensors() -> dict[str, Tensor]:
    return {f"t{i}": torch.full((64,), float(i)) for i in range(6)}


def new_tensors() -> dict[str, Tensor]:
    return {f"n{i}": torch.full((96,), 9.0 + i) for i in range(5)}


def weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_tensors(tensors, folder, shard=600)


def read_weights(folder: Path) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in read_tensors(folder, "model").items()}


def one_file(folder: Path, text: str) -> None:
    write_whole(folder / "a.txt", lambda part: part.write_text(text))


def picture(folder: Path, colour: str) -> None:
    save_image(Image.new("RGB", (8, 8), colour), folder / "a.png")


def state(folder: Path, step: int) -> None:
    saved = Saved(recipe="r", seed=0, step=step, updates=step)
    Single(folder, keep=2).save({"master.a": torch.full((8,), float(step))}, saved)


def read_state(folder: Path) -> tuple[int, list[float]]:
    return states.read(folder / states.STATE).step, load_file(folder / states.STATE)["master.a"].tolist()


def sums(folder: Path, seed: int) -> None:
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text('{"kept": 1}')
    path = folder / "model.safetensors"
    path.write_bytes(bytes([seed])) if not path.exists() else None
    write_sums(folder)


def tensors_alone(folder: Path, value: float) -> None:
    write_tensors(folder / "a.safetensors", {"a": torch.full((8,), value)}, {"config": "{}"})


def drawn(folder: Path, prompt: str) -> None:
    shown = Drawn(prompt=prompt, critique="", scene=Scene(objects=(), background="sky", level="grid"), clean=True)
    save_drawn(folder, torch.zeros(len(prompt), 2, 2, 3, dtype=torch.uint8), [shown] * len(prompt))


def read_drawn(folder: Path) -> tuple[str, int]:
    load_drawn.cache_clear()
    pictures, found = load_drawn(folder)
    return found[0].prompt, len(pictures)


@dataclass(frozen=True, kw_only=True)
class Named:
    key: str
    text: str


def verdict(folder: Path, text: str) -> None:
    finding = Finding(row={"right": True}, pictures={"drawn": np.zeros((4, 4, 3), np.uint8)})
    Record(folder).add("run", Named(key=text, text=text), finding)


def read_verdicts(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines() if line]
    assert all(Image.open(folder / "pictures" / "run" / f"{row['key']}-drawn.png").size == (4, 4) for row in rows)
    return sorted({row["key"] for row in rows})


def sprites(folder: Path, size: int) -> None:
    assert SpriteFile.create(folder, least=2, most=size)


WRITERS: dict[str, tuple[Callable[[Path, Any], None], Any, Any, Callable[[Path], object]]] = {
    "one file": (one_file, "old" * 9, "new" * 999, lambda f: (f / "a.txt").read_text()),
    "a picture": (picture, "red", "blue", lambda f: Image.open(f / "a.png").getpixel((0, 0))),
    "weights in shards": (weights, old_tensors(), new_tensors(), read_weights),
    "weights in one file": (weights, {"a": torch.ones(4)}, {"a": torch.zeros(4)}, read_weights),
    "fewer shards": (weights, old_tensors(), {"a": torch.zeros(4)}, read_weights),
    "more shards": (weights, {"a": torch.zeros(4)}, old_tensors(), read_weights),
    "a state of a run": (state, 3, 5, read_state),
    "checksums": (sums, 1, 2, lambda f: json.loads((f / "config.json").read_text())["kept"]),
    "one file of tensors": (
        tensors_alone,
        1.0,
        2.0,
        lambda f: load_file(f / "a.safetensors")["a"].tolist(),
    ),
    "drawn images and their labels": (drawn, "old", "newer", read_drawn),
    "a verdict and its picture": (verdict, "old", "new", read_verdicts),
    "an empty file of sprites": (sprites, 3, 4, lambda f: (f / "sprites.bin").stat().st_size),
    "a text tokenizer": (
        lambda f, word: Text.train([word * 9], 2000).save(f / "tokenizer.json"),
        "old",
        "new",
        lambda f: Text.load(f / "tokenizer.json").encode("newold"),
    ),
    "figures of the history": (
        lambda f, name: append(f / "h.jsonl", [Line(name=name, value=1.0, unit="s")] * 2),
        "old",
        "new",
        lambda f: [json.loads(line)["name"] for line in (f / "h.jsonl").read_text().splitlines()][-2:],
    ),
    "a copy": (
        lambda f, text: ((f / "from").write_text(text), copy_file(f / "from", f / "to")),
        "old",
        "new",
        lambda f: (f / "to").read_text(),
    ),
    "a line": (
        lambda f, line: append_line(f / "a.jsonl", line),
        "old",
        "new" * 99,
        lambda f: (f / "a.jsonl").read_text().splitlines()[-1],
    ),
}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "ENOSPC": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "EIO": lambda: OSError(errno.EIO, "Input/output error"),
    "killed": Killed,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("writer", WRITERS)
def test_the_old_state_or_the_new_one(writer: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, old, new, read = WRITERS[writer]
    seen = set()
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        write(folder, old)
        was = read(folder)
        shutil.copytree(folder, whole := tmp_path / f"{at}-new")
        write(whole, new)
        wanted = read(whole)
        with monkeypatch.context() as patched:
            disk = Disk(patched, at, ERRORS[error]())
            try:
                write(folder, new)
            except (OSError, Killed):
                pass
            done = disk.count < at
        found = read(folder)
        assert found in (was, wanted), f"call {at}: neither old nor new"
        seen.add("new" if found == wanted else "old")
        if done:
            assert found == wanted
            break
        write(folder, new)  # the next save works, and leaves nothing of the one that failed
        assert read(folder) == wanted
        if error != "killed":
            assert len(list(folder.iterdir())) == len(list(whole.iterdir())), f"call {at}"
            assert not [p for p in folder.iterdir() if p.name.startswith(".") or "pending" in p.name], f"call {at}"
        else:
            remove_parts(folder)
            assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    else:
        pytest.fail("a writer with 200 calls")
    assert at > 3 and "new" in seen and (was == wanted or "old" in seen)


@pytest.mark.parametrize("error", ERRORS)
def test_a_new_folder_is_whole_or_absent(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(out: Path) -> None:
        with whole_folder(out) as part:
            save_tensors({"a": torch.ones(3)}, part)
            write_whole(part / "config.json", lambda file: file.write_text("{}"))
            (part / "inner").mkdir()
            copy_file(part / "config.json", part / "inner" / "config.json")

    for at in range(1, 200):
        out = tmp_path / str(at) / "model"
        out.parent.mkdir()
        with monkeypatch.context() as patched:
            disk = Disk(patched, at, ERRORS[error]())
            try:
                write(out)
            except (OSError, Killed):
                pass
            done = disk.count < at
        if error != "killed":
            assert [p.name for p in out.parent.iterdir()] in ([], ["model"]), f"call {at}"
        if not out.exists():
            assert not done
            write(out)
        assert sorted(p.name for p in out.rglob("*")) == ["config.json", "config.json", "inner", "model.safetensors"]
        assert [p.name for p in out.parent.iterdir()] == ["model"], f"call {at}: what a killed process left"
        if done:
            break
    else:
        pytest.fail("a writer with 200 calls")
    assert at > 10
    with pytest.raises(ValueError, match="exists already"), whole_folder(out):
        pass


def test_a_folder_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    other, left = tmp_path / ".model.1.part", tmp_path / ".model.2.part"
    other.mkdir()
    left.mkdir()
    (tmp_path / ".models.3.part").mkdir()  # of another name
    with lock(other):
        with whole_folder(tmp_path / "model") as part, pytest.raises(InUse), lock(part):
            pass
        assert other.exists() and not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model.1.part", ".models.3.part", "model"]


def test_short_writes_of_a_line_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    append_line(tmp_path / "a", "a whole line")
    assert (tmp_path / "a").read_text() == "a whole line\n"


def test_a_line_that_does_not_fit_leaves_the_file_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    append_line(path, "first")
    real, calls = os.write, iter(range(9))

    def full(handle: int, data: bytes) -> int:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError):
        append_line(path, "second")
    assert path.read_text() == "first\n"


def test_nothing_is_named_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = writing.sync, os.replace
    monkeypatch.setattr(writing, "sync", lambda path: (done.append(f"sync {path.name}"), sync(path))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"name {Path(b).name}"), replace(a, b))[1])
    write_whole(tmp_path / "a", lambda part: part.write_text("x"))
    assert done == [f"sync .a.{os.getpid()}.part", "name a", f"sync {tmp_path.name}"]


def test_a_journal_is_completed_by_the_next_save_and_read_before(tmp_path: Path) -> None:
    journal = tmp_path / "model.pending.json"
    files = {tmp_path / name: (lambda part, name=name: part.write_text(name)) for name in ("a", "b")}
    write_together(files, journal)
    assert not journal.exists() and (tmp_path / "a").read_text() == "a"
    part = tmp_path / f".{journal.name}.part"
    part.mkdir()
    (part / "b").write_text("newer")
    journal.write_text(json.dumps({"files": ["a", "b"], "obsolete": ["c"]}))
    (tmp_path / "c").write_text("old")
    assert pending(journal) == {"a": tmp_path / "a", "b": part / "b"}
    remove_parts(tmp_path)
    assert part.exists(), "it still counts"
    finish(journal)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "b").read_text() == "newer"


@pytest.mark.parametrize("content", ["{", "[]", '{"files": ["../a"]}', '{"files": 5}', '{"files": [""]}', "{}"])
def test_a_damaged_journal_is_named(tmp_path: Path, content: str) -> None:
    save_tensors({"a": torch.zeros(2)}, tmp_path)
    (tmp_path / "model.pending.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.pending\.json is damaged .*; remove it"):
        read_tensors(tmp_path, "model")
    with pytest.raises(OSError, match="could not write model"):
        save_tensors({"a": torch.ones(2)}, tmp_path)


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    yield


def test_room_is_looked_up_before_writing(tmp_path: Path, nearly_full: None) -> None:
    refuse_full(tmp_path, 10)
    with pytest.raises(OSError, match="0.00 GiB free and 0.00 GiB are needed"):
        refuse_full(tmp_path, 11)
    with pytest.raises(OSError, match="could not write model .*; nothing was changed"):
        save_tensors({"a": torch.zeros(99)}, tmp_path)
    assert not list(tmp_path.iterdir())
