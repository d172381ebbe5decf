"""X-Streamer: a stream in chunks, each read whole by itself and by later ones, and denoised in a window of rising noise.

Paper: Xie et al., "X-Streamer: Unified Human World Modeling with Audiovisual Interaction", 2025, arXiv 2509.21574. No code was released;
the rules here follow the paper's wording.

Equations: a token reads another one if chunk(key) <= chunk(query): both ways inside a chunk, causally across chunks. Keys and values of
finished chunks therefore never change, and a memory of them is exact. In a window of W chunks with noise levels in W-ths,

    at tick k chunk k enters with level W; one pass lowers every chunk of the window by one; a chunk at 0 is finished

so chunk c is finished at tick c + W - 1, and each tick costs one pass over at most W chunks. Training draws an own level for every chunk
(``corruption.chunked.PerChunk``), so that a past with mistakes is no surprise. Reference tokens (who speaks, what is drawn) have order 0,
are read by all chunks and never noised.

What changes: the corruption, and the order in which chunks are denoised (``Pyramid``). Attention needs nothing new: a span with
``order_step`` n is read chunk by chunk of n tokens.

What it costs: W chunks a tick instead of one, and the first chunk comes after W ticks; with W = 1 a chunk is denoised alone in as many
passes as wanted.

Shapes: L tokens · D width · W chunks of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.corruption.chunked import PerChunk
from unmask.methods.card import Card

Memory = tuple[Tensor, ...]  # keys and values of finished chunks, [L, D] each, layer by layer


def visible(chunk_L: Tensor) -> Tensor:
    """Which token (row) reads which (column), [L, L]."""
    return chunk_L[None, :] <= chunk_L[:, None]


class ChunkAttention(nn.Module):
    """One head over a stream, without positions or feed-forward: x + softmax(x Q (x K)^T / sqrt(D)) x V."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x_LD: Tensor, keys_MD: Tensor, values_MD: Tensor, attend_LM: Tensor | None = None) -> Tensor:
        """``keys``, ``values``: of every token that may be read · ``attend``: which of them; None: all."""
        scores = self.query(x_LD) @ keys_MD.T / math.sqrt(x_LD.shape[-1])
        if attend_LM is not None:
            scores = scores.masked_fill(~attend_LM, -torch.inf)
        return x_LD + scores.softmax(-1) @ values_MD


class Actor(nn.Module):
    """Layers of chunk attention, over a whole stream or chunk by chunk with a memory."""

    def __init__(self, layers: list[ChunkAttention]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def _layers(self) -> Iterator[ChunkAttention]:
        return (layer for layer in self.layers if isinstance(layer, ChunkAttention))

    def forward(self, x_LD: Tensor, chunk_L: Tensor) -> Tensor:
        """All chunks at once."""
        attend = visible(chunk_L)
        for layer in self._layers:
            x_LD = layer(x_LD, layer.key(x_LD), layer.value(x_LD), attend)
        return x_LD

    def step(self, x_LD: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """One chunk after those of the memory, and the memory with it."""
        kept: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            own = (layer.key(x_LD), layer.value(x_LD))
            keys, values = own if not memory else (torch.cat([memory[2 * number + i], own[i]]) for i in (0, 1))
            kept += [keys, values]
            x_LD = layer(x_LD, keys, values)
        return x_LD, tuple(kept)


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A chunk in a pass: its number, and its noise level in ``window``-ths before and after."""

    chunk: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The passes over an endless stream, or one of ``chunks`` chunks."""

    window: int = 4

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window needs at least one chunk, got {self.window}")

    def ticks(self, chunks: int | None = None) -> Iterator[tuple[Lowered, ...]]:
        """The chunks of each pass, the oldest first; those with ``after`` 0 are finished."""
        tick = 0
        while chunks is None or tick < chunks + self.window - 1:
            last = tick if chunks is None else min(tick, chunks - 1)
            first = max(0, tick - self.window + 1)
            yield tuple(
                Lowered(chunk=c, before=self.level(c, tick), after=self.level(c, tick) - 1)
                for c in range(first, last + 1)
            )
            tick += 1

    def level(self, chunk: int, tick: int) -> int:
        """The level of a chunk in the window before a tick."""
        return self.window - (tick - chunk)


CARD = Card(
    title="X-Streamer: Unified Human World Modeling with Audiovisual Interaction",
    paper="arXiv 2509.21574",
    year=2025,
    changes="corruption and order: chunks with own noise levels, denoised in a window of rising noise with an exact memory",
    claim="One model streams text, speech and video in real time for long conversations.",
    status="reference",
    paper_figure="25 frames a second on two A100; FVD 573.36",
    parts={"Corruption": (PerChunk(), PerChunk(clean=0.5))},
    python="from unmask.methods.x_streamer import Actor, ChunkAttention, Pyramid, visible",
)
