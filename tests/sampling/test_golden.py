"""Published numbers that the schedules and orders must reproduce to the digit (specification of Lavida-O, section 9)."""

from __future__ import annotations

import hashlib

import pytest
import torch

from unmask.sampling import temperature
from unmask.sampling.orders import GridError, halton, stratified, uniform
from unmask.sampling.schedule import Cosine, Equal, Fixed, Shift

SHIFT_64 = """13 14 13 14 15 15 15 15 16 17 17 17 18 19 19 19 21 21 21 23 23 24 25 25 27 28 28 30 31 32 33 35 36 38 40 41 44 45
48 49 53 55 59 61 65 69 73 77 83 88 94 101 109 116 126 137 148 162 177 195 216 240 267 301"""
SHIFT_20 = "43 47 50 56 60 68 75 83 94 107 122 141 164 194 232 285 355 458 609 853"
HASHES = {
    64: "33f811cc0a6123ff104baea0c3ffc6c0682ebe2565a6bb9213c39133eff83721",
    32: "4c8b92d3af6548a33e37238ad91a89c5929f2bd3a48b7bffb86a59507928011b",
    16: "a35e257c577abff8614878c28c979ee05da4d1cac2d3948aeb51a597cc9c5add",
}


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_shift_counts() -> None:
    assert Shift(steps=64, shift=5).counts(4096) == numbers(SHIFT_64)
    assert Shift(steps=20, shift=5).counts(4096) == numbers(SHIFT_20)
    assert Shift(steps=16, shift=1 / 3).counts(16) == [1] * 16


def test_other_counts() -> None:
    assert Equal(steps=4).counts(10) == [3, 3, 2, 2]
    assert Fixed(each=4).counts(10) == [4, 4, 2]
    # 64 cos(pi/2 i/8), floored: 62 59 53 45 35 24 12 0 stay masked
    assert Cosine(steps=8).counts(64) == [2, 3, 6, 8, 10, 11, 12, 12]
    # rounding down leaves 12 11 9 6 3 0 of 13, so no step is empty; rounding to nearest would leave 13 after the first
    assert Cosine(steps=6).counts(13) == [1, 1, 2, 3, 3, 3]


def test_a_small_shift_decides_much_early() -> None:
    counts = Shift(steps=8, shift=1 / 3).counts(64)
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 * counts[-1]


def test_stratified_order() -> None:
    assert stratified(4, 42) == [8, 2, 14, 0, 7, 3, 5, 15, 9, 6, 1, 11, 10, 4, 13, 12]
    first = [2959, 424, 3813, 66, 1725, 312, 1686, 3251, 2268, 1771, 88, 2302, 2220, 1737, 3222, 3521]
    assert stratified(64, 42)[:16] == first
    for side, digest in HASHES.items():
        assert hashlib.sha256(",".join(map(str, stratified(side, 42))).encode()).hexdigest() == digest


@pytest.mark.parametrize("side", [1, 2, 8, 32])
@pytest.mark.parametrize("seed", [0, 42])
def test_stratified_fills_every_cell_once(side: int, seed: int) -> None:
    order = stratified(side, seed)
    cells = 1
    while cells <= side:
        size = side // cells
        held = {(c // side // size, c % side // size) for c in order[: cells * cells]}
        assert len(held) == cells * cells
        cells *= 2
    assert sorted(order) == list(range(side * side))


@pytest.mark.parametrize("side", [0, 3, 24])
def test_stratified_names_the_grids_it_cannot_do(side: int) -> None:
    with pytest.raises(GridError, match=f"power of two, got {side}.*halton"):
        stratified(side)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 6), (16, 16), (64, 64)])
def test_halton_is_a_permutation(rows: int, columns: int) -> None:
    assert sorted(halton(rows, columns)) == list(range(rows * columns))


def test_halton_begins_with_the_sequence() -> None:
    # points (1/2, 1/3) (1/4, 2/3) (3/4, 1/9) (1/8, 4/9) on a 4 x 3 grid; the fourth is new as well
    assert halton(4, 3)[:4] == [2 * 3 + 1, 1 * 3 + 2, 3 * 3 + 0, 0 * 3 + 1]
    # spread: among the first 16 of 16 x 16, every 4 x 4 block has at least one and at most two
    blocks = [(c // 16 // 4, c % 16 // 4) for c in halton(16, 16)[:16]]
    assert len(set(blocks)) >= 12


def test_uniform_depends_on_its_seed() -> None:
    assert sorted(uniform(50, 1)) == list(range(50))
    assert uniform(50, 1) == uniform(50, 1) != uniform(50, 2)


def test_schedules() -> None:
    s = torch.tensor([0.0, 0.5, 1.0])
    assert temperature.Linear(start=4.0, end=2.0)(s).tolist() == [4.0, 3.0, 2.0]
    assert temperature.CosineTo(minimum=0.5, start=5.0)(s).tolist() == pytest.approx(
        [5.0, 5 * (0.5**0.5 * 0.5 + 0.5), 2.5]
    )
    assert temperature.ShiftTo(shift=3.0, minimum=0.0)(s).tolist() == pytest.approx([1.0, 0.75, 0.0])
    at = temperature.Progress(number=torch.tensor([0, 2, 4, 9]), of=torch.tensor([5, 5, 5, 5]), length=1)
    assert at.fraction.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert temperature.at(0.7, at).tolist() == pytest.approx([0.7] * 4)
