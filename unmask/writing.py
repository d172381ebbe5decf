"""Files are written whole: after an error, a full disk, a kill or a power cut there is the old file or the new one, and nothing between.

Public idea: ``write_whole(path, write)`` for one file, ``write_together(files, journal)`` for several that belong together,
``whole_folder(out)`` for a new folder. All writers of the package go through them (``tests/test_other_writers.py`` lists the exceptions).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.files import FileRefused, read_json

if TYPE_CHECKING:
    from torch import Tensor

PART = ".part"  # ends the name of what is not complete
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write every end of a line as two bytes
_TO_SYNC = os.O_RDWR if os.name == "nt" else os.O_RDONLY  # Windows flushes only what may be written
_ONE = re.compile(rf"\..+\.\d+{re.escape(PART)}")  # a file of ``write_whole``
_SEVERAL = re.compile(rf"\..+\.json{re.escape(PART)}")  # a folder of ``write_together``


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` makes the file under another name; when it is on the disk, it gets its name. OSError is passed on.

    A process that is killed leaves the file as ``.NAME.PID.part``, which ``remove_parts`` deletes.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        write(part)
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` of a text in UTF-8."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def copy_file(source: Path | str, target: Path | str) -> None:
    """``write_whole`` of the content of another file; also as ``copy_function`` of ``shutil.copytree``."""
    write_whole(Path(target), lambda part: shutil.copyfile(source, part))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, whole; everybody may read it. The library may leave half a file of another name: it gets its own folder."""
    write_together({path: tensor_writer(tensors, metadata)}, path.with_name(f"{path.name}.json"))


def tensor_writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Callable[[Path], object]:
    """For ``write_together``: writes a safetensors file."""

    def write(part: Path) -> None:
        from safetensors import SafetensorError, torch

        try:
            torch.save_file(dict(tensors), str(part), dict(metadata) if metadata else None)
        except SafetensorError as error:  # it hides the OSError
            raise OSError(str(error)) from error
        part.chmod(0o644)

    return write


def append_line(path: Path, line: str) -> None:
    """Add a line, with its end, to a file that may not exist; it is on the disk afterwards. After an OSError the file is as before."""
    data = (line + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o644)
    try:
        before = os.fstat(handle).st_size
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes ``out`` when everything in it is on the disk, and is removed after an error.

    ValueError if ``out`` exists. A process that is killed leaves ``.OUT.PID.part``, which the next writer of ``out`` deletes.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give a new folder")
    for left in out.parent.glob(f".{glob.escape(out.name)}.*{PART}"):
        if left.is_dir() and not left.is_symlink() and _unlocked(left):
            shutil.rmtree(left, ignore_errors=True)
    part = out.with_name(f".{out.name}.{os.getpid()}{PART}")
    try:
        part.mkdir(parents=True)
        with lock(part):
            yield part
            for path in [*part.rglob("*"), part]:
                sync(path)
            os.replace(part, out)
        sync(out.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unlocked(folder: Path) -> bool:
    """Whether no process writes into a folder; False where that is not known."""
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError:  # Windows
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with lock(folder):
                return True
        except (InUse, OSError, UserWarning):
            return False


def write_together(
    files: Mapping[Path, Callable[[Path], object]], journal: Path, obsolete: Iterable[Path] = ()
) -> None:
    """``write_whole`` of several files of one folder, and deletion of others, as one change. One writer at a time.

    The new files are written into a folder of their own. When all are on the disk, ``journal`` is written, which makes the change.
    Until the journal is gone, ``pending`` says which files count, and ``finish`` completes what a crash has interrupted. Where there is no
    journal after an error, nothing has changed.
    """
    gone = list(obsolete)
    if journal.exists():
        finish(journal)
    part = _part_of(journal)
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        for path, write in files.items():
            write(part / path.name)
            sync(part / path.name)
        sync(part)
        if len(files) == 1 and not gone:
            (path,) = files
            os.replace(part / path.name, path)
            sync(path.parent)
        else:
            write_text(journal, json.dumps({"files": [p.name for p in files], "obsolete": [p.name for p in gone]}))
            finish(journal)
    finally:
        if not journal.exists():
            shutil.rmtree(part, ignore_errors=True)


def pending(journal: Path) -> dict[str, Path]:
    """The files that count while a change is not completed: name -> where the file is now. {} where there is no journal.

    FileRefused for a journal that is damaged.
    """
    return {name: _now(journal, name) for name in _names(journal, "files")} if journal.exists() else {}


def finish(journal: Path) -> None:
    """Complete the change of a journal. OSError where this is not possible; ``pending`` still says which files count."""
    for name, now in pending(journal).items():
        if now != journal.with_name(name):
            os.replace(now, journal.with_name(name))
    for name in _names(journal, "obsolete"):
        journal.with_name(name).unlink(missing_ok=True)
    sync(journal.parent)
    journal.unlink()
    sync(journal.parent)
    shutil.rmtree(_part_of(journal), ignore_errors=True)


def _part_of(journal: Path) -> Path:
    """The folder of the new files."""
    return journal.with_name(f".{journal.name}{PART}")


def _now(journal: Path, name: str) -> Path:
    new = _part_of(journal) / name
    return new if new.exists() else journal.with_name(name)


def _names(journal: Path, field: str) -> list[str]:
    raw = read_json(journal)
    names = raw.get(field) if isinstance(raw, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) and n and Path(n).name == n for n in names):
        raise FileRefused(f"its {field} are not names of files")
    return names


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk. OSError where this fails; not for a folder where the system cannot."""
    try:
        handle = os.open(path, _TO_SYNC)
    except PermissionError:
        if path.is_dir():  # Windows
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise
    finally:
        os.close(handle)


class InUse(ValueError):
    """Another process holds the lock of a file or folder."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a file or folder for this process. The system releases it when the process ends, however it ends. InUse where another holds it.

    Warns, and holds nothing, on a file system without locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    held = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"another process holds {path}; wait for it to end") from None
        except OSError as error:  # some network file systems
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}); do not start a second process for it", stacklevel=3
            )
        yield
    finally:
        os.close(held)


def remove_parts(folder: Path) -> None:
    """Delete what killed processes left half written in a folder. Nobody else may be writing there."""
    for path in folder.glob(f".*{PART}"):
        if path.is_symlink():
            continue
        if path.is_file() and _ONE.fullmatch(path.name):
            path.unlink(missing_ok=True)
        elif (
            path.is_dir() and _SEVERAL.fullmatch(path.name) and not folder.joinpath(path.name[1 : -len(PART)]).exists()
        ):
            shutil.rmtree(path, ignore_errors=True)


def refuse_full(folder: Path, nbytes: int) -> None:
    """OSError (ENOSPC) where the disk of ``folder`` has no room for a file of ``nbytes``; nothing where its room is not known."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < nbytes:
        needed, there = (f"{n / 2**30:.2f} GiB" for n in (nbytes, free))
        raise OSError(errno.ENOSPC, f"{folder} has {there} free and {needed} are needed")
