"""Sequences through the sampler, for every kind of model. Public idea: ``decide(net, sequences, seeds, sampler, ...) -> Decoded``."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unmask.protocols import Denoiser, Task
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Sequence, collate, decided
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.results import Answer, Attempt, describe, so_far
from unmask.tokens.layouts import Layout


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Row ``row`` of what is being decided after step ``number`` (0: before the first) of ``of``: ``sequence`` as it stands."""

    row: int
    number: int
    of: int
    sequence: Sequence


Watch = Callable[[Shown], None]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Finished sequences in the order given, and how long all of them took together."""

    rows: list[Sequence]
    seconds: float


class Through(Protocol):
    """Who decides a model's sequences in its place, such as an engine that it shares with others, and hears what it thinks between them."""

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, watch: Watch | None = None
    ) -> Decoded: ...
    def tell(self, row: int, thought: Layout | Attempt) -> None: ...


class Runs(Protocol):
    """A model as tasks need it: its parts, and a way to decide sequences."""

    @property
    def parts(self) -> Any: ...
    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, watch: Watch | None = None
    ) -> Decoded: ...


class Thinks(Runs, Protocol):
    """The same, of a model with pictures and presets: what thinking and conversing need."""

    @property
    def parts(self) -> Parts: ...
    @property
    def presets(self) -> Presets: ...
    @property
    def device(self) -> torch.device: ...
    def tell(self, row: int, thought: Layout | Attempt) -> None: ...


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
) -> Decoded:
    """Decide everything that is open in some sequences, in one batch; row i follows from its own seed alone.

    ``features_per_image``: feature rows of one picture · ``carry``: what the model is given first, such as the features of all
    pictures · ``watch`` is shown every row after every step.
    """
    began = time.perf_counter()
    batch = collate(sequences, seeds, features_per_image=features_per_image)
    if carry is not None:
        batch = batch.replace(pixels=None)  # they have been looked at
    batch = batch.to(device)

    def on_step(step: Step) -> None:
        if watch:
            for row, sequence in enumerate(sequences):
                now = decided(sequence, step.batch, row)
                watch(Shown(row=row, number=step.number, of=step.of, sequence=now))

    done = sampler.sample(net, batch, on_step=on_step, carry=carry)
    rows = [decided(sequence, done, i) for i, sequence in enumerate(sequences)]
    return Decoded(rows=rows, seconds=time.perf_counter() - began)


def perform(
    model: Runs, tasks: Items[Task], seeds: Items[int], sampler: Sampler, built: Items[Sequence] | None = None
) -> list[Any]:
    """What ``read`` makes of every task, all decided in one batch. Their ``needs`` must have been loaded.

    ``built``: their sequences, where they are at hand.
    """
    done = model.run(built or [task.build(model.parts) for task in tasks], seeds, sampler)
    return [task.read(row, model.parts) for task, row in zip(tasks, done.rows, strict=True)]


def answer(
    model: Runs, task: Any, built: Sequence, sampler: Sampler, *, question: str, seed: int, trace: bool
) -> Answer:
    """A text task whose sequence is ``built``, decided and read."""
    steps: list[str] = []

    def watch(shown: Shown) -> None:
        steps.append(so_far(shown.sequence, model.parts.text))

    done = model.run([built], [seed], sampler, watch if trace else None)
    return Answer(
        text=task.read(done.rows[0], model.parts),
        question=question,
        seed=seed,
        seconds=done.seconds,
        settings=describe(sampler),
        trace=tuple(steps),
    )
