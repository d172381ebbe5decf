"""Keyed random numbers: what is drawn depends on a key, never on who else is drawing.

Public idea: ``generator(*key)``; ``rows(batch, purpose)`` gives one generator a row, keyed by (row seed, row clock, purpose);
``seeded(make, seed)`` for the first weights of layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from unmask.derived import numbers
from unmask.sequence import Batch

T = TypeVar("T")


def key(*parts: object) -> int:
    """A 63-bit seed from any printable parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by the key, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(key(*parts))


def seeded(make: Callable[[], T], seed: int) -> T:
    """What ``make()`` returns if layers draw their first weights from ``seed``. torch's own stream is afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the streams of accelerators, too
        return make()


def rows(batch: Batch, purpose: str) -> list[torch.Generator]:
    """One generator for each row, keyed by the row's seed and clock and the purpose."""
    pairs = zip(numbers(batch.seed), numbers(batch.clock), strict=True)
    return [generator(seed, clock, purpose) for seed, clock in pairs]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device, without waiting for what the device still has to do."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
