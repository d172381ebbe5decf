"""Training speed on one device: the share of the measured peak of a matrix product that a step of a 0.1 B and of a 1 B network reaches.

    python bench/gpu/training.py --device cuda --history rows.jsonl
    python bench/gpu/training.py --device cpu --quick        a small network, as a rehearsal

The networks have the released layout and random weights. A row has 256 words that are given, 256 that are learned, and an image of 4,096
codes in 1,024 positions; the update by AdamW with float32 masters is a part of the step, data is not. ``mini.stage3`` follows, whose 17
tasks share forward passes or have one each (``objectives.masked.Together.joined``). Operations are counted as they are executed: where the
head runs in chunks, its second pass counts too, about 1 % of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import HISTORY, settle, show  # noqa: E402

from unmask.corruption.absorbing import Absorbing  # noqa: E402
from unmask.data.mixture import Joint  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.attention import fused  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.models.sizes import SIZES, ElasticConfig  # noqa: E402
from unmask.objectives.masked import Masked, Together  # noqa: E402
from unmask.recipe import Optim  # noqa: E402
from unmask.rng import generator  # noqa: E402
from unmask.sequence import Batch, Kind, Sequence, Span, collate  # noqa: E402
from unmask.training.device import move  # noqa: E402
from unmask.training.layers import prepared  # noqa: E402
from unmask.training.losses import losses  # noqa: E402
from unmask.training.meters import matmul_peak  # noqa: E402
from unmask.training.optim import Masters  # noqa: E402
from unmask.training.probe import flop_counter


@dataclass(frozen=True, kw_only=True)
class Size:
    """``rows`` of a step · ``words``: given and learned ones of a row · ``side``: of its grid of codes."""

    config: ElasticConfig
    rows: int
    words: int = 256
    side: int = 64


_LAYOUT = ElasticConfig(vocab_size=32768, vision=None)
LARGE = {
    "0.1b": Size(
        config=dataclasses.replace(
            _LAYOUT, width=512, heads=8, layers=16, mlp=1536, gen_width=256, gen_mlp=1024, joint_layers=9
        ),
        rows=32,
    ),
    "1b": Size(
        config=dataclasses.replace(
            _LAYOUT, width=1536, heads=12, layers=24, mlp=4608, gen_width=768, gen_mlp=3072, joint_layers=13
        ),
        rows=16,
    ),
}
TINY = Size(config=dataclasses.replace(SIZES["tiny"], vision=None), rows=2, words=8, side=4)


def batch_of(size: Size) -> Batch:
    """Random rows; all have one length, so attention needs no mask."""
    words, codes = size.words, size.side**2
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=words),
        Span(name="plan", kind=Kind.TEXT, start=words, stop=2 * words, writable=True),
        Span(
            name="image",
            kind=Kind.CODE,
            start=2 * words,
            stop=2 * words + codes,
            grid=(size.side, size.side),
            fold=2,
            writable=True,
        ),
    )
    masked, rng = torch.zeros(2 * words + codes, dtype=torch.bool), generator("rows")
    top = min(size.config.codes, size.config.vocab_size)
    ids = [torch.randint(2, top, (2 * words + codes,), generator=rng) for _ in range(size.rows)]
    return collate([Sequence(ids=i, masked=masked, spans=spans) for i in ids], range(size.rows))


def network(config: ElasticConfig, device: str) -> Elastic:
    """Random float32 weights, made where they are trained."""
    with torch.device("meta"):
        net = Elastic(config, mask_id=1, attention=fused)
    net = net.to_empty(device=device)
    init(net, torch.Generator(device).manual_seed(0))
    return net


def stepper(
    module: nn.Module, objective: Any, batch: Any, device: str, trainable: Callable[[str], bool] = lambda name: True
) -> Callable[[], int]:
    """One step in bfloat16, update included; returns the number of learned tokens."""
    masters = Masters(module, Optim(), trainable, dtype=torch.bfloat16, device=torch.device(device))
    masters.sync()
    batch = move(batch, torch.device(device))

    def work() -> int:
        (loss,) = losses(objective(module, batch, generator("bench")))
        loss.total.backward()
        masters.step(1e-4, 0)
        return sum(loss.counts.values())

    return work


def seconds(work: Callable[[], int], repeats: int) -> float:
    """Median of a step, after two that do not count."""
    taken = []
    for number in range(repeats + 2):
        settle()
        began = time.perf_counter()
        work()
        settle()
        if number >= 2:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def large(name: str, size: Size, given: argparse.Namespace) -> Iterator[Line]:
    """Steps as they are and, on a GPU, with compiled layers."""
    module = network(size.config, given.device)
    work = stepper(module, Masked(corruption=Absorbing()), batch_of(size), given.device)
    with flop_counter() as counter:
        tokens = work()
    flops, peak = counter.get_total_flops(), matmul_peak(torch.bfloat16, given.device)
    for compiled in (False,) if given.device == "cpu" else (False, True):
        if given.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        with prepared(module, recompute=False, compile=compiled):
            step = seconds(work, given.steps)
        more = {
            "step_s": step,
            "tokens_per_s": tokens / step,
            "tflop": flops / 1e12,
            "parameters_b": sum(p.numel() for p in module.parameters()) / 1e9,
        }
        if given.device != "cpu":
            more["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        label = f"gpu.train.{name}{'.compiled' if compiled else ''}.peak"
        yield Line(name=label, value=flops / step / peak, unit="share", more=more)


@functools.lru_cache(maxsize=1)
def stage3(times: int, tasks: frozenset[str]) -> Any:
    """``mini.stage3`` from fresh weights and one of its batches with ``times`` as many rows. ``tasks``: which; none means all."""
    from unmask.recipes import mini

    recipe = mini.stage3(vision="", start="", images=400)
    assert isinstance(recipe.source, Joint)
    chosen = [part for part in recipe.source.parts if not tasks or part[0] in tasks]
    parts: list[Any] = [(n, dataclasses.replace(s, batch=s.batch * times), e) for n, s, e in chosen]  # type: ignore[bad-argument-type, missing-attribute]
    return recipe, Joint(parts=tuple(parts))(1)


def mini(times: int, given: argparse.Namespace) -> Iterator[Line]:
    """The embedded model's last stage, which is many small tasks."""
    recipe, batch = stage3(times, frozenset({"plan", "look"} if given.quick else ()))
    assert isinstance(recipe.objective, Together)
    for name, joined in (("joined", True), ("apart", False)):
        module = network(SIZES["mini"], given.device) if given.quick else recipe.model()
        module.attention = fused
        objective = dataclasses.replace(recipe.objective, joined=joined)
        work = stepper(module, objective, batch, given.device, recipe.trainable)
        tokens, step = work(), seconds(work, given.steps)
        yield Line(name=f"gpu.train.stage3.{name}.tokens", value=tokens / step, unit="1/s", more={"step_s": step})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--quick", action="store_true", help="a small network, to rehearse the script")
    parser.add_argument("--steps", type=int, default=8, help="of each run that count")
    parser.add_argument("--sizes", default="1b,0.1b,mini", help="what to measure")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    if given.quick:
        given.steps = 1
    jobs: dict[str, Callable[[], Iterator[Line]]] = {
        name: lambda name=name, size=size: large(name, TINY if given.quick else size, given)
        for name, size in LARGE.items()
    }
    jobs["mini"] = lambda: mini(1 if given.quick else 8, given)
    failed = False
    for name in given.sizes.split(","):
        try:
            for line in jobs[name]():
                show([line])
                append(given.history, [line], device=given.device)
        except Exception:
            traceback.print_exc()
            failed = True
        if given.device != "cpu":
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
