"""Source batches of one kind of row each (spec 3.4). Public idea: ``Groups``, a source of {format: batch} with a single batch."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from unmask.data.own import OwnData
from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of the format ``name``. ``weight``: how often they come relative to other groups, at the beginning of a run, and ``last`` at its
    end (None: the same) · ``rows``: of a batch.
    """

    name: str
    weight: float
    rows: int
    last: float | None = None

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the run, linearly from the first to the last."""
        last = self.weight if self.last is None else self.last
        return self.weight + (last - self.weight) * progress


@dataclass(frozen=True, kw_only=True)
class Groups:
    """{format: batch} of one group, drawn by weight: a pure function of (seed, step).

    ``steps``: of the run, over which weights change · ``alike``: source batches in a row of the same group. Processes that share weights
    (``training.shard``) must compute the same task at the same time, so it must be a multiple of their number.
    """

    data: OwnData
    groups: tuple[Group, ...]
    seed: int
    steps: int
    alike: int = 1

    def __post_init__(self) -> None:
        if self.alike < 1:
            raise ValueError(f"alike is {self.alike}; give 1 or more source batches in a row of one group")

    def __call__(self, step: int) -> dict[str, Batch]:
        group = self.group(step)
        return {group.name: self.data.rows(group.name, step * group.rows, group.rows)}

    def group(self, step: int) -> Group:
        """The group of source batch number ``step``."""
        turn = step // self.alike
        progress = min(1.0, turn * self.alike / max(1, self.steps - 1))
        weights = [group.weight_at(progress) for group in self.groups]
        return Random(f"groups/{self.seed}/{turn}").choices(self.groups, weights)[0]
