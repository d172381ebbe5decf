"""Pictures that were looked at before need no second look.

Public idea: ``Features(most_bytes).known(sequences, net, device)``: the sequences with the features of their pictures, each encoded
once and remembered by its content.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
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
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0

    def known(self, sequences: Items[Sequence], net: VisionEncoder, device: torch.device) -> list[Sequence]:
        """The sequences with the features of their pictures in place of the pixels."""
        return [self._known_of(sequence, net, device) for sequence in sequences]

    @torch.no_grad()
    def _known_of(self, sequence: Sequence, net: VisionEncoder, device: torch.device) -> Sequence:
        found = [self(v, lambda v=v: net.features(v.to(device))) for v in _looks(sequence)]
        if not found:
            return sequence
        return replace(sequence, pixels=None, features=torch.cat(found) if len(found) > 1 else found[0])

    def __call__(self, pixels: Tensor, look: Callable[[], Tensor]) -> Tensor:
        key = _fingerprint(pixels)
        with self._lock:
            if key in self._rows:
                self.hits += 1
                self._rows.move_to_end(key)
                return self._rows[key]
            self.misses += 1
        seen = look()
        with self._lock:
            if key not in self._rows:
                self._rows[key] = seen
                self.bytes += seen.nbytes
            while self.bytes > self.most_bytes:
                _, forgotten = self._rows.popitem(last=False)
                self.bytes -= forgotten.nbytes
        return seen


def _looks(sequence: Sequence) -> Iterator[Tensor]:
    """The views of every picture that is looked at, apart."""
    if sequence.pixels is not None:
        first = sorted({span.image for span in sequence.spans if span.kind == Kind.FEATURE})
        yield from sequence.pixels.tensor_split(first[1:])


def _fingerprint(pixels: Tensor) -> bytes:
    """All views of a picture together, as they are seen together: shape, type and every bit."""
    content = hashlib.blake2b(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    content.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.digest()
