"""Boxes <-> coordinate tokens (spec 2.3): fractions of the square picture, rounded to 1,025 bins.

Public idea: ``to_bins`` and ``from_bins``.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.tokens.text import BINS

FractionBox = tuple[float, float, float, float]


def to_bins(box: Sequence[float]) -> list[int]:
    """(x1, y1, x2, y2) as fractions -> four bins in 0..1024."""
    return [min(BINS, max(0, round(v * BINS))) for v in box]


def from_bins(bins: Sequence[int]) -> FractionBox:
    """Four bins -> fractions, corners put in order. ValueError where a bin is out of range or there are not four."""
    if len(bins) != 4 or not all(0 <= b <= BINS for b in bins):
        raise ValueError(f"a box is four bins in 0..{BINS}, got {list(bins)}; let the sampler draw coordinates alone")
    x1, y1, x2, y2 = (b / BINS for b in bins)
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
