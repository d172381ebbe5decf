"""Batches made ahead of the training loop, by worker processes.

Public idea: ``Ahead(source=…, workers=15)`` is a source that returns the same batches as ``source``, sooner. What a batch contains
remains a function of (seed, step), so the number of workers changes nothing else. A worker writes the tensors of a batch into one file,
which is read into one buffer (page-locked where CUDA is in use, so that copies to the device do not wait); everything else is pickled.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unmask.protocols import Source
from unmask.sequence import Batch, Span

B = TypeVar("B")
_ALIGN = 64  # bytes
_MEMORY, _ENOUGH = Path("/dev/shm"), 16 * 2**30  # a file system in memory, and the free bytes from which on it is used
_MORE = 2  # batches that are ready or in work beyond one per worker


@dataclass(frozen=True, kw_only=True)
class Ahead(Generic[B]):
    """``source``, which must be picklable, in ``workers`` processes; 0: in this one."""

    source: Source[B]
    workers: int = field(default=0, compare=False)

    def __call__(self, step: int) -> B:
        return _pool(self.workers).take(self.source, step) if self.workers else self.source(step)


def scratch() -> Path | None:
    """Where files that live for seconds are made: in memory if there is enough of it, else (None) where Python puts temporary files."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH else None


def spare_cores(most: int = 32) -> int:
    """Cores of this process besides the one that trains."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, there - 1)


@dataclass(frozen=True, kw_only=True)
class _Hole:
    """Where a tensor was: its place in the file, and its form. ``channels_last``: the last dimension in memory is the second one."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool


class _Pool:
    """The processes, and the batches that they are making for one source at a time."""

    def __init__(self, workers: int) -> None:
        self.most = workers + _MORE
        self.folder = tempfile.TemporaryDirectory(prefix="unmask-batches-", dir=scratch())
        spawned = multiprocessing.get_context("spawn")  # a fork after CUDA or threads have started may hang
        self.processes = ProcessPoolExecutor(workers, mp_context=spawned, initializer=_begin)
        self.readers = ThreadPoolExecutor(2)
        self.source: Any = None
        self.pickled = b""
        self.step = -1
        self.value: Any = None
        self.waiting: dict[int, Future[Any]] = {}
        self.numbers = itertools.count()

    def take(self, source: Any, step: int) -> Any:
        """Batch ``step``; starts the next ones, at the distance of the last two steps."""
        if source is not self.source:
            self._abandon(lambda number: True)
            self.source, self.pickled, self.step, self.value = source, pickle.dumps(source), -1, None
        if step == self.step:
            return self.value
        stride = max(1, step - self.step) if self.step >= 0 else 1
        wanted = range(step, step + stride * self.most, stride)
        self._abandon(lambda number: number not in wanted)
        for number in wanted:
            if number not in self.waiting:
                self.waiting[number] = self._start(number)
        self.step, self.value = step, self.waiting.pop(step).result()
        return self.value

    def stop(self) -> None:
        """Returns at once. The folder goes when no worker writes to it any more."""

        def end() -> None:
            self.processes.shutdown(cancel_futures=True)
            self.readers.shutdown(cancel_futures=True)
            self.folder.cleanup()

        self._abandon(lambda number: True)
        threading.Thread(target=end).start()

    def _start(self, step: int) -> Future[Any]:
        path = os.path.join(self.folder.name, str(next(self.numbers)))
        return self.readers.submit(_read, self.processes.submit(_make, self.pickled, step, path), path)

    def _abandon(self, which: Callable[[int], bool]) -> None:
        for number in [n for n in self.waiting if which(n)]:
            self.waiting.pop(number).cancel()


_pools: dict[int, _Pool] = {}  # by number of workers; one at most


def _pool(workers: int) -> _Pool:
    if workers not in _pools:
        stop_workers()
        _pools[workers] = _Pool(workers)
    return _pools[workers]


def stop_workers() -> None:
    """End the processes after their current batches. The next request for a batch starts new ones."""
    while _pools:
        _pools.popitem()[1].stop()


# -- in a worker ----------------------------------------------------------------------------------------------------------------


def _begin() -> None:
    """One thread per worker; Ctrl-C is the training process's affair; and a worker ends when that process has ended, however it ended."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=1)
def _source(pickled: bytes) -> Any:
    return pickle.loads(pickled)


def _make(pickled: bytes, step: int, path: str) -> bytes:
    """Write the tensors of a batch to ``path``; returns the rest."""
    tensors: list[Tensor] = []
    size = 0

    def hole(tensor: Tensor) -> _Hole:
        nonlocal size
        last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.permute(0, 2, 3, 1).is_contiguous()
        tensors.append(tensor.permute(0, 2, 3, 1) if last else tensor.contiguous())
        start, size = size, size + -(-tensor.nbytes // _ALIGN) * _ALIGN
        return _Hole(start=start, dtype=tensor.dtype, shape=tuple(tensors[-1].shape), channels_last=last)

    rest = _shared_spans(_swap(_source(pickled)(step), Tensor, hole))
    with open(path, "wb") as f:
        for tensor in tensors:
            f.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            f.write(bytes(-tensor.nbytes % _ALIGN))
    return pickle.dumps(rest, protocol=5)


def _shared_spans(value: Any) -> Any:
    """Equal spans of different rows as one object: pickling a thousand span tables takes longer than everything else in a batch."""
    known: dict[Span, Span] = {}

    def shared(batch: Batch) -> Batch:
        return batch.replace(span_table=tuple(tuple(known.setdefault(s, s) for s in row) for row in batch.span_table))

    return _swap(value, Batch, shared)


# -- in the training process ------------------------------------------------------------------------------------------------------


def _read(made: Future[bytes], path: str) -> Any:
    """The batch that a worker has made. The file is deleted."""
    rest = pickle.loads(made.result())
    buffer = torch.empty(os.path.getsize(path), dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())
    view = buffer.numpy().data
    with open(path, "rb", buffering=0) as f:
        done = 0
        while done < len(view) and (count := f.readinto(view[done:])):
            done += count
    Path(path).unlink()

    def filled(hole: _Hole) -> Tensor:
        count = torch.Size(hole.shape).numel() * hole.dtype.itemsize
        tensor = buffer[hole.start : hole.start + count].view(hole.dtype).view(hole.shape)
        return tensor.permute(0, 3, 1, 2) if hole.channels_last else tensor

    return _swap(rest, _Hole, filled)


def _swap(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``value`` with ``change`` of every object of a type inside it: in batches, tuples, lists and dicts, to any depth."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Batch):
        inner = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return value.replace(**{name: change(part) for name, part in inner if isinstance(part, kind)})
    if isinstance(value, dict):
        return {key: _swap(part, kind, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_swap(part, kind, change) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_swap(part, kind, change) for part in value)
    return value
