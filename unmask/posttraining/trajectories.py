"""Samples with the step and the log-probability of each token, through any runner: a model, or an engine that many calls share.

Public idea: ``sampled(runner, rows, seeds, sampler) -> [Trajectory]``.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.running import Runner, StepEvent


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A finished sequence. ``steps [L]``: the step, from 1, at which each token last got its id, 0 for given tokens · ``scores [L]``: the
    sampler's score of it then, -inf for given tokens. It is the log-probability of the token under the guided prediction at temperature 1
    where the sampler scores tokens by that, as the presets of our own models do.
    """

    sequence: Sequence
    steps: Tensor
    scores: Tensor

    @property
    def answered(self) -> Tensor:
        """The places of the tokens that were sampled."""
        return (self.steps > 0).nonzero()[:, 0]


def sampled(runner: Runner, rows: Items[Sequence], seeds: Items[int], sampler: Sampler) -> list[Trajectory]:
    """Fill the masked tokens of every row; row i depends on ``seeds[i]`` and its own tokens alone."""
    follow = [_Following(row) for row in rows]

    def note(event: StepEvent) -> None:
        follow[event.row].note(event)

    done = runner.run(rows, seeds, sampler, note)
    return [
        Trajectory(sequence=row, steps=seen.steps, scores=seen.scores)
        for row, seen in zip(done.rows, follow, strict=True)
    ]


class _Following:
    """One row of a run."""

    def __init__(self, row: Sequence) -> None:
        self.before = row
        self.steps = torch.zeros(len(row.ids), dtype=torch.long)
        self.scores = torch.full((len(row.ids),), -torch.inf)

    def note(self, event: StepEvent) -> None:
        now, before = event.sequence, self.before
        changed = (now.ids != before.ids) | (before.masked & ~now.masked)
        self.steps[changed & ~now.masked] = event.number
        self.steps[now.masked] = 0
        if event.score is not None:
            self.scores = event.score
        self.before = now
