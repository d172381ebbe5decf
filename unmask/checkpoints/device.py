"""The device that a model runs on, by name. Public idea: ``find_device("auto") -> "cuda"``, "mps" or "cpu", the first that is there."""

from __future__ import annotations

import torch

AUTO = "auto"
KINDS = ("cuda", "mps", "cpu")  # best first


class DeviceUnavailable(ValueError):
    """A device that this machine does not have; the message lists those that it has."""


def available() -> list[str]:
    """The devices of this machine, best first: ``["cuda:0", "cuda:1", "mps", "cpu"]`` at most."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def find_device(name: str | torch.device = AUTO) -> str:
    """The name of a device that is here; ``auto``: CUDA, else MPS, else the CPU. DeviceUnavailable for any other name.

    ``cuda`` stays ``cuda``, which is torch's current card.
    """
    if not isinstance(name, str | torch.device):
        raise DeviceUnavailable(f"device must be a name such as 'cuda', got {name!r}; {_hint()}")
    kind, index = parse_device(name)
    found = available()
    if kind == AUTO:
        return found[0].partition(":")[0]
    if index is None or kind != "cuda":
        there = any(f.partition(":")[0] == kind for f in found) and not index
    else:
        there = f"cuda:{index}" in found
    if not there:
        raise DeviceUnavailable(f"the device {str(name)!r} is not available here{_why(kind)}; {_hint()}")
    return kind if index is None or kind != "cuda" else f"cuda:{index}"


def parse_device(name: str | torch.device) -> tuple[str, int | None]:
    """("cuda", 1) of ``cuda:1``, which need not exist here. DeviceUnavailable for a name that is not a device of this package."""
    kind, colon, index = str(name).strip().lower().partition(":")
    if kind not in (AUTO, *KINDS) or (colon and (kind == AUTO or not index.isdecimal())):
        raise DeviceUnavailable(f"{str(name)!r} is not a device that unmask runs on; {_hint()}")
    return kind, int(index) if colon else None


def refuse_dtypes(device: str, dtypes: set[torch.dtype]) -> None:
    """DeviceUnavailable for a data type that MPS does not have: float64, and before macOS 14 bfloat16."""
    if not device.startswith("mps"):
        return
    if torch.float64 in dtypes:
        raise DeviceUnavailable("MPS has no float64, which these weights are stored in; use --dtype float32")
    if torch.bfloat16 in dtypes and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise DeviceUnavailable("MPS has bfloat16 from macOS 14 on; use --dtype float32, or float16")


def _why(kind: str) -> str:
    if kind == "cuda" and not torch.backends.cuda.is_built():
        return " (this PyTorch was built without CUDA)"
    if kind == "mps" and not torch.backends.mps.is_built():
        return " (this PyTorch was built without MPS)"
    return ""


def _hint() -> str:
    return f"use {AUTO} or {' or '.join(available())}"
