"""What a wave front of unfinished positions is made of: its state, the noise in it, and the rules that freeze positions.

Public ideas: ``Wave``, and freezing rules ``(wave, rounds) -> Judged``; ``methods.recurrent_depth`` has the rounds and the paper.

Shapes: n positions of the window · S positions of the memory · D width of a state · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Memory = tuple[Tensor, ...]  # what a network keeps of positions, each [S, ..]
Fresh = Callable[[int], Tensor]  # random states of so many positions, [n, D]


class Looped(Protocol):
    """A looped causal network. ``core``: one pass over the positions from ``start`` on, [n, D] -> [n, D]; it reads the memory of the
    positions before and writes that of its own.
    """

    def embed(self, ids: Tensor, /) -> Tensor: ...
    def core(self, z: Tensor, e: Tensor, start: int, memory: Memory, /) -> tuple[Tensor, Memory]: ...
    def decode(self, z: Tensor, /) -> Tensor: ...
    def empty(self) -> Memory: ...


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Fresh noise in the states of every round. ``damped``: beta / (1 + passes of the position) · ``root``: mixed with square roots."""

    beta: float
    damped: bool = True
    root: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1, got {self.beta}; leave out the noise for 0")

    def __call__(self, z_ND: Tensor, fresh_ND: Tensor, passes_N: Tensor) -> Tensor:
        b_N = self.beta / (1 + passes_N.to(z_ND.dtype)) if self.damped else torch.full_like(z_ND[:, 0], self.beta)
        b_N1 = b_N[:, None]
        if self.root:
            return (1 - b_N1).sqrt() * z_ND + b_N1.sqrt() * fresh_ND
        return (1 - b_N1) * z_ND + b_N1 * fresh_ND


@dataclass(frozen=True, kw_only=True)
class Past:
    """The states of an earlier round, or their changes. ``start``: the position of the first row."""

    start: int
    z: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        return self.z[max(0, start - self.start) : max(0, stop - self.start)]

    @property
    def stop(self) -> int:
        return self.start + len(self.z)


@dataclass(kw_only=True)
class Wave:
    """A run between two rounds. ``tokens``: frozen ones, then guesses · ``start``: first position of the window, whose states are ``z`` ·
    ``first``: position of the first new token, whose count of passes begins with those over the prompt · ``embedded``: of the last round ·
    ``passes``, ``kept``: of every position, passes of the core, and rounds in which its token did not change · ``past``: states of the last
    two rounds · ``change``: of the last round · ``same``: how many tokens from the first on were the same before this round ·
    ``headway``: positions that this round added.
    """

    tokens: list[int]
    frozen: int
    start: int
    first: int
    z: Tensor
    memory: Memory
    embedded: Past
    passes: list[int]
    kept: list[int]
    past: list[Past] = field(default_factory=list)
    change: Tensor | None = None
    same: int = 0
    headway: int = 0
    rounds: int = 0
    core_passes: int = 0
    token_passes: int = 0
    dropped: int = 0
    standing: int = 0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """``criterion``: of positions from ``start`` on, None where the rule has none · ``keep``: how many tokens are frozen now, None where
    the round freezes nothing.
    """

    keep: int | None
    criterion: Tensor | None = None
    start: int = 0


class Freezing(Protocol):
    """Which tokens a round freezes. It may note things in the wave."""

    def __call__(self, wave: Wave, rounds: int) -> Judged: ...


@dataclass(frozen=True, kw_only=True)
class Converged:
    """All up to the last position whose state changed by less than ``eps`` of its norm.

    ``prefix``: only up to the first position that changed more, or whose own token was replaced in this round: its state belongs to
    another token then.
    """

    eps: float = 0.03
    prefix: bool = False

    def __call__(self, wave: Wave, rounds: int) -> Judged:
        now, before = _common(wave)
        found = (now - before).norm(dim=1) / now.norm(dim=1)
        if not self.prefix:
            return _below(found, self.eps, wave.start)
        settled = (found < self.eps)[: max(0, wave.same - wave.start)].long()
        rows = int(settled.cumprod(0).sum())
        return Judged(keep=wave.start + rows if rows else None, criterion=found, start=wave.start)


@dataclass(frozen=True, kw_only=True)
class Accelerating:
    """By the change of a state's change, the first rows of two rounds compared."""

    eps: float = 0.03

    def __call__(self, wave: Wave, rounds: int) -> Judged:
        now, before = _common(wave)
        change, last = now - before, wave.change
        wave.change = change
        rows = 0 if last is None else min(len(change), len(last))
        found = torch.zeros(0) if last is None else (change[:rows] - last[:rows]).norm(dim=1) / now[:rows].norm(dim=1)
        return _below(found, self.eps, wave.start)


@dataclass(frozen=True, kw_only=True)
class Jerking:
    """By the change of a state's change, of the positions that three rounds have in common."""

    eps: float = 0.03

    def __call__(self, wave: Wave, rounds: int) -> Judged:
        if len(wave.past) < 2:
            return Judged(keep=None, criterion=torch.zeros(0), start=wave.start)
        now, (older, old) = Past(start=wave.start, z=wave.z), wave.past[-2:]
        start, stop = max(p.start for p in (now, old, older)), min(p.stop for p in (now, old, older))
        a, b, c = (p.rows(start, stop) for p in (now, old, older))
        return _below((a - 2 * b + c).norm(dim=1) / (a.norm(dim=1) + 1e-6), self.eps, start)


@dataclass(frozen=True, kw_only=True)
class Stable:
    """All up to the last position whose token stayed the same for more than ``rounds`` rounds."""

    rounds: int

    def __call__(self, wave: Wave, rounds: int) -> Judged:
        found = [position for position, kept in enumerate(wave.kept) if kept > self.rounds]
        return Judged(keep=found[-1] + 1 if found else None)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What the window has grown by, in every round after ``rounds``."""

    rounds: int

    def __call__(self, wave: Wave, rounds: int) -> Judged:
        return Judged(keep=wave.frozen + wave.headway if rounds > self.rounds else None)


def _common(wave: Wave) -> tuple[Tensor, Tensor]:
    """The states of this round and of the last, of the positions that both have from the window's first on."""
    if not wave.past:
        return wave.z[:0], wave.z[:0]
    before = wave.past[-1].rows(wave.start, wave.past[-1].stop)
    rows = min(len(before), len(wave.z))
    return wave.z[:rows], before[:rows]


def _below(found_N: Tensor, eps: float, start: int) -> Judged:
    last = max((found_N < eps).nonzero()[:, 0].tolist(), default=-1)
    return Judged(keep=None if last < 0 else start + last + 1, criterion=found_N, start=start)
