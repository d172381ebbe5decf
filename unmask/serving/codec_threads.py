"""An image tokenizer whose work runs in a few threads, whichever thread asks for it.

Public idea: ``CodecThreads(2).of(codec)`` is the same codec. oneDNN and MKL keep up to 27 MB of buffers for every thread that has run a
convolution, until that thread ends, and a server has a thread for each call: its memory would follow the number of calls at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from unmask.protocols import Codec


class CodecThreads:
    """``threads``: how many pictures are encoded or decoded at the same time. Safe in any thread."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")

    def of(self, codec: Codec) -> Codec:
        """``codec``, whose methods run in these threads and wait for their result."""
        return _Elsewhere(codec, self._pool)

    def close(self) -> None:
        self._pool.shutdown()


class _Elsewhere:
    def __init__(self, codec: Codec, pool: ThreadPoolExecutor) -> None:
        self._codec, self._pool = codec, pool

    @property
    def size(self) -> int:
        return self._codec.size

    def encode(self, x: Tensor, /) -> Tensor:
        return self._pool.submit(_without_gradients, self._codec.encode, x).result()

    def decode(self, ids: Tensor, /) -> Tensor:
        return self._pool.submit(_without_gradients, self._codec.decode, ids).result()


def _without_gradients(work: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    with torch.no_grad():  # a setting of the thread
        return work(given)
