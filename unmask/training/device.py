"""Where a run computes. Public idea: ``choose("auto") -> torch.device`` and ``move(batch, device)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unmask.checkpoints.device import DeviceUnavailable, available, find_device, parse_device
from unmask.sequence import Batch


def choose(name: str, *, local_rank: int = 0, world: int = 1) -> torch.device:
    """The device called ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto``: as in ``checkpoints.device.find_device``.

    ``local_rank``: number of this process on this machine. Of several processes each gets its own card under ``cuda`` and
    ``auto``. DeviceUnavailable for a device that is not there, or for one card that several processes would share.
    """
    found = find_device(name)
    kind, index = parse_device(found)
    if kind != "cuda":
        return torch.device(kind)
    if index is not None and world > 1:
        raise DeviceUnavailable(
            f"{world} processes cannot share {name}; use --device cuda, which gives each its own card"
        )
    if index is None and local_rank and f"cuda:{local_rank}" not in available():
        raise DeviceUnavailable(
            f"process {local_rank + 1} of this machine has no card of its own, there are {torch.cuda.device_count()}; "
            "use that many processes, or --device cpu"
        )
    return torch.device("cuda", local_rank if index is None else index)


@contextmanager
def many_shapes(device: torch.device) -> Iterator[None]:
    """On a GPU: attention by kernels that serve every shape. cuDNN makes a plan for each new one, which took a second for every batch of
    ``mini`` on an H200.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and device.type != "cuda")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def move(value: Any, device: torch.device) -> Any:
    """A source's batch on ``device``: tensors, ``Batch`` objects, and tuples, lists and dicts of them, to any depth.

    Anything else is returned as it is.
    """
    if isinstance(value, Batch):
        return value if value.device == device else _batch_on(value, device)
    if isinstance(value, Tensor):
        return _tensor_on(value, device)
    if isinstance(value, dict):
        return {key: move(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(part, device) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(move(part, device) for part in value)
    return value


def _batch_on(batch: Batch, device: torch.device) -> Batch:
    fields = ((f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch))
    return batch.replace(**{name: _tensor_on(part, device) for name, part in fields if isinstance(part, Tensor)})


def _tensor_on(tensor: Tensor, device: torch.device) -> Tensor:
    """From page-locked memory (``data.ahead``) the copy runs beside the computation; torch keeps the memory until it is done."""
    return tensor.to(device, non_blocking=device.type == "cuda" and tensor.is_pinned())
