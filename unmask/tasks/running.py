"""Sequences through the sampler, for every kind of model. Public idea: ``decide(net, sequences, seeds, sampler, ...) -> Done``."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unmask.protocols import Denoiser, Task
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Batch, Sequence, collate, decided
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.results import Answer, describe, so_far

Watch = Callable[[Batch], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """Finished sequences in the order given, and how long all of them took together."""

    rows: list[Sequence]
    seconds: float


class Runs(Protocol):
    """A model as tasks need it: its parts, and a way to decide sequences."""

    @property
    def parts(self) -> Any: ...
    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, watch: Watch | None = None
    ) -> Done: ...


class Thinks(Runs, Protocol):
    """The same, of a model with pictures and presets: what thinking and conversing need."""

    @property
    def parts(self) -> Parts: ...
    @property
    def presets(self) -> Presets: ...
    @property
    def device(self) -> torch.device: ...


def decide(
    net: Denoiser,
    sequences: Items[Sequence],
    seeds: Items[int],
    sampler: Sampler,
    *,
    device: torch.device,
    features_per_image: int = 0,
    carry: object = None,
    watch: Watch | None = None,
) -> Done:
    """Decide everything that is open in some sequences, in one batch; row i follows from its own seed alone.

    ``features_per_image``: feature rows of one picture · ``carry``: what the model is given first, such as the features of all
    pictures · ``watch`` is shown the batch after every step.
    """
    began = time.perf_counter()
    batch = collate(sequences, seeds, features_per_image=features_per_image).to(device)

    def on_step(step: Step) -> None:
        if watch:
            watch(step.batch)

    done = sampler.sample(net, batch, on_step=on_step, carry=carry)
    rows = [decided(sequence, done, i) for i, sequence in enumerate(sequences)]
    return Done(rows=rows, seconds=time.perf_counter() - began)


def perform(model: Runs, tasks: Items[Task], seeds: Items[int], sampler: Sampler) -> list[Any]:
    """What ``read`` makes of every task, all decided in one batch. Their ``needs`` must have been loaded."""
    done = model.run([task.build(model.parts) for task in tasks], seeds, sampler)
    return [task.read(row, model.parts) for task, row in zip(tasks, done.rows, strict=True)]


def answer(
    model: Runs, task: Any, built: Sequence, sampler: Sampler, *, question: str, seed: int, trace: bool
) -> Answer:
    """A text task whose sequence is ``built``, decided and read."""
    steps: list[str] = []

    def watch(batch: Batch) -> None:
        steps.append(so_far(batch, 0, model.parts.text))

    done = model.run([built], [seed], sampler, watch if trace else None)
    return Answer(
        text=task.read(done.rows[0], model.parts),
        question=question,
        seed=seed,
        seconds=done.seconds,
        settings=describe(sampler),
        trace=tuple(steps),
    )
