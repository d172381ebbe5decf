"""Batches that are masked and sorted into forward passes where they are made: by worker processes, on the CPU.

Public idea: ``Masking(source=…, objective=…)`` is a source of ``passes.Passes``, which the same ``Together`` scores: its loss is that of
the batches, up to rounding. Put it inside ``data.ahead.Ahead``.

Shapes: B rows · L tokens · I pictures.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.objectives.joining import groups, kind_name, rows_of, stacked
from unmask.objectives.masked import Masked, Plain, Together
from unmask.objectives.passes import Pass, Passes, in_0_1
from unmask.protocols import Source
from unmask.rng import generator
from unmask.sequence import Batch

GPU_OVERHEAD = 30_000  # positions: an H200 took .17 s for 75,000 of ``mini`` in 3 passes, and .22 s for 151,000 in 4


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The batches of ``source`` as ``Passes``, masked with the random numbers that the trainer gives the objective at that step.

    ``mask_id``: of the model · ``seed``: of the training settings · ``overhead``: positions that the device computes in the time that one
    more pass takes to launch. ValueError for what ``Together`` has to score itself: other objectives than plain means over masked tokens,
    and batches with known features.
    """

    source: Source[dict[str, Batch]]
    objective: Together
    mask_id: int
    seed: int
    overhead: int = GPU_OVERHEAD

    def __call__(self, step: int) -> Passes:
        batches, rng = self.source(step), generator("objective", self.seed, step)
        tasks = [(name, task, weight) for name, task, weight in self.objective.objectives if name in batches]
        views = [(name, view) for name, task, _ in tasks for view in _plain(name, task).views(self, batches[name], rng)]
        if any(view.features is not None for _, view in views):
            raise ValueError("a batch has features that are known already; train it with 0 workers")
        pixels, first = _pictures([view for _, view in views])
        owner = torch.cat([torch.full((view.rows,), i) for i, (_, view) in enumerate(views)])
        predict, whole = stacked([view.replace(pixels=None) for _, view in views])
        numbers, counts, weights = _terms(
            predict, whole, [name for name, _ in views], owner, {n: w for n, _, w in tasks}
        )
        passes = []
        for group in groups(whole, predict, self.overhead):
            rows = torch.tensor(group.rows)
            own = {kind: number[rows] for kind, number in numbers.items()}
            batch = rows_of(whole, rows, group.tokens).replace(span_table=((),) * len(rows))
            passes.append(Pass(batch, predict[rows, : group.tokens], first[owner[rows]], own))
        tokens = tuple(counts.values())
        return Passes(tuple(passes), pixels, tuple(counts), tokens, torch.tensor(tokens), torch.tensor(weights))


def _plain(name: str, task: object) -> Masked:
    if not isinstance(task, Masked) or not isinstance(task.weight, Plain):
        raise ValueError(f"{name} is not a plain mean over masked tokens; train it with 0 workers")
    return task


def _pictures(views: Items[Batch]) -> tuple[Tensor | None, Tensor]:
    """The pictures of all views, each once, and how many come before those of each view."""
    kept: dict[int, tuple[int, Tensor]] = {}
    first, count = [], 0
    for view in views:
        if view.pixels is not None and id(view.pixels) not in kept:
            kept[id(view.pixels)] = (count, view.pixels)
            count += len(view.pixels)
        first.append(kept[id(view.pixels)][0] if view.pixels is not None else 0)
    if not kept:
        return None, torch.tensor(first)
    pixels = torch.cat([own for _, own in kept.values()])
    small = (pixels * 255).round().to(torch.uint8)
    return small if torch.equal(in_0_1(small), pixels) else pixels, torch.tensor(first)


def _terms(
    predict: Tensor, whole: Batch, names: Items[str], owner: Tensor, weight: dict[str, float]
) -> tuple[dict[int, Tensor], dict[str, int], list[float]]:
    """By kind the number of each row's term, and by term how many tokens it has and its weight."""
    numbers: dict[int, Tensor] = {}
    counts: dict[str, int] = {}
    for kind in whole.kind[predict].unique().tolist():
        per_row = (predict & (whole.kind == kind)).sum(1)
        number = torch.zeros_like(owner)
        for name in dict.fromkeys(names):
            mine = torch.tensor([n == name for n in names])[owner]
            if count := int(per_row[mine].sum()):
                number[mine] = len(counts)
                counts[f"{name}.{kind_name(kind)}"] = count
        numbers[kind] = number
    return numbers, counts, [weight[name.rpartition(".")[0]] for name in counts]
