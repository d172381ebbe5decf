"""Sequences through the sampler, for every kind of model. Public idea: ``decide(net, sequences, seeds, sampler, ...) -> Decoded``.

``Runner`` is a model as tasks see it. ``Executor`` is whoever does the decoding for a model, such as an engine that many calls share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from unmask.protocols import Denoiser, Task
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Sequence, collate, sequence_at
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.results import Answer, Attempt, describe, so_far
from unmask.tokens.layouts import Layout
from unmask.tokens.text import Text

P = TypeVar("P")
A = TypeVar("A")
PartsT = TypeVar("PartsT", covariant=True)


class HasText(Protocol):
    """Parts of a model with a text tokenizer."""

    @property
    def text(self) -> Text: ...


Worded = TypeVar("Worded", bound=HasText)


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One row after one step: the only record of a step outside the sampler.

    ``row``: its index among the sequences of the run · ``number``: steps taken, 0 before the first · ``of``: steps planned (early stopping
    may end sooner) · ``sequence``: the row as it stands, on the CPU.
    """

    row: int
    number: int
    of: int
    sequence: Sequence


OnStep = Callable[[StepEvent], None]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Finished sequences in the order given, and the seconds that all of them took together."""

    rows: list[Sequence]
    seconds: float


class Executor(Protocol):
    """Decodes in place of a model's own network.

    ``run``: as ``Runner.run`` · ``emit``: takes what a task learned between two runs for row ``row`` of a call: a layout that it read, or
    a round that it judged.
    """

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded: ...
    def emit(self, row: int, event: Layout | Attempt) -> None: ...


class Runner(Protocol[PartsT]):
    """A model as tasks need it: its parts, and a method that fills in the masked tokens of sequences."""

    @property
    def parts(self) -> PartsT: ...
    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded: ...


class ThinkingRunner(Runner[Parts], Protocol):
    """A runner with pictures and presets, which planning, reflection and conversations need. ``emit``: as of ``Executor``."""

    @property
    def parts(self) -> Parts: ...
    @property
    def presets(self) -> Presets: ...
    @property
    def device(self) -> torch.device: ...
    def emit(self, row: int, event: Layout | Attempt) -> None: ...


def decide(
    net: Denoiser,
    sequences: Items[Sequence],
    seeds: Items[int],
    sampler: Sampler,
    *,
    device: torch.device,
    on_step: OnStep | None = None,
) -> Decoded:
    """Unmask every masked token that is writable, all sequences in one batch. Row i depends on ``seeds[i]`` and its own tokens alone.

    ``on_step`` gets one event for every row after every step.
    """
    began = time.perf_counter()
    batch = collate(sequences, seeds).to(device)

    def announce(step: Step) -> None:
        if on_step:
            for row, sequence in enumerate(sequences):
                now = sequence_at(sequence, step.batch, row)
                on_step(StepEvent(row=row, number=step.number, of=step.of, sequence=now))

    done = sampler.sample(net, batch, on_step=announce)
    rows = [sequence_at(sequence, done, i) for i, sequence in enumerate(sequences)]
    return Decoded(rows=rows, seconds=time.perf_counter() - began)


def perform(
    model: Runner[P],
    tasks: Items[Task[P, A]],
    seeds: Items[int],
    sampler: Sampler,
    built: Items[Sequence] | None = None,
) -> list[A]:
    """What ``read`` makes of every task, all run in one batch. The parts they need must be loaded.

    ``built``: their sequences, if the caller has built them already.
    """
    done = model.run(built or [task.build(model.parts) for task in tasks], seeds, sampler)
    return [task.read(row, model.parts) for task, row in zip(tasks, done.rows, strict=True)]


def answer(
    model: Runner[Worded],
    task: Task[Worded, str],
    built: Sequence,
    sampler: Sampler,
    *,
    question: str,
    seed: int,
    trace: bool,
) -> Answer:
    """Run a text task whose sequence is ``built``, and read its answer. ``trace``: also the text after every step."""
    steps: list[str] = []

    def record(event: StepEvent) -> None:
        steps.append(so_far(event.sequence, model.parts.text))

    done = model.run([built], [seed], sampler, record if trace else None)
    return Answer(
        text=task.read(done.rows[0], model.parts),
        question=question,
        seed=seed,
        seconds=done.seconds,
        settings=describe(sampler),
        trace=tuple(steps),
    )
