"""What fast mode costs: judged quality against CPU seconds, for each part of it and for some combinations.

    python bench/pareto.py --split validation --out pareto-validation
        every setting on validation prompts, from which the defaults of fast mode are chosen
    python bench/pareto.py --split test --only 'exact|fast' --out pareto-test --history bench/history.jsonl
        the figures to report, on prompts that no choice has seen
    python bench/pareto.py --n 8 --rounds 2 --tasks draw --only 'exact|steps' --out try
        a quick look

Drawing is scored by world-GenEval, from a prompt and from a layout of the model's own; editing by edit success, without guidance as the
preset has it and with it; answers by world questions. ``gain`` is the mean paired difference to exact on the same items and seeds, with a
95 % bootstrap interval. ``seconds`` are CPU seconds of one request alone; the settings take turns on the same items, and ``speedup`` is the
median ratio to exact with its quartiles. ``rows`` counts the rows of all forward passes of a request, views of guidance included; it is the
same on every machine.

--out keeps verdicts, timings and results as they come: a run that was stopped goes on. --sparse adds a model that was trained for
step-causal decoding (``unmask train sparse.mini``).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pareto_plot import plot

import unmask
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.history import Line, append
from unmask.evaluation.metrics import paired
from unmask.evaluation.progress import Lines
from unmask.evaluation.strategies import EditGenerator, PromptGenerator
from unmask.evaluation.world_edit import Edits
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_questions import Questions
from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.tasks.reflecting import Thinking

EXACT = "exact"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """``name``: of its row · ``model``: at the speed that is measured."""

    name: str
    model: Model


@dataclass(frozen=True, kw_only=True)
class Task:
    """``n``: items that are judged · ``speeds``: the settings, as of --speed."""

    part: EvalPart
    n: int
    speeds: tuple[str, ...]


GUIDED = (
    "interval=0:0.25",
    "interval=0:0.5",
    "interval=0.25:1",
    "interval=0.5:1",
    "refresh=2",
    "refresh=4",
    "refresh=8",
)
FEWER = ("steps=0.75", "steps=0.5", "steps=0.375", "steps=0.25", "steps=0.125", "shift=3")
SHIFTED = tuple(f"steps={steps},shift={shift}" for steps in (0.5, 0.375, 0.25, 0.125) for shift in (3, 4, 6))
THRESHOLDS = ("threshold=0.99", "threshold=0.95", "threshold=0.9", "threshold=0.8", "threshold=0.6")
TASKS = {
    "draw": Task(
        part=GenEval(draw=PromptGenerator(), distance=False),
        n=600,
        speeds=(
            *(*GUIDED, *FEWER, *SHIFTED, "interval=0:0.5,refresh=2"),
            *("refresh=2,steps=0.5,shift=3", "interval=0:0.5,refresh=2,steps=0.5,shift=3", "fast"),
        ),
    ),
    "plan": Task(
        part=GenEval(draw=PromptGenerator(thinking=Thinking(plan=True)), distance=False),
        n=300,
        speeds=(*THRESHOLDS, "fast"),
    ),
    "edit": Task(
        part=Edits(draw=EditGenerator()),
        n=210,
        speeds=(*FEWER, *SHIFTED, "fast"),
    ),
    "guided_edit": Task(  # the preset of mini edits without guidance
        part=Edits(draw=EditGenerator(changes=("guidance.scale=1.0", "guidance.image_scale=0.5"))),
        n=210,
        speeds=(*GUIDED, "interval=0:0.5,refresh=2", "fast"),
    ),
    "ask": Task(part=Questions(), n=600, speeds=(*THRESHOLDS, "fast")),
}


def settings(model: Model, task: Task, sparse: Model | None) -> Iterator[Setting]:
    """Exact first, to which all others are compared."""
    yield Setting(name=EXACT, model=model)
    for speed in task.speeds:
        yield Setting(name=speed, model=model.with_speed(speed))
    if sparse:
        yield Setting(name="sparse", model=sparse)
        yield Setting(name="sparse,fast", model=sparse.with_speed("fast"))


class Kept:
    """The lines of a file of JSON objects: those of past runs, and those added, each written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a run was killed while it wrote a line
            path.write_text(whole, encoding="utf-8")
        self.rows: list[Json] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: Json) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def request(part: EvalPart, model: Model, items: Sequence[Any]) -> tuple[float, int]:
    """CPU seconds of one request without its judgement, and the rows of its forward passes."""
    rows: list[int] = []
    hook = model.parts.net.register_forward_pre_hook(lambda net, given: rows.append(given[0].rows))
    try:
        began = time.process_time()
        part.draw(model, items) if isinstance(part, GenEval | Edits) else part.find(model, items)
        return time.process_time() - began, sum(rows)
    finally:
        hook.remove()


def time_in_turns(name: str, task: Task, chosen: Sequence[Setting], plan: EvalPlan, rounds: int, kept: Kept) -> None:
    """Every setting on the items one after the other; the first round, which warms up, is not kept.

    A later run takes the rounds that are missing, with exact beside them: ``session`` numbers the runs.
    """
    items = task.part.items(replace(plan, n=max(6, rounds)))
    known = {(row["task"], row["setting"], row["round"]) for row in kept.rows}
    session = 1 + max((row["session"] for row in kept.rows), default=-1)
    if all((name, setting.name, number) in known for setting in chosen for number in range(rounds)):
        return
    for number in range(-1, rounds):
        missing = [s for s in chosen[1:] if (name, s.name, number) not in known]
        timed = not missing and (name, EXACT, number) in known
        for setting in [] if timed else [chosen[0], *missing]:
            seconds, rows = request(task.part, setting.model, [items[max(0, number) % len(items)]])
            if number >= 0:
                about = {"task": name, "setting": setting.name, "session": session, "round": number}
                kept.add({**about, "seconds": seconds, "rows": rows})


