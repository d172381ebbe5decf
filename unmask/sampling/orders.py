"""Fixed orders in which the tokens of a grid are unmasked: lists of token numbers, row * columns + column.

Public idea: an order is a plain permutation, made once and given to ``InOrder``; every picture follows the same one.
"""

from __future__ import annotations

import math
import random


class GridError(ValueError):
    """The order is not defined on this grid."""


def stratified(side: int, seed: int = 42) -> list[int]:
    """The quad-tree order of Lavida-O (spec 4.4) on a ``side`` x ``side`` grid.

    After 4^k tokens every cell of the 2^k x 2^k partition holds exactly one. Uses CPython's ``random.Random`` so that the order
    is the released one. Raises GridError unless ``side`` is a power of two (``halton`` covers any grid).
    """
    if side < 1 or side & (side - 1):
        raise GridError(
            f"the stratified order needs a side that is a power of two, got {side}; use halton(rows, columns)"
        )
    rng = random.Random(seed)
    order, chosen = [], set()
    blocks, size = [(0, 0)], side
    if side == 1:
        return [0]
    while size > 1:
        size //= 2
        blocks = [(x + dx, y + dy) for x, y in blocks for dy in (0, size) for dx in (0, size)]
        rng.shuffle(blocks)
        held = {(c % side // size, c // side // size) for c in chosen}
        for x, y in blocks:
            if (x // size, y // size) not in held:
                # drawn even where the block is one cell: every draw moves the generator
                column, row = rng.randint(x, x + size - 1), rng.randint(y, y + size - 1)
                chosen.add(row * side + column)
                order.append(row * side + column)
    return order


def halton(rows: int, columns: int) -> list[int]:
    """Cells in the order in which the Halton sequence (base 2 down, base 3 across) first visits them.

    Besnier et al. 2025, "Halton Scheduler for Masked Generative Image Transformer" (arXiv 2503.17076). Any grid.
    """
    if rows < 1 or columns < 1:
        raise GridError(f"a grid needs at least one row and one column, got {rows} x {columns}")
    seen: dict[int, None] = {}
    point = 0
    while len(seen) < rows * columns:
        point += 1
        row, column = int(_radical_inverse(point, 2) * rows), int(_radical_inverse(point, 3) * columns)
        seen.setdefault(row * columns + column)
    return list(seen)


def uniform(tokens: int, seed: int = 42) -> list[int]:
    """A uniformly random order."""
    order = list(range(tokens))
    random.Random(seed).shuffle(order)
    return order


def _radical_inverse(number: int, base: int) -> float:
    """The digits of ``number`` in ``base``, mirrored at the point: in [0, 1)."""
    value, numerator, denominator = 0.0, 0, 1
    while number:
        number, digit = divmod(number, base)
        numerator, denominator = numerator * base + digit, denominator * base
        value = numerator / denominator
    return min(value, math.nextafter(1.0, 0.0))
