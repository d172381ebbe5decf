"""Rows of ``x_streamer``: chunks of a talking face, each with a syllable and a move that are given, a sound, and picture codes.

Public ideas: ``played(face, place, said, moves)`` is what a face does, ``rows`` puts chunks into a batch, ``drive`` makes up both streams.

Shapes: B rows · N chunks · C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from unmask.data.world import puppet
from unmask.data.world.puppet import SOUNDS, SQUARES, VOICES, Look, Moment
from unmask.sequence import Batch, Kind, Sequence, Span, collate

MOVE, SOUND = SOUNDS, SOUNDS + 3  # first ids of moves and sounds; syllables come first
MASK = SOUND + VOICES
TOKENS = 3 + SQUARES
OPEN = torch.arange(TOKENS) >= 2
CHUNKS = 5  # of a training row, and of the window that a tick reads
_BATCH = 16


def tokens(moment: Moment, syllable: int, move: int) -> Tensor:
    """The ids of a chunk, [TOKENS]."""
    given = torch.tensor([syllable, MOVE + move + 1, SOUND + moment.sound])
    return torch.cat([given, puppet.codes_of(moment.look)])


@lru_cache(maxsize=32)
def _template(rows: int, chunks: int, anchored: bool) -> Batch:
    spans, start = list[Span](), 0
    if anchored:
        spans.append(Span(name="anchor", kind=Kind.CODE, start=0, stop=SQUARES, grid=(3, 3)))
        start = SQUARES
    for n in range(chunks):
        for name, kind, length in (("given", Kind.TEXT, 2), ("sound", Kind.TEXT, 1), ("frame", Kind.CODE, SQUARES)):
            grid, order = (3, 3) if kind == Kind.CODE else None, n + 1
            stop, writable = start + length, name != "given"
            spans.append(Span(name=name, kind=kind, start=start, stop=stop, grid=grid, order=order, writable=writable))
            start = stop
    ids = torch.zeros(start, dtype=torch.long)
    row = Sequence(ids=ids, masked=ids.bool(), spans=tuple(spans))
    return collate([row] * rows, range(rows))


def rows(ids: Tensor, masked: Tensor, anchor: Tensor | None) -> Batch:
    """Chunks [B, N, C], after the codes of a face [B, squares]; each chunk reads those before it and the anchor."""
    flat, hidden = ids.flatten(1), masked.flatten(1)
    if anchor is not None:
        flat, hidden = torch.cat([anchor, flat], 1), torch.cat([torch.zeros_like(anchor, dtype=torch.bool), hidden], 1)
    return _template(len(ids), ids.shape[1], anchor is not None).replace(ids=flat, masked=hidden, clean=flat)


def drive(rng: Random, chunks: int) -> tuple[list[int], list[int]]:
    """Syllables of words, and moves that last for some chunks."""
    said, moves = list[int](), list[int]()
    while len(said) < chunks:
        said += [rng.randrange(1, SOUNDS) for _ in range(rng.randint(2, 5))] + [0]
    while len(moves) < chunks:
        moves += [rng.choice((-1, 0, 0, 1))] * rng.randint(1, 3)
    return said[:chunks], moves[:chunks]


def played(face: int, place: int, said: Iterable[int], moves: Iterable[int]) -> Tensor:
    """The chunks of a face, [N, C]."""
    driven = list(zip(said, moves, strict=False))
    seen = puppet.follow(face, place, (s for s, _ in driven), (m for _, m in driven))
    return torch.stack([tokens(moment, s, m) for moment, (s, m) in zip(seen, driven, strict=True)])


def anchor_of(face: int) -> Tensor:
    """The codes of a face at rest, [squares]."""
    return puppet.codes_of(Look(face=face, place=1, mouth=0, eyes=0))


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Rows of ``CHUNKS`` chunks of random faces; every other batch has anchors."""

    seed: int

    def __call__(self, step: int) -> Batch:
        rng = Random(f"x streamer/{self.seed}/{step}")
        faces = [rng.randrange(puppet.FACES) for _ in range(_BATCH)]
        ids = torch.stack([played(face, rng.randrange(3), *drive(rng, CHUNKS)) for face in faces])
        anchor = torch.stack([anchor_of(face) for face in faces]) if step % 2 else None
        return rows(ids, torch.zeros_like(ids, dtype=torch.bool), anchor)


def given(syllable: int, move: int) -> Tensor:
    """A chunk to draw, [C]."""
    return torch.cat([torch.tensor([syllable, MOVE + move + 1]), torch.zeros(TOKENS - 2, dtype=torch.long)])
