"""Data parallelism: the processes of a run share the source batches of each update, sum their gradients, and make the same update.

Public idea: ``join()`` returns the place of this process (from torchrun's environment), ``launch(count, argv)`` starts the processes by
torchrun. What a run learns does not depend on the number of processes: an update always has ``training.accumulate`` source batches.
Several processes are also the reliable way to use several CPU cores, with one thread each: two OpenMP threads in one process can
deadlock in a convolution (docs/log.md).
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.training.device import choose

T = TypeVar("T")
_OWN_RUNS = "unmask-"  # how the ids of runs begin that ``launch`` starts
_FROM_ANOTHER = re.compile(
    r"[Cc]onnection (closed|reset)|gloo|NCCL|Broken pipe"
)  # what a collective raises when a process is gone
_WAIT_FOR_FIRST, _WAIT_FOR_CAUSE = 5.0, 20.0  # seconds
WAIT_FOR_OTHERS = 7200  # seconds: the first process evaluates while the others wait for it
_PATIENCE = 3600  # seconds in which the processes may finish their step and save


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among ``world`` processes; ``local_rank`` counts those of this machine. ``rank`` 0 writes what is written once.

    ``launcher``: id of the process of torchrun that started this one.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launcher: int | None = None

    def share(self, first: int, end: int) -> range:
        """Numbers of the source batches among ``first..end`` that this process takes."""
        return range(first + self.rank, end, self.world)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor on the CPU over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, values: list[T]) -> list[T]:
        """The values of all processes, in all processes."""
        if self.world == 1:
            return values
        found: list[list[T]] = [[]] * self.world
        dist.all_gather_object(found, values)
        return [value for part in found for value in part]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process; all get the same answers, so that they stop after the same step."""
        if self.world == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.float32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(f) for f in found]

    def abandoned(self) -> bool:
        """Whether the process that started this one is gone. The processes of a run then save and end: nobody else would end them."""
        return self.launcher is not None and os.getppid() != self.launcher

    def let_others_speak(self, error: Exception) -> None:
        """Wait before an error is printed that other processes may print too, or that only follows from the end of another one: torchrun
        ends all processes when the first has ended. The first process waits for nobody with an error of its own.
        """
        if self.world > 1 and (follows(error) or self.rank > 0):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun knows the cause: nothing is left to say
            time.sleep(_WAIT_FOR_CAUSE if follows(error) else _WAIT_FOR_FIRST)

    def leave(self) -> None:
        """Leave the group when all processes have come this far. Garbage that refers to it would make gloo abort at exit."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            gc.collect()
            dist.destroy_process_group()


def follows(error: Exception) -> bool:
    """Whether an error only follows from the end of another process."""
    return isinstance(error, RuntimeError) and bool(_FROM_ANOTHER.search(str(error)))


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
        dist.init_process_group(backend(chosen), timeout=timedelta(seconds=WAIT_FOR_OTHERS))
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return Place(rank=dist.get_rank(), world=world, local_rank=local_rank, launcher=launcher)


def backend(device: torch.device) -> str:
    """torch.distributed's backends for processes that compute on this device: what is on the CPU travels by gloo."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def refuse_idle(accumulate: int, world: int, *, equal: bool = False) -> None:
    """ValueError where an update has fewer source batches than there are processes to share them, or cannot be shared equally."""
    if equal and accumulate % world:
        raise ValueError(
            f"training.shard needs equal shares, and {world} processes cannot share training.accumulate={accumulate} equally; "
            f"use -o training.accumulate={-(-accumulate // world) * world}"
        )
    if world > accumulate:
        raise ValueError(
            f"{world} processes cannot share an update of training.accumulate={accumulate} source batches; "
            f"use {'one process' if accumulate == 1 else f'at most {accumulate} processes'}, "
            f"or -o training.accumulate={world} for updates from {world} batches"
        )


def launched() -> bool:
    """Whether ``launch`` started this process. The one that called it then tells the user how a run ended."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(_OWN_RUNS)


def launch(count: int, argv: Sequence[str]) -> int:
    """Run ``python argv`` in ``count`` processes of one thread each, by torchrun. The first failure ends all. Returns the exit code.

    Ctrl-C and SIGTERM reach the processes; KeyboardInterrupt is raised when all have ended. A second Ctrl-C ends them at once.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    place = ["--nnodes=1", f"--nproc-per-node={count}", "--max-restarts=0", "--monitor-interval=0.2"]
    place += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--rdzv-id={_OWN_RUNS}{os.getpid()}"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torchrun sets it with a warning
    given = torchrun.parse_args([*place, "--local-addr=127.0.0.1", "--no-python", sys.executable, *argv])
    with _patient(), _quiet_log(), _signals_restored():
        try:
            torchrun.run(given)
        except ChildFailedError as error:
            return _exit_code(error.get_first_failure()[1].exitcode)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if type(error).__name__ != "SignalException":  # torch has no public name for it
                raise
            raise KeyboardInterrupt from None
    return 0


def _exit_code(code: int) -> int:
    """As a shell gives it: 128 + the number of the signal that ended a process."""
    return 128 - code if code < 0 else code


@contextmanager
def _patient() -> Iterator[None]:
    """torchrun kills processes that have not ended some time after a signal: give them enough to finish a step and to save."""
    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = before or str(_PATIENCE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """torchrun logs signals and failures at length; the processes have already said what there is to say."""
    import torch.distributed.launcher.api  # its loggers are made by then

    assert torch.distributed.launcher.api
    loggers = [logging.getLogger(n) for n in logging.root.manager.loggerDict if n.startswith("torch.distributed.")]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextmanager
def _signals_restored() -> Iterator[None]:
    """torchrun handles signals and does not give them back. Until it does, SIGTERM is KeyboardInterrupt, as Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # Windows has only the first two
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
