"""A state in parts: the processes of a run write it together, each its own file, while training continues.

Public idea: ``Parts(...).save(state, saved)`` returns when the state is copied, ``wait()`` when it is on disk; ``fill(state, path)``
reads it into tensors that are sharded or not, over any number of processes.

torch.distributed.checkpoint plans, writes and reshards. Its files are safetensors here, and the index is JSON: the library's usual
metadata file is a pickle, which can run code when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    TensorStorageMetadata,
    async_save,
    load,
)
from torch.distributed.tensor import DTensor

from unmask.training.optim import refuse_other
from unmask.training.parallel import WAIT_FOR_OTHERS, Place
from unmask.training.states import INDEX, PART, Saved, forget, remove, sizes, what_to_do
from unmask.writing import refuse_full, sync, write_text


class Parts:
    """Writes states of a run into ``folder``, one at a time, in a thread of every process. All processes must call its methods."""

    def __init__(self, folder: Path, place: Place, keep: int) -> None:
        self.folder, self.place, self.keep = folder, place, keep
        # A group of its own: messages of the background must not mix with those of the training. It must be on the CPU.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_FOR_OTHERS))
        assert isinstance(group, dist.ProcessGroup)
        self.group = group
        self.threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self.pending: Future[None] | None = None

    def save(self, state: Mapping[str, Tensor], saved: Saved) -> None:
        """Copy this process's part of the state and begin to write it. OSError where the save before could not be written."""
        self.wait()
        own = own_part(state, self.place)
        self._refuse_full(own)
        part = self.folder / f"state-{saved.step}{PART}"
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        written = async_save(own, storage_writer=writer, process_group=self.group)
        assert isinstance(written, Future)  # the writer copies the state itself, before async_save returns
        self.pending = self.threads.submit(self._finish, written, part, saved)

    def _refuse_full(self, own: Mapping[str, Tensor]) -> None:
        """OSError, in all processes, where the disk has no room for the parts of all."""
        tensors = (t.to_local() if isinstance(t, DTensor) else t for t in own.values())
        needed = sum(self.place.gather([sum(t.nbytes for t in tensors)]))
        full: list[str] = []
        try:
            refuse_full(self.folder, needed)
        except OSError as error:
            full = [str(error.strerror)]
        if found := self.place.gather(full):
            raise OSError(f"could not save the checkpoint in {self.folder}: {found[0]}; the previous one is intact")

    def failed(self) -> bool:
        """Whether the last save is over and has failed; ``wait`` raises its error."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def wait(self) -> None:
        """Return when the last save is on disk. OSError where this is not possible, in every process that knows."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _finish(self, written: Future[object], part: Path, saved: Saved) -> None:
        """When all processes have written, the first adds the index and gives the state its name."""
        try:
            written.result()
            if self.place.rank == 0:
                self._publish(part, saved)
        except (CheckpointException, OSError, RuntimeError) as error:
            if self.place.rank == 0:
                remove(part)
            raise OSError(
                f"could not save the checkpoint in {self.folder}: {_cause(error)}; the previous one is intact"
            ) from error

    def _publish(self, part: Path, saved: Saved) -> None:
        index = {name: value for name, value in dataclasses.asdict(saved).items() if value is not None}
        for name in (files := sizes(part)):
            sync(part / name)
        write_text(part / INDEX, json.dumps(index | {"files": files}))
        os.rename(part, part.with_name(part.name.removesuffix(PART)))
        sync(self.folder)
        forget(self.folder, self.keep)


def own_part(state: Mapping[str, Tensor], place: Place) -> dict[str, Tensor]:
    """What this process writes: its shards, and of the whole tensors, which all processes have, those that make the parts equally large.
    Buffers are those of the first process.
    """
    own, load = {}, [0] * place.world
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            own[name] = tensor
            continue
        rank = 0 if name.startswith("buffer.") else load.index(min(load))
        load[rank] += tensor.numel()
        if rank == place.rank:
            own[name] = tensor
    return own


def fill(state: dict[str, Tensor], path: Path) -> None:
    """Read a state in parts into the tensors of ``state``, in place. ValueError where it is damaged or does not fit them."""
    reader = HuggingFaceStorageReader(str(path))
    try:
        entries = reader.read_metadata().state_dict_metadata
        there = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        refuse_other(there, state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(state, storage_reader=reader, no_dist=True)  # each process reads what it needs
    except (CheckpointException, SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {_cause(error)}; {what_to_do(path)}") from error


def _cause(error: BaseException) -> str:
    """The first error of a process, in one line; the library lists all of them with their traces."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
