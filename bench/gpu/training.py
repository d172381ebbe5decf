"""Training speed on one device: steps of ``mini.stage3`` with larger batches, by the trainer itself.

    python bench/gpu/training.py --device cuda --times 8 --history rows.jsonl

The batches are made before the clock starts, so this is the speed of the device, not of the data. Exit code 5 where the trainer has
no setting for the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import HISTORY, show  # noqa: E402

from unmask.data.mixture import Joint  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.attention import fused, plain  # noqa: E402
from unmask.recipe import Recipe, Training, override  # noqa: E402
from unmask.rng import generator  # noqa: E402
from unmask.training.losses import losses  # noqa: E402
from unmask.training.meters import matmul_peak  # noqa: E402
from unmask.training.train import train  # noqa: E402

NO_DEVICE = 5


@dataclasses.dataclass(frozen=True)
class Made:
    """Batches that are there already, in turn."""

    batches: tuple[Any, ...]

    def __call__(self, step: int) -> Any:
        return self.batches[step % len(self.batches)]


def larger(source: Joint, times: int) -> Joint:
    """Every part of a joint source with ``times`` as many rows."""
    parts: list[Any] = []
    for name, part, every in source.parts:
        rows = part.batch * times  # type: ignore[missing-attribute]
        parts.append((name, dataclasses.replace(part, batch=rows), every))  # type: ignore[bad-argument-type]
    return Joint(parts=tuple(parts))


@functools.lru_cache(maxsize=1)
def batches(times: int, images: int) -> tuple[Any, ...]:
    """Two batches of ``mini.stage3``, each with ``times`` as many rows."""
    from unmask.recipes import mini

    source = larger(mini.stage3(vision="", start="", images=images).source, times)  # type: ignore[bad-argument-type]
    return source(1), source(2)


def recipe_of(given: argparse.Namespace, times: int, variant: str) -> Recipe:
    """``mini.stage3`` from fresh weights, with batches that are there already."""
    from unmask.recipes import mini

    recipe = mini.stage3(vision="", start="", images=given.images)

    def model() -> Any:
        made = recipe.model()
        made.attention = fused if variant.endswith("fused") else plain
        return made

    changed = dataclasses.replace(recipe, model=model, source=Made(batches(times, given.images)), export=None)
    steps, log = f"training.steps={given.steps}", f"training.log_every={interval(given)}"
    return override(
        changed, [steps, log, f"training.bf16={variant.startswith('bf16')}", f"training.device={given.device}"]
    )


def interval(given: argparse.Namespace) -> int:
    return max(1, given.steps // 5)


def share(recipe: Recipe, device: str, step_s: float) -> float:
    """The share of the measured peak of a matrix product that a step of ``step_s`` seconds reaches."""
    dtype = torch.bfloat16 if recipe.training.bf16 else torch.float32
    module = recipe.model().to(device, dtype)
    for name, p in module.named_parameters():
        p.requires_grad_(recipe.trainable(name))
    batch = {name: part.to(device) for name, part in recipe.source(0).items()}
    with FlopCounterMode(display=False) as counter:
        for loss in losses(recipe.objective(module, batch, generator("bench"))):
            loss.total.backward()
    return counter.get_total_flops() / step_s / matmul_peak(dtype, device)


def measured(given: argparse.Namespace, times: int, variant: str) -> list[Line]:
    """Tokens a second and share of the peak, of the last fifth of the steps."""
    began = time.perf_counter()
    recipe = recipe_of(given, times, variant)
    data = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    last, name = rows[-1], f"gpu.train.{variant}.times{times}"
    losses = [sum(v for k, v in row.items() if k.endswith((".text", ".code"))) for row in (rows[0], last)]
    step = last["seconds"] / interval(given)
    more = {"step_s": step, "data_s": data, "loss_first": losses[0], "loss_last": losses[1]}
    if given.device.startswith("cuda"):
        more["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    return [
        Line(name=f"{name}.tokens", value=last["tokens_per_s"], unit="1/s", more=more),
        Line(name=f"{name}.peak", value=share(recipe, given.device, step), unit="share"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--steps", type=int, default=50, help="of each run; the last fifth is measured")
    parser.add_argument("--times", default="8,1", metavar="N,N", help="how many times the recipe's own batch")
    parser.add_argument("--variants", default="bf16,bf16_fused,float32", help="types and attention; plain if not fused")
    parser.add_argument("--images", type=int, default=1000, help="pictures that the dictionary of codes is fitted to")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    if "device" not in {field.name for field in dataclasses.fields(Training)}:
        print("skipped: the trainer has no setting for the device (training.device)")
        return NO_DEVICE
    failed = False
    for times in map(int, given.times.split(",")):
        for variant in given.variants.split(","):
            try:
                lines = measured(given, times, variant)
                show(lines)
                append(given.history, lines, device=given.device)
            except Exception:
                traceback.print_exc()
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
