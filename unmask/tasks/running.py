"""Sequences through the sampler, for every kind of model. Public idea: ``decide(net, sequences, seeds, sampler, ...) -> Decoded``.

``Runner`` is a model as tasks see it. ``Executor`` decodes for a model, for example an engine that many calls share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from unmask.protocols import Denoiser, Task
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Batch, Sequence, collate
from unmask.tasks.lengths import Extent, leading, read_words, until_enough, written
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
    may end sooner) · ``sequence``: the row as it stands, on the CPU · ``score [L]``: with which each token was unmasked, -inf for others ·
    ``patch``: changes of the request that the row follows (``tasks.live``).
    """

    row: int
    number: int
    of: int
    sequence: Sequence
    score: Tensor | None = None
    patch: int = 0

    @classmethod
    def after(cls, step: Step, began: Sequence, *, index: int = 0, row: int = 0) -> StepEvent:
        """Row ``index`` of a step, which began as ``began`` and is called ``row``."""
        now = step.row(began, index)
        score = score_at(now, step.batch, index)
        return cls(row=row, number=step.number, of=step.of, sequence=now, score=score, patch=step.patch)


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


def device_of(net: Denoiser) -> torch.device:
    """Where a network computes: the device of its first parameter, the CPU for one without any."""
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def score_at(sequence: Sequence, batch: Batch, row: int) -> Tensor | None:
    """The scores with which the tokens of a row were unmasked, [L] on the CPU; None outside a run of the sampler."""
    return None if batch.score is None else batch.score[row, : len(sequence.ids)].cpu()


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
                on_step(StepEvent.after(step, sequence, index=row, row=row))

    last = sampler.last(net, batch, on_step=announce)
    rows = [last.row(sequence, i) for i, sequence in enumerate(sequences)]
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


@dataclass(frozen=True, kw_only=True)
class Followed:
    """One finished sequence, the seconds that it took, and the text after every step if it was traced."""

    row: Sequence
    seconds: float
    trace: tuple[str, ...]


def follow(
    model: Runner[Worded], sequence: Sequence, seed: int, sampler: Sampler, *, trace: bool, most: int | None = None
) -> Followed:
    """Run one sequence. ``trace``: record its text after every step, the first ``most`` tokens of its answer (None: all)."""
    steps: list[str] = []

    def record(event: StepEvent) -> None:
        steps.append(so_far(event.sequence, model.parts.text, most))

    done = model.run([sequence], [seed], sampler, record if trace else None)
    return Followed(row=done.rows[0], seconds=done.seconds, trace=tuple(steps))


def check_context(sequence: Sequence, context: int) -> None:
    """ValueError for a sequence with more tokens than the model's context."""
    if len(sequence.ids) > context:
        raise ValueError(
            f"prompt and answer have {len(sequence.ids)} tokens, more than the model's context of {context}; shorten the prompt"
        )


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
    """Run a text task of fixed length whose sequence is ``built``, and read its answer. ``trace``: also the text after every step."""
    done = follow(model, built, seed, sampler, trace=trace)
    return Answer(
        text=task.read(done.row, model.parts),
        question=question,
        seed=seed,
        seconds=done.seconds,
        settings=describe(sampler),
        trace=done.trace,
    )


def answer_within(
    model: Runner[Worded],
    built: Sequence,
    sampler: Sampler,
    extent: Extent,
    *,
    context: int,
    question: str,
    seed: int,
    trace: bool,
) -> Answer:
    """The answer whose canvas is the last span of ``built``, as long as ``extent`` allows. ``context``: longest sequence in tokens."""
    text, runs = model.parts.text, list[Followed]()

    def run(sequence: Sequence, seed: int, sampler: Sampler) -> Sequence:
        if extent.stop or extent.limit < len(sequence.spans[-1]):
            sampler = until_enough(sampler, text, extent)
        runs.append(follow(model, sequence, seed, sampler, trace=trace, most=extent.limit))
        return runs[-1].row

    row = written(run, built, seed, sampler, extent, text=text, context=context)
    words = read_words(leading(row), text, extent)
    return Answer(
        text=words.text,
        question=question,
        seed=seed,
        seconds=sum(done.seconds for done in runs),
        settings=describe(sampler),
        trace=tuple(film for done in runs for film in done.trace),
        finish_reason=words.finish_reason,
    )
