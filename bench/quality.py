"""The paper's comparison of samplers on one model, and the search for settings: on validation prompts, never on test.

    python bench/quality.py --model mini
        stratified, Halton and random order, and confidence, at 8 and 16 steps
    python bench/quality.py --model mini --sweep guidance.scale=0,1,2 --sweep token_sampler.temperature=0.6,1.0
        every combination of the values; --task edit scores editing instead of drawing
    python bench/quality.py --record report/report.json
    python bench/quality.py --record geneval.json --name public.planned
        only copies the figures of `unmask evaluate` into the history

Drawing is scored by world-GenEval, editing by edit success (``unmask.evaluation``), with 95 % intervals; all settings
see the same prompts and the same seeds. Every figure is appended to bench/history.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

import unmask
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.history import Line, append, figures
from unmask.evaluation.progress import Lines
from unmask.evaluation.strategies import EditGenerator, PromptGenerator
from unmask.evaluation.world_edit import Edits
from unmask.evaluation.world_geneval import GenEval
from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.sampling.orders import halton, stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident, InOrder, RandomOrder
from unmask.tasks import edit, generate
from unmask.tasks.parts import Parts

HISTORY = Path(__file__).with_name("history.jsonl")
Make = Callable[[Parts], Sampler]


def chosen(order: str, steps: int, parts: Parts) -> Sampler:
    """The task's own sampler at ``steps`` steps of its schedule, with another rule for which codes come next."""
    selects = {
        "confidence": lambda: generate.sampler(parts).selection,
        "confidence_without_noise": lambda: Confident(),
        "stratified": lambda: InOrder(order=tuple(stratified(parts.grid[0]))),
        "halton": lambda: InOrder(order=tuple(halton(*parts.grid))),
        "random": lambda: RandomOrder(),
    }
    return dataclasses.replace(generate.sampler(parts), schedule=Cosine(steps=steps), selection=selects[order]())


ORDERS = ("stratified", "halton", "random", "confidence", "confidence_without_noise")


def overridden(settings: tuple[str, ...], task: Make, parts: Parts) -> Sampler:
    return override(task(parts), settings)


def grid(sweeps: list[str]) -> Iterator[tuple[str, ...]]:
    """["a=1,2", "b=3"] -> ("a=1", "b=3"), ("a=2", "b=3"). ValueError where there is no ``=``."""
    axes = []
    for sweep in sweeps:
        field, separator, values = sweep.partition("=")
        if not separator:
            raise ValueError(f"--sweep {sweep!r} must look like guidance.scale=0,1,2")
        axes.append([f"{field}={value}" for value in values.split(",")])
    yield from itertools.product(*axes)


def score(model: Model, name: str, part: EvalPart, plan: EvalPlan, record: Record) -> list[Line]:
    """One setting's figures: overall and per kind."""
    with Lines() as lines:
        measured = measure(model, part, plan, record, lines)
    overall = measured.figures["overall"]
    print(
        f"{name:60} {overall['value']:.3f}  {overall['low']:.3f} .. {overall['high']:.3f}  n {overall['n']}", flush=True
    )
    return [line for line in figures(measured.figures, name) if line.more and "n" in line.more]


def comparison(steps: list[int]) -> Iterator[tuple[str, EvalPart]]:
    for count, order in itertools.product(steps, ORDERS):
        make = partial(chosen, order, count)
        yield f"quality.sampler.{order}.{count}steps", GenEval(draw=PromptGenerator(sampler=make), distance=False)


def sweep(task: str, sweeps: list[str]) -> Iterator[tuple[str, EvalPart]]:
    for settings in grid(sweeps):
        own = generate.sampler if task == "draw" else edit.sampler
        make = partial(overridden, settings, own)
        name = f"quality.sweep.{task}." + ",".join(settings)
        drawing = GenEval(draw=PromptGenerator(sampler=make), distance=False)
        yield name, drawing if task == "draw" else Edits(draw=EditGenerator(sampler=make))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="name of a shipped model, or a folder")
    parser.add_argument("--threads", type=int, help="processor threads to use")
    parser.add_argument("--n", type=int, default=300, help="prompts a setting")
    parser.add_argument("--level", default="grid", help="grid or free")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other prompts")
    parser.add_argument("--steps", default="8,16", help="numbers of steps to compare at")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="FIELD=A,B", help="a sampler field and its values"
    )
    parser.add_argument("--task", choices=("draw", "edit"), default="draw", help="what a sweep is scored on")
    parser.add_argument("--out", type=Path, help="folder for verdicts: a run that was stopped goes on")
    parser.add_argument("--record", type=Path, metavar="REPORT", help="only copy a report's figures into the history")
    parser.add_argument("--name", help="with --record: of the figures, behind evaluate.; absent: the level, or public")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    return parser


def main() -> None:
    given = arguments().parse_args()
    if given.record:
        report = json.loads(given.record.read_text(encoding="utf-8"))
        append(given.history, figures(report, f"evaluate.{given.name or report['about'].get('level', 'public')}"))
        return
    if given.threads:
        torch.set_num_threads(given.threads)
    model = unmask.load(given.model)
    if not isinstance(model, Model):
        raise ValueError(f"{given.model} is a text model, and this measures drawing and looking; give it another model")
    plan = EvalPlan(level=given.level, split="validation", n=given.n, seed=given.seed)
    settings = sweep(given.task, given.sweep) if given.sweep else comparison([int(s) for s in given.steps.split(",")])
    for name, part in settings:
        append(given.history, score(model, name, part, plan, Record(given.out)))


if __name__ == "__main__":
    main()
