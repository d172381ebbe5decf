"""Source batches of one kind of row each: their order is a function of (seed, step), and their shares follow the weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from unmask.data.groups import Group, Groups


class Rows:
    """Instead of rows, what was asked for."""

    def rows(self, name: str, first: int, size: int) -> Any:
        return (name, first, size)


def groups(*found: Group, steps: int = 4000, alike: int = 1, seed: int = 0) -> Groups:
    data: Any = Rows()
    return Groups(data=data, groups=found, seed=seed, steps=steps, alike=alike)


def test_a_batch_has_one_group_and_its_own_rows() -> None:
    source = groups(Group(name="a", weight=1, rows=2), Group(name="b", weight=1, rows=1))
    seen = [source(step) for step in range(50)]
    assert all(len(batch) == 1 for batch in seen) and {name for batch in seen for name in batch} == {"a", "b"}
    for step, batch in enumerate(seen):
        ((name, asked),) = batch.items()
        size = 2 if name == "a" else 1
        assert asked == (name, step * size, size)
    assert seen == [groups(*source.groups)(step) for step in range(50)]
    assert seen != [groups(*source.groups, seed=1)(step) for step in range(50)]


def test_shares_follow_the_weights() -> None:
    source = groups(Group(name="a", weight=580, rows=1), Group(name="b", weight=20, rows=1))
    count = Counter(source.group(step).name for step in range(4000))
    assert abs(count["b"] / 4000 - 20 / 600) < 0.01


def test_a_ratio_changes_linearly_over_the_run() -> None:
    source = groups(Group(name="ground", weight=3, last=1, rows=1), Group(name="chat", weight=1, last=3, rows=1))
    share = [sum(source.group(s).name == "ground" for s in range(k, k + 500)) / 500 for k in (0, 1750, 3500)]
    assert [abs(a - b) < 0.09 for a, b in zip(share, (0.72, 0.5, 0.28), strict=True)] == [True] * 3


def test_batches_in_a_row_are_of_one_group() -> None:
    """So that processes that share weights compute the same task."""
    source = groups(Group(name="a", weight=1, rows=1), Group(name="b", weight=1, rows=1), alike=4)
    names = [source.group(step).name for step in range(80)]
    assert all(len(set(names[i : i + 4])) == 1 for i in range(0, 80, 4)) and len(set(names)) == 2
    with pytest.raises(ValueError, match="alike is 0; give 1 or more"):
        groups(Group(name="a", weight=1, rows=1), alike=0)
