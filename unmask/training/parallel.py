"""Data parallelism between processes: each takes its own batches, gradients are averaged, every process takes the same step.

Public idea: ``join()`` gives this process its place (from torchrun's environment), ``launch(count, argv)`` starts the processes.
On a CPU this is also the reliable way to use several cores: one thread a process. (With two OpenMP threads a process was
seen to wait for ever in a convolution's barrier; see docs/log.md.)
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among ``world`` processes. ``rank`` 0 writes the files."""

    rank: int = 0
    world: int = 1

    def batch_number(self, step: int) -> int:
        """Which batch of the source this process takes at a step."""
        return step * self.world + self.rank

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over the processes, in place, as one flat buffer."""
        if self.world == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        offset = 0
        for t in tensors:
            t.copy_(flat[offset : offset + t.numel()].view_as(t))
            offset += t.numel()

    def leave(self) -> None:
        """End the group. Leftover references make gloo abort at exit, so collect them first."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            gc.collect()
            dist.destroy_process_group()


def join() -> Place:
    """The place that torchrun's (or ``launch``'s) environment names; alone where there is none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Place()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Place(rank=dist.get_rank(), world=world)


def launch(count: int, argv: Sequence[str]) -> int:
    """Run ``python argv`` in ``count`` processes of one thread each; the first failure ends them all. Returns the exit code."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, *argv], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(count)
    ]
    code = 0
    try:
        while workers:
            for worker in list(workers):
                try:
                    result = worker.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                workers.remove(worker)
                if result and not code:
                    code = result
                    for other in workers:
                        other.terminate()
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        raise
    return code
