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
    """Four bins -> fractions with ordered corners. ValueError unless there are four bins in range."""
    if len(bins) != 4 or not all(0 <= b <= BINS for b in bins):
        raise ValueError(
            f"a box must be four bins in 0..{BINS}, got {list(bins)}; restrict the sampler to coordinate tokens"
        )
    x1, y1, x2, y2 = (b / BINS for b in bins)
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
