"""How much is won by batching between steps: eight requests together through the engine against the same one after another without it.

    python bench/serving.py --model mini --threads 2

Both ways take turns in one run, so a busy machine harms both alike; answers must be equal. Every figure is appended to
bench/history.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import HISTORY, INSTRUCTION, PHRASE, PROMPT, QUESTION, Effort, scene_of, show, timed

import unmask
from unmask.data.sources import pixels_of
from unmask.evaluation.history import Line, append
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks import edit, generate, ground, infill, understand
from unmask.tasks.model import Model

QUESTIONS = (QUESTION, "what is this?", "is there a cat?", "what color is the chair?")


def texts(model: Model) -> list[Request]:
    """Eight questions of four lengths about eight pictures."""
    pixels, sampler = _pictures(model), model.presets.ask(model.parts)
    asked = [understand.Ask(pixels=p, question=QUESTIONS[i % 4], length=12) for i, p in enumerate(pixels)]
    return [Request(task=task, sampler=sampler, seed=i) for i, task in enumerate(asked)]


def drawings(model: Model) -> list[Request]:
    sampler = model.presets.generate(model.parts)
    return [Request(task=generate.Generate(prompt=PROMPT), sampler=sampler, seed=i) for i in range(8)]


def mixed(model: Model) -> list[Request]:
    """Two drawings, an edit, an infilled region, two questions, a box and a text with a gap."""
    parts, presets, pixels = model.parts, model.presets, _pictures(model)
    region = torch.zeros(parts.side, parts.side, dtype=torch.bool)
    region[: parts.side // 2] = True
    tasks: list[tuple[Any, Any]] = [
        (generate.Generate(prompt=PROMPT), presets.generate(parts)),
        (generate.Generate(prompt="a clock"), presets.generate(parts)),
        (edit.Edit(pixels=pixels[0], instruction=INSTRUCTION), presets.edit(parts)),
        (infill.Infill(pixels=pixels[1], region=region, prompt=PROMPT), presets.generate(parts)),
        (understand.Ask(pixels=pixels[2], question=QUESTION), presets.ask(parts)),
        (understand.Ask(pixels=pixels[3], question="what is this?"), presets.ask(parts)),
        (ground.Ground(pixels=pixels[4], phrases=(PHRASE,)), presets.ground(parts, 1)),
        (understand.FillText(target="two [mask] apples"), presets.fill(parts)),
    ]
    return [Request(task=task, sampler=sampler, seed=i) for i, (task, sampler) in enumerate(tasks)]


def _pictures(model: Model) -> torch.Tensor:
    return pixels_of([scene_of(i) for i in range(8)], model.parts.side)


def one_by_one(model: Model, requests: list[Request]) -> list[Any]:
    answers = []
    for request in requests:
        done = model.run([request.task.build(model.parts)], [request.seed], request.sampler)
        answers.append(request.task.read(done.rows[0], model.parts))
    return answers


def together(model: Model, requests: list[Request]) -> list[Any]:
    engine = Engine(model.parts)
    handles = [engine.submit(request) for request in requests]
    engine.drain()
    return [handle.result() for handle in handles]


def measured(model: Model, name: str, requests: list[Request], effort: Effort) -> Line:
    """How many times longer one by one takes. ValueError where the answers differ."""
    if together(model, requests) != one_by_one(model, requests):
        raise ValueError(f"{name}: together and one by one give different answers")
    fast, slow = timed([lambda: together(model, requests), lambda: one_by_one(model, requests)], effort)
    beside = {"together_s": fast, "one_by_one_s": slow, "per_s": len(requests) / fast}
    return Line(name=f"serving.together.{name}", value=slow / fast, unit="ratio", more=beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="mini", help="name of a shipped model, or a folder")
    parser.add_argument("--threads", type=int, help="processor threads to use")
    parser.add_argument("--repeats", type=int, default=5, help="calls that each median is over")
    parser.add_argument("--only", default="texts,drawings,mixed", help="groups to measure")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = unmask.load(given.model)
    if not isinstance(model, Model):
        raise ValueError(f"{given.model} is a text model, and this also draws; give it another model")
    groups: dict[str, Callable[[Model], list[Request]]] = {"texts": texts, "drawings": drawings, "mixed": mixed}
    if unknown := set(given.only.split(",")) - set(groups):
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    for name in given.only.split(","):
        lines = [measured(model, name, groups[name](model), Effort(repeats=given.repeats, warm=1))]
        show(lines)
        append(given.history, lines)


if __name__ == "__main__":
    main()
