"""Train and measure the ablations (``unmask.recipes.ablations``), and write docs/ablations.md.

    python bench/ablations.py                            every arm with three seeds; an interrupted run continues
    python bench/ablations.py --arms base,joint_2 --seeds 0 --teraflops 1 --n 12
    python bench/ablations.py --orders                   orders of unmasking, on the models of the arm base
    python bench/ablations.py --page                     docs/ablations.md and its plots, from the rows so far
    python bench/ablations.py --history                  append the rows to bench/history.jsonl too

Every run leaves its weights in OUT/ARM-SEED and a row in OUT/rows.jsonl: losses on scenes that no run has seen, with the same masks for
all, and the judged success of drawings and answers on the validation split.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablations_page import write_page
from quality import ORDERS, chosen

from unmask.checkpoints.store import load_module
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.history import Line, append
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_conditions import Conditioned
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_questions import Questions
from unmask.models.elastic import Elastic
from unmask.pipeline.model import Model
from unmask.recipes import ablations
from unmask.recipes.ablations import ARMS, shipped
from unmask.rng import generator
from unmask.training.train import train

ROOT = Path(__file__).parents[1]
HISTORY = Path(__file__).with_name("history.jsonl")
STEPS = (8, 16, 32, 64)
UNSEEN = 10**6  # the seed of scenes on which losses are measured
_BATCHES = 6


def trained(arm: str, seed: int, args: argparse.Namespace) -> tuple[Elastic, int, float]:
    """The network of a run, its steps, and the CPU seconds that this process spent on it."""
    began = time.process_time()
    folder = args.out / f"{arm}-{seed}"
    recipe = ablations.run(arm, seed, args.teraflops, args.times)
    if not (folder / "model.safetensors").exists():
        train(recipe, folder)
    net = load_module(Elastic(ARMS[arm].config, mask_id=shipped().parts.mask_id), folder).eval()
    return net, recipe.training.steps, time.process_time() - began


def losses(net: Elastic, times: float) -> dict[str, float]:
    """Losses of every task by the baseline's objectives, without dropout."""
    objectives = {
        name: dataclasses.replace(scored, dropouts=()) for name, scored, _ in ablations.objectives(ARMS["base"])
    }
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for name, source in ablations.sources(ARMS["base"], UNSEEN, times):
            for step in range(_BATCHES):
                loss = objectives[name](net, source(step), generator("ablation losses", name, step))
                for term, value in loss.terms.items():
                    sums.setdefault(f"{name}.{term}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def model_of(net: Elastic) -> Model:
    """A network with everything else of the shipped model."""
    opened = shipped()
    return Model(dataclasses.replace(opened.parts, net=net, weights=None), opened.presets)


def judged(net: Elastic, parts: dict[str, EvalPart], n: int) -> dict[str, Any]:
    """The figures of parts of the suite on the validation split."""
    plan = EvalPlan(split="validation", n=n)
    return {name: measure(model_of(net), part, plan, Record()).figures for name, part in parts.items()}


def figures(net: Elastic, args: argparse.Namespace, *, conditions: bool) -> dict[str, float]:
    found = judged(net, {"drawing": GenEval(distance=False), "questions": Questions()}, args.n)
    out = {f"loss.{name}": value for name, value in losses(net, args.times).items()}
    out |= {name: float(part["overall"]["value"]) for name, part in found.items()}
    if conditions:
        seen = judged(net, {"conditions": Conditioned()}, args.n)["conditions"]
        out |= {name: float(seen[name]["value"] or 0.0) for name in ("luminance", "contrast")}
    return out


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    net, steps, seconds = trained(arm, seed, args)
    measured = figures(net, args, conditions=ARMS[arm].group in ("", "conditions"))
    about = {"group": ARMS[arm].group, "arm": arm, "seed": seed, "steps": steps, "teraflops": args.teraflops}
    yield {**about, "n": args.n, "cpu_seconds": round(seconds, 1), "figures": measured}


def run_orders(seed: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Success and Fréchet distance of every order and number of steps, on the baseline's model of a seed."""
    net, _, _ = trained("base", seed, args)
    for steps, order in itertools.product(STEPS, ORDERS):
        name = f"{order}_{steps}"
        if (name, seed) in known(args):
            continue
        part = GenEval(draw=PromptGenerator(sampler=partial(chosen, order, steps)))
        found = judged(net, {"drawing": part}, args.n)["drawing"]
        distance = found["frechet"]["value"]
        measured = {
            "drawing": float(found["overall"]["value"]),
            "frechet": float(distance if distance is not None else 0),
        }
        yield {"group": "orders", "arm": name, "seed": seed, "steps": steps, "n": args.n, "figures": measured}


def rows_of(out: Path) -> list[dict[str, Any]]:
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def known(args: argparse.Namespace) -> set[tuple[str, int]]:
    return {(row["arm"], row["seed"]) for row in rows_of(args.out)}


def keep(row: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the row at once, so that a stopped run keeps it."""
    print(f"{row['arm']} seed {row['seed']}: {json.dumps(row['figures'])}", flush=True)
    with (args.out / "rows.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
    if args.history:
        more = {name: row[name] for name in ("n", "seed", "steps", "teraflops") if name in row}
        name = f"ablations.{row['group'] or 'base'}.{row['arm']}"
        append(HISTORY, [Line(name=f"{name}.{k}", value=v, unit="", more=more) for k, v in row["figures"].items()])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablations", help="folder of the runs and rows")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms to run, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--teraflops", type=float, default=100.0, help="operations of a run")
    parser.add_argument("--times", type=float, default=1.0, help="multiplies the rows of a batch")
    parser.add_argument("--n", type=int, default=300, help="items of each measurement")
    parser.add_argument("--orders", action="store_true", help="measure orders of unmasking instead of arms")
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument("--history", action="store_true", help="append the rows to bench/history.jsonl")
    return parser


def main(words: list[str] | None = None) -> None:
    args = arguments().parse_args(words)
    torch.set_num_threads(1)
    if args.page:
        write_page(rows_of(args.out), args.docs)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    unknown = [arm for arm in args.arms.split(",") if arm not in ARMS]
    if unknown:
        raise SystemExit(f"there is no arm {unknown[0]!r}; choose from {', '.join(ARMS)}")
    for seed in map(int, args.seeds.split(",")):  # a complete comparison with one seed comes first
        for arm in ["base"] if args.orders else args.arms.split(","):
            if args.orders:
                made = run_orders(seed, args)
            elif (arm, seed) in known(args):
                continue
            else:
                made = run_arm(arm, seed, args)
            for row in made:
                keep(row, args)


if __name__ == "__main__":
    main()
