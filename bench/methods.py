"""The effect of a method's sampler on a trained model, against its baseline at equal numbers of model calls.

    python bench/methods.py --method remdm --each 200
        pictures at 8, 16 and 32 steps: the model's own sampler and the same with remasking; at the first number also without the noise of
        its confidence
    python bench/methods.py --method eb_sampler --each 200
        answers, planned pictures and pictures: the model's own sampler and several bounds; pictures also at as many steps as the bound took

Pictures are scored by world-GenEval and the independent judge, answers by world questions; prompts of the split "validation". All arms of
a task have the same items and seeds; ``gain`` is the mean paired difference to the baseline with a 95 % bootstrap interval, ``calls`` the
mean number of steps of a request, each a model call. Every figure is appended to bench/history.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unmask
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.history import Line, append
from unmask.evaluation.progress import Lines
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_questions import Questions
from unmask.methods.eb_sampler import eb_confidence, eb_sampler
from unmask.methods.remdm import remdm, remdm_conf, remdm_rescale
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sequence import Sequence as Tokens
from unmask.sequence import collate, sequence_at
from unmask.tasks.parts import Parts
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, OnStep
from unmask.tokens.layouts import Layout

HISTORY = Path(__file__).with_name("history.jsonl")
Change = Callable[[Sampler], Sampler]
Measure = Callable[["Arm", "Scored | None"], "Scored | None"]  # None for an arm that --only leaves out


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
        """Nobody listens."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to sample. ``preset``: the field of ``Presets`` that ``change`` applies to."""

    name: str
    part: EvalPart
    preset: str
    change: Change = lambda sampler: sampler


@dataclass(frozen=True, kw_only=True)
class Scored:
    right: np.ndarray
    calls: float
    figure: dict[str, Any]


def run(model: Model, arm: Arm, plan: EvalPlan) -> Scored:
    own = getattr(model.presets, arm.preset)
    changed: dict[str, Any] = {arm.preset: lambda parts: arm.change(own(parts))}
    presets = dataclasses.replace(model.presets, **changed)
    counting = Counting(parts=model.parts, of=arm.change(own(model.parts)))
    with Lines() as lines:
        done = measure(Model(model.parts, presets, executor=counting), arm.part, plan, Record(), lines)
    right = np.array([float(row["right"]) for row in done.rows])
    return Scored(right=right, calls=float(np.mean(counting.steps)), figure=done.figures["overall"])


def gain(arm: Scored, baseline: Scored) -> dict[str, float]:
    """The mean paired difference with a bootstrap interval of 2000 draws."""
    difference = arm.right - baseline.right
    drawn = np.random.default_rng(0).choice(difference, (2000, len(difference))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return {"gain": float(difference.mean()), "gain_low": low, "gain_high": high}


def steps_of(count: int, change: Change = lambda sampler: sampler) -> Change:
    def changed(sampler: Sampler) -> Sampler:
        return change(dataclasses.replace(sampler, schedule=dataclasses.replace(sampler.schedule, steps=count)))  # type: ignore[type-var, call-arg]

    return changed


def without_noise(sampler: Sampler) -> Sampler:
    return dataclasses.replace(sampler, selection=Confident())


PICTURES = GenEval(draw=PromptGenerator(), distance=False)
PLANNED = GenEval(draw=PromptGenerator(thinking=Thinking(plan=True)), distance=False)
REMASKED: dict[str, Change] = {
    "cap_0.1": lambda s: remdm(s, eta=0.1),
    "cap_0.3": lambda s: remdm(s, eta=0.3),
    "cap_0.3_switch_0.5": lambda s: remdm(s, eta=0.3, switch=0.5),
    "conf_0.3": lambda s: remdm_conf(s, eta=0.3),
    "rescale_0.5": lambda s: remdm_rescale(s, eta=0.5),
}


def remasking(measured: Measure, only: Sequence[int]) -> None:
    def pictures(name: str, count: int, change: Change = lambda sampler: sampler) -> Arm:
        return Arm(
            name=f"pictures.{count}steps.{name}", part=PICTURES, preset="generate", change=steps_of(count, change)
        )

    for count in only:
        baseline = measured(pictures("own", count), None)
        for name, change in REMASKED.items():
            measured(pictures(name, count, change), baseline)
    silent = measured(pictures("own_without_noise", only[0], without_noise), None)
    measured(pictures("cap_0.3_without_noise", only[0], lambda s: remdm(without_noise(s), eta=0.3)), silent)


def bounded(measured: Measure, only: Sequence[int]) -> None:
    for task, part, preset, gammas in (
        ("answers", Questions(), "ask", (0.01, 0.1, 0.5)),
        ("plans", PLANNED, "plan", (0.01, 0.1, 0.5)),
    ):
        baseline = measured(Arm(name=f"{task}.own", part=part, preset=preset), None)
        for gamma in gammas:
            measured(
                Arm(name=f"{task}.gamma_{gamma}", part=part, preset=preset, change=_bound(eb_sampler, gamma)), baseline
            )
    for gamma in (0.01, 0.1):
        change = _bound(eb_confidence, gamma)
        measured(Arm(name=f"plans.eb_confidence.gamma_{gamma}", part=PLANNED, preset="plan", change=change), None)
    for make in (eb_sampler, eb_confidence):
        for gamma in (2.0, 5.0, 10.0):
            name = f"pictures.{make.__name__}.gamma_{gamma}"
            found = measured(Arm(name=name, part=PICTURES, preset="generate", change=_bound(make, gamma)), None)
            if found:  # the model's own sampler at as many steps
                count = max(1, round(found.calls))
                equal = Arm(name=f"{name}.own_{count}steps", part=PICTURES, preset="generate", change=steps_of(count))
                measured(equal, found)


def _bound(make: Callable[..., Sampler], gamma: float) -> Change:
    return lambda sampler: make(sampler, gamma=gamma)


METHODS = {"remdm": remasking, "eb_sampler": bounded}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=tuple(METHODS), required=True, help="file of unmask/methods")
    parser.add_argument("--model", default="mini", help="name of a shipped model, or a folder")
    parser.add_argument("--each", type=int, default=200, help="items an arm")
    parser.add_argument("--steps", default="8,16,32", help="numbers of steps that remasking is measured at")
    parser.add_argument("--only", default="", metavar="REGEX", help="measure only the arms whose name matches")
    parser.add_argument("--level", default="grid", help="grid or free")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other items")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    return parser


def main() -> None:
    given = arguments().parse_args()
    torch.set_num_threads(given.threads)
    model = unmask.load(given.model)
    if not isinstance(model, Model):
        raise ValueError(f"{given.model} is a text model, and this measures pictures; give it another model")
    plan = EvalPlan(level=given.level, split="validation", n=given.each, seed=given.seed)

    def measured(arm: Arm, baseline: Scored | None) -> Scored | None:
        if not re.match(given.only, arm.name):
            return None
        found = run(model, arm, plan)
        more = {k: v for k, v in found.figure.items() if k != "value"} | {"calls": round(found.calls, 3)}
        more |= gain(found, baseline) if baseline else {}
        value = float(found.figure["value"])
        print(f"{arm.name:44} {value:.3f}", {k: round(v, 3) for k, v in more.items()}, flush=True)
        append(given.history, [Line(name=f"methods.{given.method}.{arm.name}", value=value, unit="share", more=more)])
        return found

    METHODS[given.method](measured, [int(s) for s in given.steps.split(",")])


if __name__ == "__main__":
    main()