def timings(name: str, setting: str, kept: Kept) -> Json:
    """Seconds, rows and the speed-up over exact, by round."""
    taken = {(row["setting"], row["session"], row["round"]): row for row in kept.rows if row["task"] == name}
    turns = [turn for one, *turn in taken if one == setting and (EXACT, *turn) in taken]
    own, exact = ([taken[one, *turn] for turn in turns] for one in (setting, EXACT))
    ratio = np.array([e["seconds"] / o["seconds"] for o, e in zip(own, exact, strict=True)])
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75]).tolist()
    return {
        "seconds": float(np.median([row["seconds"] for row in own])),
        "rows": float(np.mean([row["rows"] for row in own])),
        "speedup": middle,
        "speedup_low": low,
        "speedup_high": high,
    }


def gain(right: np.ndarray, exact: np.ndarray) -> Json:
    """The mean paired difference with a bootstrap interval of 2,000 draws."""
    found = paired(right.tolist(), exact.tolist())
    return {"gain": found["value"], "gain_low": found["low"], "gain_high": found["high"]}


def front(rows: Sequence[Json]) -> list[Json]:
    """The rows that no other row beats: none is at least as good and as fast, and better in one of the two."""

    def beats(other: Json, row: Json) -> bool:
        better, faster = other["value"] - row["value"], row["seconds"] - other["seconds"]
        return better >= 0 and faster >= 0 and better + faster > 0

    return [row for row in rows if not any(beats(other, row) for other in rows)]


def measured(name: str, given: argparse.Namespace, model: Model, sparse: Model | None) -> None:
    """All chosen settings of a task: their timings, then their quality one by one."""
    task, out = TASKS[name], Path(given.out)
    chosen = [s for s in settings(model, task, sparse) if s.name == EXACT or re.fullmatch(given.only, s.name)]
    plan = EvalPlan(split=given.split, n=min(task.n, given.n or task.n), seed=given.seed)
    kept, results = Kept(out / "seconds.jsonl"), Kept(out / "results.jsonl")
    time_in_turns(name, task, chosen, plan, given.rounds, kept)
    record, exact = Record(out / "verdicts" / name), np.zeros(0)
    for setting in chosen:
        with Lines() as lines:
            found = measure(setting.model, task.part, plan, record, lines)
        right = np.array([float(row["right"]) for row in found.rows])
        exact = right if setting.name == EXACT else exact
        figure = {k: found.figures["overall"][k] for k in ("value", "low", "high", "n")}
        row: Json = {"task": name, "setting": setting.name, "split": plan.split, "seed": plan.seed, **figure}
        row |= {**timings(name, setting.name, kept), **gain(right, exact)}
        print(
            f"{name:5} {setting.name:26} {row['value']:.3f} ({row['gain']:+.3f})  {row['seconds']:.3f} s  "
            f"{row['speedup']:.2f} times as fast  {row['rows']:.0f} rows",
            flush=True,
        )
        if not any(same(row, other) for other in results.rows):
            results.add(row)
            more = {k: v for k, v in row.items() if k not in ("task", "setting", "value", "split")}
            line = Line(name=f"pareto.{plan.split}.{name}.{setting.name}", value=row["value"], unit="share", more=more)
            append(given.history, [line]) if given.history else None


def same(row: Json, other: Json) -> bool:
    return all(row[key] == other[key] for key in ("task", "setting", "split", "seed", "n"))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="name of a shipped model, or a folder")
    parser.add_argument("--sparse", metavar="FOLDER", help="a model for step-causal decoding, as two more settings")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--only", default=".*", metavar="REGEX", help="settings whose whole name matches; exact always")
    parser.add_argument("--n", type=int, help="items of a task, at most  [default: each task's own number]")
    parser.add_argument("--rounds", type=int, default=12, help="requests a setting whose seconds are measured")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="of the prompts")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other prompts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", required=True, help="folder for verdicts, timings and results")
    parser.add_argument("--history", type=Path, help="append a row per setting to this file")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw quality against seconds")
    return parser


def opened(name: str) -> Model:
    model = unmask.load(name)
    if not isinstance(model, Model):
        raise ValueError(f"{name} is a text model, and this measures pictures; give it another model")
    return model


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    chosen = given.tasks.split(",")
    if unknown := [name for name in chosen if name not in TASKS]:
        parser.error(f"--tasks has no {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
    torch.set_num_threads(given.threads)
    model, sparse = opened(given.model), opened(given.sparse) if given.sparse else None
    for name in chosen:
        measured(name, given, model, sparse)
    rows = Kept(Path(given.out) / "results.jsonl").rows
    if given.json:
        given.json.write_text(json.dumps({"figures": rows}, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        some = {name: [row for row in rows if row["task"] == name] for name in chosen}
        plot({name: (of, front(of)) for name, of in some.items()}, given.plot)


if __name__ == "__main__":
    main()
