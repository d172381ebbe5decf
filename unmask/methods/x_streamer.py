"""X-Streamer: a stream in chunks, each read whole by itself and by later ones, and denoised in a window of rising noise.

Paper: Xie et al., "X-Streamer: Unified Human World Modeling with Audiovisual Interaction", 2025, arXiv 2509.21574. No code was released;
the rules here follow the paper's wording.

Equations: a token reads another one if chunk(key) <= chunk(query): both ways inside a chunk, causally across chunks. Keys and values of
finished chunks therefore never change, and a memory of them is exact. In a window of W chunks with noise levels in W-ths,

    at tick k chunk k enters with level W; one pass lowers every chunk of the window by one; a chunk at 0 is finished

so chunk c is finished at tick c + W - 1, and each tick costs one pass over at most W chunks. Training draws a level for every chunk
(``corruption.chunked.PerChunk``), so the model learns to continue imperfect chunks. Reference tokens (who speaks, what is drawn) have
order 0, are read by all chunks and never noised.

What changes: the corruption, and the order in which chunks are denoised (``Pyramid``). Attention needs nothing new: a span with
``order_step`` n is read chunk by chunk of n tokens.

What it costs: W chunks a tick instead of one, and the first chunk comes after W ticks; with W = 1 a chunk is denoised alone in as many
passes as wanted.

Shapes: L tokens · D width · W chunks of a window · B rows · N chunks of C tokens · A tokens of an anchor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.corruption.chunked import PerChunk
from unmask.methods.card import Card
from unmask.protocols import Denoiser
from unmask.sequence import Batch
from unmask.step import Prediction, Reuse

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


class Rows(Protocol):
    """``(ids [B, N, C], masked [B, N, C], anchor [B, A] or None) -> batch`` of N chunks of C tokens behind the anchor's tokens; every chunk
    has an order of its own.
    """

    def __call__(self, ids: Tensor, masked: Tensor, anchor: Tensor | None, /) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class Streamer:
    """An endless stream of chunks of masked tokens: at each tick one chunk enters with its given tokens, and one leaves.

    ``net``, ``rows``: what is drawn · ``open [C]``: the tokens of a chunk to draw; the others are given · ``past``: finished chunks that
    are read, so the cost of a tick is constant · ``pyramid``: the window · ``passes``: of a tick; those after the first compute the
    open chunks alone · ``cached``: False computes everything in each · ``only``: ids that tokens of a kind may get.
    """

    net: Denoiser
    rows: Rows
    open: Tensor
    past: int = 3
    pyramid: Pyramid = Pyramid(window=1)
    passes: int = 3
    temperature: float = 1.0
    cached: bool = True
    only: Mapping[int, range] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(
        self,
        given: Iterable[Tensor],
        anchor: Callable[[int], Tensor | None],
        rng: torch.Generator,
        before: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Finished chunks [B, C]. ``given``: of each chunk, [B, C] with anything where tokens are open; requested when the chunk enters ·
        ``anchor(tick)``: reference tokens [B, A] that this tick reads · ``before [B, N, C]``: chunks that precede the stream.
        """
        done = [] if before is None else list(before.unbind(1))
        live: list[tuple[Tensor, Tensor, int]] = []  # ids, masked, level
        source, tick = iter(given), 0
        while True:
            new = next(source, None)
            if new is not None:
                live.append((new, self.open.expand_as(new).clone(), self.pyramid.window))
            if not live:
                return
            done = done[-self.past :] if self.past else []
            live = self._lowered(done, live, anchor(tick), rng)
            while live and live[0][2] == 0:
                done.append(live.pop(0)[0])
                yield done[-1]
            tick += 1

    def _lowered(
        self,
        done: list[Tensor],
        live: list[tuple[Tensor, Tensor, int]],
        anchor: Tensor | None,
        rng: torch.Generator,
    ) -> list[tuple[Tensor, Tensor, int]]:
        """The open chunks, one level lower."""
        ids = torch.stack([*done, *(one[0] for one in live)], 1)
        masked = torch.stack([*(torch.zeros_like(d, dtype=torch.bool) for d in done), *(one[1] for one in live)], 1)
        count, state = int(self.open.sum()), None
        for number in range(self.passes):
            batch = self.rows(ids, masked, anchor)
            chunks = batch.ids.shape[1] - ids[0].numel()  # tokens before the chunks
            fresh = torch.ones_like(batch.masked)
            fresh[:, : chunks + len(done) * ids.shape[2]] = number == 0
            keep = fresh.clone()
            keep[:, chunks + len(done) * ids.shape[2] :] = False
            reuse = Reuse(compute=fresh, keep=keep, state=state) if self.cached and self.passes > 1 else None
            found = self.net(batch, predict=batch.masked, reuse=reuse)
            state = found.state
            drawn, score = self._drawn(batch, found, rng)
            drawn, score = (part[:, chunks:].view_as(ids) for part in (drawn, score))
            ids, masked = ids.clone(), masked.clone()
            for n, (_, _, level) in enumerate(live):
                share = (level - (number + 1) / self.passes) / self.pyramid.window
                here = len(done) + n
                take = _best(masked[:, here], score[:, here], round(share * count))
                ids[:, here] = torch.where(take, drawn[:, here], ids[:, here])
                masked[:, here] &= ~take
        return [(ids[:, len(done) + n], masked[:, len(done) + n], live[n][2] - 1) for n in range(len(live))]

    def _drawn(self, batch: Batch, found: Prediction, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A candidate for every scored token, and its log probability, [B, L]."""
        ids, score = batch.ids.flatten().clone(), torch.full((batch.ids.numel(),), -torch.inf)
        for kind, scored in found.scored.items():
            if not len(scored.at):
                continue
            assert scored.logits is not None
            logits = scored.logits.float()
            if kind in self.only:
                allowed = torch.zeros(logits.shape[1], dtype=torch.bool)
                allowed[list(self.only[kind])] = True
                logits = logits.masked_fill(~allowed, -torch.inf)
            log_p = (logits / max(self.temperature, 1e-4)).log_softmax(1)
            chosen = torch.multinomial(log_p.exp(), 1, generator=rng)[:, 0]
            ids[scored.at] = chosen
            score[scored.at] = log_p.gather(1, chosen[:, None])[:, 0]
        return ids.view_as(batch.ids), score.view_as(batch.ids)


def _best(masked: Tensor, score: Tensor, left: int) -> Tensor:
    """The masked tokens with the highest scores, so that ``left`` of each row stay masked, [B, C]."""
    order = score.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(masked.shape[1]).expand_as(order))
    return masked & (rank < (masked.sum(1, keepdim=True) - left).clamp(min=0))


CARD = Card(
    title="X-Streamer: Unified Human World Modeling with Audiovisual Interaction",
    paper="arXiv 2509.21574",
    year=2025,
    changes="corruption and order: chunks with separate noise levels, denoised in a window of rising noise with an exact memory",
    claim="One model streams text, speech and video in real time for long conversations.",
    status="reference",
    figure="a talking drawing after 60 s, 1,000 updates, 8 seeds: the face is right in .955 [.878, 1.031] of the streams with "
    "own levels and no anchor, in .841 [.589, 1.094] behind a clean past; an anchor of a second every four changes it by +.045 "
    "[-.031, .121], own levels by +.113 [-.135, .361]: neither is seen, where 250 updates left .212 without an anchor and "
    ".906 with it always in view; a chunk of 250 ms takes 9.7 ms by the clock at the median and 14.6 at the 95th percentile",
    paper_figure="25 frames a second on two A100; FVD 573.36",
    parts={"Corruption": (PerChunk(), PerChunk(clean=0.5))},
    recipe="x_streamer.talker",
    command="unmask serve runs/talker",
    python="from unmask.methods.x_streamer import Actor, ChunkAttention, Pyramid, Streamer, visible",
)
