"""A cache of vision features, so that every picture is encoded once.

Public idea: ``Features(most_bytes).of(sequences, net, device)``: the features of their pictures, keyed by pixel content.
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
    """Views of a picture [V, 3, H, W] -> feature rows [rows, D]."""

    def features(self, pixels: Tensor, /) -> Tensor: ...


class Features:
    """A least-recently-used cache, by network and picture. ``hits``, ``misses``: counters · ``bytes``: current size.

    Valid for fixed weights; ``clear`` it when they change. Every picture is encoded alone, with all its views, so its features are
    batch-invariant. Thread-safe.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hits = self.misses = self.bytes = 0
        self._rows: OrderedDict[tuple[int, bytes], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0

    def known(self, sequences: Items[Sequence], net: VisionEncoder, device: torch.device) -> list[Sequence]:
        """The sequences with the features of their pictures in place of the pixels."""
        return [self._known_of(sequence, net, device) for sequence in sequences]

    @torch.no_grad()
    def _known_of(self, sequence: Sequence, net: VisionEncoder, device: torch.device) -> Sequence:
        found = [self(v, lambda v=v: net.features(v.to(device)), net=net) for v in _views(sequence)]
        if not found:
            return sequence
        return replace(sequence, pixels=None, features=torch.cat(found) if len(found) > 1 else found[0])

    def __call__(self, pixels: Tensor, look: Callable[[], Tensor], *, net: object = None) -> Tensor:
        """The features of a picture; ``look`` computes them. ``net``: whose they are, where several networks share a cache."""
        key = id(net), _fingerprint(pixels)
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


def _views(sequence: Sequence) -> Iterator[Tensor]:
    """The views of every picture of a sequence, one tensor per picture."""
    if sequence.pixels is not None:
        first = sorted({span.image for span in sequence.spans if span.kind == Kind.FEATURE})
        yield from sequence.pixels.tensor_split(first[1:])


def _fingerprint(pixels: Tensor) -> bytes:
    """A hash of all views of a picture: shape, dtype and every bit."""
    content = hashlib.blake2b(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    content.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.digest()
