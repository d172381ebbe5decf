"""Data parallelism: each process takes its own batches, gradients are averaged, and all make the same update.

Public idea: ``join()`` returns the place of this process (from torchrun's environment), ``launch(count, argv)`` starts the processes.
It is also the reliable way to use several CPU cores, with one thread per process: two OpenMP threads in one process can
deadlock in a convolution (docs/log.md).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.training.device import choose


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among ``world`` processes; ``local_rank`` counts those of this machine. ``rank`` 0 writes the files."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def batch_number(self, step: int) -> int:
        """Number of the source batch that this process takes at a step."""
        return step * self.world + self.rank

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over the processes, in place, as one flat buffer."""
        if self.world == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        if flat.device.type == "mps":
            flat = flat.cpu()  # gloo does not support mps
        dist.all_reduce(flat)
        flat /= self.world
        offset = 0
        for t in tensors:
            t.copy_(flat[offset : offset + t.numel()].view_as(t))
            offset += t.numel()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all get the same answer, so that they stop after the same step."""
        if self.world == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flags = torch.tensor([float(flag)], device=device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def leave(self) -> None:
        """Leave the group when all processes have come this far. Garbage that refers to it would make gloo abort at exit."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            gc.collect()
            dist.destroy_process_group()


def join(device: str = "cpu") -> Place:
    """The place that the environment of torchrun or ``launch`` names; a single process without one.

    ``device``: as in ``Training.device``. CUDA devices use nccl, all others gloo.
    DeviceUnavailable as in ``device.choose``.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Place()
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if not dist.is_initialized():
        chosen = choose(device, local_rank=local_rank, world=world)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        # Two hours, because the first process evaluates and saves while the others wait for it.
        dist.init_process_group(backend(chosen), timeout=timedelta(hours=2))
    return Place(rank=dist.get_rank(), world=world, local_rank=local_rank)


def backend(device: torch.device) -> str:
    """Name of torch.distributed's backend for processes that compute on this device."""
    return "nccl" if device.type == "cuda" else "gloo"


def launch(count: int, argv: Sequence[str]) -> int:
    """Run ``python argv`` in ``count`` processes of one thread each. The first failure ends all. Returns the exit code.

    Ctrl-C and SIGTERM reach the processes as SIGTERM; KeyboardInterrupt is raised when all have ended. A second one kills them.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, *argv], env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]
    with _sigterm_is_ctrl_c():
        try:
            return _wait(workers)
        except KeyboardInterrupt:
            try:
                _end(workers)
            except KeyboardInterrupt:
                for worker in workers:
                    worker.kill()
            raise


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    code, left = 0, list(workers)
    while left:
        for worker in list(left):
            try:
                result = worker.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
            left.remove(worker)
            if result and not code:
                code = result
                for other in left:
                    other.terminate()
    return code


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt too, where Python lets a signal be handled: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
