"""The demonstration of EB-Sampler: answers and plans of the embedded model by the entropy bound, beside the model's own samplers.

    unmask methods run eb_sampler

Questions and prompts are of the split "validation"; every arm has the same items and seeds. A bound has no fixed number of model calls, so
the calls of every arm are counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import unmask
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.metrics import Figure, average, paired, share
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_questions import Questions
from unmask.json_types import Json
from unmask.methods.eb_sampler import eb_confidence, eb_sampler
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.sequence import collate, sequence_at
from unmask.tasks.parts import Parts
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, OnStep
from unmask.tokens.layouts import Layout

Change = Callable[[Sampler], Sampler]
_ITEMS = 198


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Decodes as a model does, and keeps the steps that every row took in the runs of the sampler ``of``."""

    parts: Parts
    of: Sampler
    steps: list[int] = field(default_factory=list)

    def run(
        self, sequences: Sequence[Tokens], seeds: Sequence[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        net = self.parts.net
        batch = collate(self.parts.features.known(sequences, net, torch.device("cpu")), seeds)
        done = sampler.sample(net, batch)
        if sampler == self.of:
            self.steps.extend(done.clock.tolist())
        return Decoded(rows=[sequence_at(s, done, i) for i, s in enumerate(sequences)], seconds=0.0)

    def emit(self, row: int, event: Layout | Attempt) -> None:
        """No listener."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """``preset``: the field of ``Presets`` that is changed · ``arms``: name -> change of its sampler; the first is the baseline."""

    name: str
    part: EvalPart
    preset: str
    arms: dict[str, Change]


def _own(sampler: Sampler) -> Sampler:
    return sampler


TASKS = (
    Task(
        name="answers",
        part=Questions(),
        preset="ask",
        arms={
            "own": _own,
            "entropy, gamma 0.01": partial(eb_sampler, gamma=0.01),
            "entropy, gamma 0.1": partial(eb_sampler, gamma=0.1),
        },
    ),
    Task(
        name="plans",
        part=GenEval(draw=PromptGenerator(thinking=Thinking(plan=True)), distance=False),
        preset="plan",
        arms={
            "own": _own,
            "entropy, gamma 0.01": partial(eb_sampler, gamma=0.01),
            "confidence, gamma 0.1": partial(eb_confidence, gamma=0.1),
        },
    ),
)


def demo(work: Work) -> Findings:
    """Calls and right answers of the bound and of the model's own sampler."""
    model = unmask.load("mini")
    assert isinstance(model, Model)
    plan = EvalPlan(split="validation", n=work.steps(_ITEMS, least=2))
    figures: dict[str, Figure] = {}
    rows, lines = [], {}
    for task in TASKS:
        found = {
            arm: work.once(f"{task.name}/{number}", partial(_measured, model, task, arm, plan, work))
            for number, arm in enumerate(task.arms)
        }
        own = found["own"]
        for arm, one in found.items():
            calls, right = average(one["calls"], unit="calls"), share(one["right"])
            gain = paired(one["right"], own["right"])
            rows.append((task.name, arm, calls, right, "" if arm == "own" else gain))
            key = f"{task.name}.{arm.replace(', ', '.').replace(' ', '_')}"
            figures |= {f"{key}.calls": calls} | ({} if arm == "own" else {f"{key}.gain": gain})
        lines[task.name] = sorted(
            ((average(one["calls"])["value"], share(one["right"])) for one in found.values()), key=lambda p: p[0]
        )
    bound, own_calls = figures["answers.entropy.gamma_0.1.calls"], figures["answers.own.calls"]
    gain = figures["answers.entropy.gamma_0.1.gain"]
    return Findings(
        about=f"Answers to questions about pictures and drawings from mini's own plan, {plan.n} items a task. A gain is the mean "
        "difference in right results to the model's own sampler, item by item.",
        verdict=f"Answers take {bound['value']:.2f} instead of {own_calls['value']:.2f} calls with gamma 0.1; right answers change by "
        f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}].",
        seen=bound["high"] < own_calls["low"] and gain["low"] > -0.05,
        figures=figures,
        shown=(
            Table(title="Arms", head=("task", "sampler", "calls", "right", "gain"), rows=tuple(rows)),
            Plot(title="Right results against calls", across="model calls", up="right", lines=lines),
        ),
    )


def _measured(model: Model, task: Task, arm: str, plan: EvalPlan, work: Work) -> Json:
    """Verdicts and model calls of every item."""
    own, change = getattr(model.presets, task.preset), task.arms[arm]
    changed: dict[str, Any] = {task.preset: lambda parts: change(own(parts))}
    counting = Counting(parts=model.parts, of=change(own(model.parts)))
    counted = Model(model.parts, dataclasses.replace(model.presets, **changed), executor=counting)
    label = f"{task.name}, {arm}"
    done = measure(counted, task.part, plan, Record(), lambda part, at, of: work.on_progress(label, at, of))
    return {"right": [bool(row["right"]) for row in done.rows], "calls": counting.steps}


DEMO = Demonstration(minutes=3, run=demo)
