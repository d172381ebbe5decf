"""Pictures that were looked at before need no second look.

Public idea: ``Features(most_bytes).of(sequences, net, device)``: the features of their pictures, each encoded once and remembered by
its content.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Protocol

import torch
from torch import Tensor

from unmask.sequence import Kind, Sequence


class VisionEncoder(Protocol):
    """Views of a picture [V, 3, H, W] -> what they look like, [rows, D]."""

    def features(self, pixels: Tensor, /) -> Tensor: ...


class Features:
    """The least recently used are forgotten first. ``hits``, ``misses``: how often it knew, and did not; ``bytes`` it holds now.

    It belongs to weights that do not change; ``clear`` it where they do. A picture is encoded alone, with all its views, so that what it
    looks like never depends on the pictures beside it. Safe in any thread.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hits = self.misses = self.bytes = 0
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._known.clear()
            self.bytes = 0

    @torch.no_grad()
    def of(self, sequences: Items[Sequence], net: VisionEncoder, device: torch.device) -> Tensor | None:
        """The rows that ``Batch.feature`` numbers for these sequences; None where they have no picture."""
        views = [shown for sequence in sequences for shown in _looks(sequence)]
        return torch.cat([self(v, lambda v=v: net.features(v.to(device))) for v in views]) if views else None

    def __call__(self, pixels: Tensor, look: Callable[[], Tensor]) -> Tensor:
        key = _fingerprint(pixels)
        with self._lock:
            if key in self._known:
                self.hits += 1
                self._known.move_to_end(key)
                return self._known[key]
            self.misses += 1
        seen = look()
        with self._lock:
            if key not in self._known:
                self._known[key] = seen
                self.bytes += seen.nbytes
            while self.bytes > self.most_bytes:
                _, forgotten = self._known.popitem(last=False)
                self.bytes -= forgotten.nbytes
        return seen


def _looks(sequence: Sequence) -> Iterator[Tensor]:
    """The views of every picture that is looked at, apart."""
    if sequence.pixels is not None:
        first = sorted({span.image for span in sequence.spans if span.kind == Kind.PATCH})
        yield from sequence.pixels.tensor_split(first[1:])


def _fingerprint(pixels: Tensor) -> bytes:
    """All views of a picture together, as they are seen together: shape, type and every bit."""
    content = hashlib.blake2b(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    content.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.digest()
