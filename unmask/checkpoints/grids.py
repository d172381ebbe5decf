"""Grids of weight and activation quantisers: how the range of a group of numbers becomes a scale and a zero point.

Public idea: a grid is a value ``(x [.., G]) -> Levels``, with one scale per group of the last axis; ``levels.values(x)`` are the numbers of
the grid that are nearest to x, and ``levels.ints(x)`` their indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_LEAST = 1e-5  # of a scale's range, so that a group of zeros divides


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The numbers scale (i - zero) for i in least .. most. ``scale``, ``zero``: [.., 1]."""

    scale: Tensor
    zero: Tensor
    least: int
    most: int

    def ints(self, x: Tensor) -> Tensor:
        """The index i of the nearest level of every number, as a float."""
        return (torch.round(x / self.scale) + self.zero).clamp(self.least, self.most)

    def values(self, x: Tensor) -> Tensor:
        """The nearest level of every number."""
        return self.scale * (self.ints(x) - self.zero)


class Grid(Protocol):
    """``bits``: of an index · ``levels(low, high)``: the grid of groups with these ranges, both [.., 1]."""

    @property
    def bits(self) -> int: ...
    def __call__(self, x: Tensor) -> Levels: ...
    def levels(self, low: Tensor, high: Tensor) -> Levels: ...


def check_bits(bits: int) -> None:
    """ValueError unless a number can be stored in so many bits."""
    if not 1 < bits < 9:
        raise ValueError(f"{bits} bits is not a width of a grid; use 2 to 8")


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def _with_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A range that includes 0; -1 .. 1 for a group of zeros."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    empty = (low == 0) & (high == 0)
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


@dataclass(frozen=True, kw_only=True)
class _OfRange:
    """A grid that depends on the least and the largest number of a group."""

    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def __call__(self, x: Tensor) -> Levels:
        return self.levels(*_range(x))

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Asymmetric(_OfRange):
    """From the least to the largest number or 0, times ``clip`` (GPTQ; QuaRot's activations)."""

    clip: float = 1.0

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        most = 2**self.bits - 1
        low, high = _with_zero(low.clamp(max=0) * self.clip, high.clamp(min=0) * self.clip)
        scale = (high - low) / most
        return Levels(scale=scale, zero=torch.round(-low / scale), least=0, most=most)


@dataclass(frozen=True, kw_only=True)
class Symmetric(_OfRange):
    """From -h to h, h being the largest magnitude, with the zero point 2^(bits - 1) (GPTQ's symmetric grid). A group without negative
    numbers spans 0 .. h, but keeps that zero point, as the released code does.
    """

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        low, high = low.clamp(max=0), high.clamp(min=0)
        largest = torch.maximum(-low, high)
        low, high = _with_zero(torch.where(low < 0, -largest, low), largest)
        most = 2**self.bits - 1
        scale = (high - low) / most
        return Levels(scale=scale, zero=torch.full_like(scale, 2 ** (self.bits - 1)), least=0, most=most)


@dataclass(frozen=True, kw_only=True)
class Signed(_OfRange):
    """Indices -2^(bits - 1) .. 2^(bits - 1) - 1 and no zero point; the largest magnitude, times ``clip``, is the last of them (QuaRot)."""

    clip: float = 1.0

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        half = 2 ** (self.bits - 1)
        largest = (torch.maximum(-low, high) * self.clip).clamp(min=_LEAST)
        scale = largest / (half - 1)
        return Levels(scale=scale, zero=torch.zeros_like(scale), least=-half, most=half - 1)


@dataclass(frozen=True, kw_only=True)
class Tight(_OfRange):
    """From the least to the largest number times ``clip``, whether or not 0 lies between; the zero point is an index (AWQ; DuQuant with
    ``clip``). Numbers of one sign alone lose what lies beyond that.
    """

    clip: float = 1.0

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        most = 2**self.bits - 1
        low, high = low * self.clip, high * self.clip
        scale = (high - low).clamp(min=_LEAST) / most
        return Levels(scale=scale, zero=(-torch.round(low / scale)).clamp(0, most), least=0, most=most)


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """The grid whose range, times 1 - i / 100 for i < 80, has the least sum of |error|^2.4 (GPTQ's and QuaRot's search)."""

    grid: Grid
    shrinks: int = 80
    power: float = 2.4

    @property
    def bits(self) -> int:
        return self.grid.bits

    def __call__(self, x: Tensor) -> Levels:
        return self._best(x, *_range(x))

    def levels(self, low: Tensor, high: Tensor) -> Levels:
        return self.grid.levels(low, high)

    def _best(self, x: Tensor, low: Tensor, high: Tensor) -> Levels:
        whole = self.grid.levels(low, high)
        scale, zero, best = whole.scale, whole.zero, torch.full_like(whole.scale, torch.inf)
        for i in range(self.shrinks):
            share = 1 - i / 100
            tried = self.grid.levels(share * low, share * high)
            error = (tried.values(x) - x).abs().pow(self.power).sum(-1, keepdim=True)
            better = error < best
            scale, zero = torch.where(better, tried.scale, scale), torch.where(better, tried.zero, zero)
            best = torch.where(better, error, best)
        return Levels(scale=scale, zero=zero, least=whole.least, most=whole.most)
