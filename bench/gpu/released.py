"""The released layout on one GPU: random weights made there in bfloat16, no file read. Seconds, FLOPs, memory.

    python bench/gpu/released.py --device cuda --history rows.jsonl     10.4 B parameters, or a middle size with --size mid
    python bench/gpu/released.py --device cpu --quick                   a small network, as a rehearsal

Measurements are independent, the most important first, and each writes its rows at once. If one fails, the others go on, and the exit code
is 1. One for which ``--seconds`` leave no time is not started. The tokenizer is that of ``mini``, whose ids are a part of the released
vocabulary: the time does not depend on what the text says.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # few small kernels: other processes would cost more

import torch  # noqa: E402
from torch import nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from sampler_runs import (  # noqa: E402
    NO_GRAPHS,
    PROMPT,
    Bench,
    Timed,
    batch_for,
    drive,
    flops,
    freed,
    graphed,
    memory,
    with_presets,
)
from speed import HISTORY, settle  # noqa: E402

from unmask.checkpoints.float8 import Float8  # noqa: E402
from unmask.checkpoints.quantise import Quantiser, RoundToNearest  # noqa: E402
from unmask.models.attention import fused  # noqa: E402
from unmask.models.blocks import fuse  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.models.graphs import Graphs  # noqa: E402
from unmask.models.linear import pack  # noqa: E402
from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig  # noqa: E402
from unmask.pipeline.model import Model  # noqa: E402
from unmask.sampling.fast import EVERY, FAST, Fast  # noqa: E402
from unmask.sampling.sampler import Sampler  # noqa: E402
from unmask.sequence import Batch, stack  # noqa: E402
from unmask.tasks import released  # noqa: E402
from unmask.tasks.parts import Parts  # noqa: E402
from unmask.tokens.prompts import RELEASED  # noqa: E402
from unmask.tokens.text import MASK, Text  # noqa: E402
from unmask.tokens.vq import VQ, VQConfig  # noqa: E402
from unmask.training.layers import prepared  # noqa: E402

SMALL = ElasticConfig(
    width=128,
    heads=4,
    layers=4,
    mlp=256,
    gen_width=64,
    gen_mlp=128,
    joint_layers=2,
    vision=VisionConfig(image=56, width=32, layers=1, heads=2, mlp=64),
)
MID = dataclasses.replace(  # the released proportions at a quarter of the widths and half the layers
    SIZES["lavida_o"],
    width=1024,
    heads=8,
    layers=16,
    mlp=3072,
    gen_width=512,
    gen_mlp=2048,
    joint_layers=9,
    vision=VisionConfig(width=288, layers=6, heads=4, mlp=1076),
)
SMALL_VQ = VQConfig(
    block_out_channels=(8, 8, 8, 8, 8),
    layers_per_block=1,
    latent_channels=8,
    num_vq_embeddings=SMALL.codes,
    norm_num_groups=2,
)
LONGEST = 10.0  # seconds of a whole edit; a longer one is estimated from its first steps
FEW = 6  # steps, where a run is not measured as a whole
TASKS = ("draw", "edit", "answer")


def matmul_peak(device: str, n: int) -> float:
    """FLOPs a second of an n x n x n product of random bfloat16 matrices: ten in a row, after three."""
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    settle()
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    settle()
    return 10 * 2 * n**3 / (time.perf_counter() - began)


def bandwidth(device: str, nbytes: int) -> float:
    """Bytes a second of a copy on the device, read and written ones counted."""
    a = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    settle()
    began = time.perf_counter()
    for _ in range(10):
        b.copy_(a)
    settle()
    return 10 * 2 * nbytes / (time.perf_counter() - began)


def made(device: str, config: ElasticConfig, quick: bool) -> Model:
    """A model in the released layout with random weights, made where it works."""
    text = Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))
    with torch.device("meta"):
        net = Elastic(config, mask_id=text[MASK]).to(torch.bfloat16)
    net = net.to_empty(device=device).eval().requires_grad_(False)
    init(net, torch.Generator(device).manual_seed(0))
    pack(net)
    net.attention = fused
    with torch.device(device):
        vq = VQ(SMALL_VQ if quick else VQConfig()).eval().requires_grad_(False)
    parts = Parts(text=text, net=net, vq=vq, wording=RELEASED, side=256 if quick else 1024, fold=2)
    return Model(released.published(parts, {}), presets=released.PRESETS)


def ceilings(bench: Bench) -> None:
    size = 2**22 if bench.quick else 2**32
    bench.write(
        dataclasses.replace(bench.row("", bench.peak / 1e12, "TFLOP/s"), name="gpu.peak.bf16"),
        dataclasses.replace(bench.row("", bandwidth(bench.device, size) / 1e12, "TB/s"), name="gpu.peak.copy"),
    )


# -- runs -------------------------------------------------------------------------------------------------------------


def report(
    bench: Bench, name: str, timed: Timed, work: float | None = None, graphs: Graphs | None = None, **more: Any
) -> None:
    """Rows of a run. ``name``: task and way · ``work``: FLOPs of a step · ``.run`` of a part of the steps becomes ``.estimate``, all of
    them at the median of those that ran.
    """
    steps, of = len(timed.steps), timed.run.step.of
    step = settled(timed)
    bench.found[f"{name}.step"] = step
    net = bench.model.parts.net
    counts = {} if graphs is None else {"captures": graphs.captures, "replays": graphs.replays}
    told: dict[str, Any] = {"steps": steps, "of": of, "fused": net.blocks[0].fuses, **counts, **more}
    ends = {"first_s": statistics.median(timed.steps[:4]), "last_s": statistics.median(timed.steps[-4:])}
    lines = [bench.row(f"{name}.step", step, "s", **ends, **told, **memory(bench))]
    if timed.run.query is None:
        lines.append(bench.row(f"{name}.run", timed.seconds, "s", host_s=timed.host, **told))
    else:
        lines.append(bench.row(f"{name}.estimate", step * of, "s", **told))
    if work is not None:
        lines.append(bench.row(f"{name}.peak", work / step / bench.peak, "share", tflop=work / 1e12))
    bench.write(*lines)


def settled(timed: Timed) -> float:
    """Median of the steps, without the first four of a longer run: an answer reads its prompt in the first and captures in the fourth."""
    return statistics.median(timed.steps[4:] if len(timed.steps) > FEW else timed.steps)


def few_of(bench: Bench, task: str) -> int:
    """Steps of a run that is not measured as a whole."""
    if bench.quick:
        return 6 if task == "answer" else 3
    return FEW + 4 if task == "answer" else FEW


def eager(bench: Bench, task: str) -> None:
    """A drawing or an answer as a whole, the first steps of an edit, each kernel launched by itself."""
    batch, sampler = batch_for(bench, task)
    few = few_of(bench, task) if task == "edit" or bench.quick else None
    drive(bench, batch, sampler, 2)
    memory(bench)
    query = sampler.start(batch).query
    assert query is not None
    timed = drive(bench, batch, sampler, few)
    if task != "answer":  # whose steps differ: the prompt is read once
        bench.found[f"{task}.flops"] = flops(bench, query)
    report(bench, f"{task}.fused", timed, bench.found.get(f"{task}.flops"), tokens=int(batch.valid.sum()))


def with_graphs(bench: Bench, task: str, way: str) -> None:
    """The same with CUDA graphs beside single kernels: captured before, and a drawing that captures its own. Answers always do."""
    batch, sampler = batch_for(bench, task)
    whole, name = task != "edit" and not bench.quick, f"{task}.{way}"
    with graphed(bench, must=True) as graphs:
        drive(bench, batch, sampler, 3)
        memory(bench)
        timed = drive(bench, batch, sampler, None if whole else few_of(bench, task))
        report(bench, name, timed, bench.found.get(f"{task}.flops"), graphs)
    difference(bench, name, batch, sampler)
    if task == "draw":
        fresh, sampler = batch_for(bench, task)
        with graphed(bench, must=True) as graphs:
            timed = drive(bench, fresh, sampler, None if whole else few_of(bench, task))
        told = {"captures": graphs.captures, "replays": graphs.replays, "steps": len(timed.steps)}
        bench.write(bench.row(f"{name}.new_request", timed.seconds, "s", **told))


def fused_with_graphs(bench: Bench) -> None:
    """Rotations and activations compiled as well. If that works, it stays so for the measurements that follow."""
    net = bench.model.parts.net
    if not bench.card:
        return  # a CPU's compiler takes as long as all the others together
    fuse(net)
    try:
        for task in ("draw", "edit"):
            with_graphs(bench, task, "graphs_fused")
    except Exception:
        fuse(net, False)
        raise


def whole_edit(bench: Bench) -> None:
    """All steps of an edit as the network is now, where the first steps say that it does not take too long."""
    ways = [way for way in ("graphs_fused", "graphs") if f"edit.{way}.step" in bench.found]
    least = bench.found[f"edit.{ways[0]}.step"] * 64 if ways else LONGEST
    if least >= min(LONGEST, bench.left - 3) and not bench.quick:
        print(f"   an edit would take {least:.1f} s, and {bench.left:.1f} s are left")
        return
    batch, sampler = batch_for(bench, "edit")
    with graphed(bench) as graphs:
        drive(bench, batch, sampler, 3)
        report(bench, f"edit.{ways[0] if ways else 'graphs'}", drive(bench, batch, sampler), graphs=graphs)


@torch.no_grad()
def difference(bench: Bench, name: str, batch: Batch, sampler: Sampler) -> None:
    """The largest difference of a first step's logits between graphs and single kernels, and the share of equal ids after some steps."""
    net, query = bench.model.parts.net, sampler.start(batch).query
    assert query is not None
    some = few_of(bench, name.partition(".")[0])

    def logits() -> torch.Tensor:
        scored = net(query.batch, predict=query.predict, reuse=query.reuse).scored.values()
        return torch.cat([s.logits.float().flatten() for s in scored if s.logits is not None])

    alone, ids = logits(), drive(bench, batch, sampler, some).run.batch.ids
    with graphed(bench, must=True) as graphs:
        worst = max(float((logits() - alone).abs().max()) for _ in range(4))
        same = drive(bench, batch, sampler, some).run.batch.ids == ids
    told = {"of": float(alone.abs().max()), "equal_ids": float(same.float().mean()), "replays": graphs.replays}
    bench.write(bench.row(f"{name}.difference", worst, "logits", **told))


def fast(bench: Bench, task: str, name: str, speed: Fast) -> None:
    """A whole run at another speed, with CUDA graphs where they serve; ``views``: of guidance, over all steps."""
    other = with_presets(bench, bench.model.with_speed(speed).presets)
    batch, sampler = batch_for(other, task)
    with graphed(other) as graphs:
        drive(
            other, batch, sampler, 3 if bench.quick else 10
        )  # steps with and without all views have graphs of their own
        memory(other)
        timed = drive(other, batch, sampler, 3 if bench.quick else None)
    report(other, f"{task}.{name}", timed, graphs=graphs)


def tokenizer(bench: Bench) -> None:
    """Encoding and decoding one picture, in float32 as always; the first call apart, because cuDNN chooses its kernels then."""
    parts = bench.model.parts
    pixels = torch.rand(3, parts.side, parts.side, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(1, *parts.grid, dtype=torch.long)
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: parts.encode(pixels),
        "decode": lambda: parts.decode(codes),
    }
    for name, work in works.items():
        seconds = repeated(work, 4)
        bench.write(bench.row(f"vq.{name}", statistics.median(seconds[1:]), "s", first_s=seconds[0]))


@torch.no_grad()
def repeated(work: Callable[[], object], times: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(times):
        settle()
        began = time.perf_counter()
        work()
        settle()
        seconds.append(time.perf_counter() - began)
    return seconds


def whole(bench: Bench) -> None:
    """A drawing through the Python API, picture included, with the graphs that a new request captures."""
    few = ["schedule.steps=4"] if bench.quick else []
    with graphed(bench) as graphs:
        (seconds,) = repeated(lambda: bench.model.generate(PROMPT, plan=False, settings=few), 1)
    told = {"pixels": bench.model.parts.side, "captures": graphs.captures}
    bench.write(bench.row("generate", seconds, "s", **told))


def boxes(bench: Bench) -> None:
    """Four phrases on one picture through the Python API, whose features are known after the first call."""
    phrases = ["the cat", "a red apple", "the table", "the morning sun"]
    seconds = repeated(lambda: bench.model.ground(bench.picture, phrases), 4)
    bench.write(bench.row("boxes", statistics.median(seconds[1:]), "s", first_s=seconds[0], phrases=len(phrases)))


def wide(bench: Bench, task: str, rows: Sequence[int]) -> None:
    """Several requests in one batch, first steps: requests a second if all steps took as long."""
    one, sampler = batch_for(bench, task)
    for count in rows[:2] if bench.quick else rows:
        batch = stack([one] * count)
        with graphed(bench):
            drive(bench, batch, sampler, 3)
            memory(bench)
            timed = drive(bench, batch, sampler, few_of(bench, task))
        step, of = settled(timed), timed.run.step.of
        bench.write(bench.row(f"batch{count}.{task}", count / (step * of), "1/s", step_s=step, **memory(bench)))


# -- other ways to compute --------------------------------------------------------------------------------------------


def ways(bench: Bench, tasks: Sequence[str], way: str) -> None:
    """The median of a few steps as the network is now, with graphs."""
    for task in tasks:
        batch, sampler = batch_for(bench, task)
        with graphed(bench) as graphs:
            drive(bench, batch, sampler, 3)
            memory(bench)
            report(bench, f"{task}.{way}", drive(bench, batch, sampler, few_of(bench, task)), graphs=graphs)


def quantised(bench: Bench, quantise: Quantiser) -> None:
    """Steps with the weights of both branches quantised; the weights come back afterwards."""
    net = bench.model.parts.net
    inside = [m for b in net.blocks for n, m in b.named_modules() if isinstance(m, nn.Linear) and n != "out"]
    kept = [m.weight for m in inside]
    try:
        for module in inside:
            module.weight = nn.Parameter(quantise(module.weight.detach(), None), requires_grad=False)
        fuse(net, bool(net.blocks[0].fuses))
        ways(bench, TASKS, quantise.label)
    finally:
        for module, weight in zip(inside, kept, strict=True):
            module.weight = weight


def compiled(bench: Bench) -> None:
    """Steps with whole layers that went through ``torch.compile``. On a CPU the compiler takes minutes."""
    if not bench.card:
        return
    net = bench.model.parts.net
    fuse(net, False)
    with torch.no_grad(), prepared(net, recompute=False, compile=True):
        ways(bench, ("draw",), "compiled")


# -- all of it --------------------------------------------------------------------------------------------------------


def jobs(bench: Bench) -> dict[str, tuple[float, Callable[[], None]]]:
    """The measurements in order, each with the seconds that it takes on an H200 and is not started without."""
    speeds = {"fast": FAST, "every": EVERY}
    return {
        "ceilings": (1, partial(ceilings, bench)),
        "draw": (6, partial(eager, bench, "draw")),
        "draw graphs": (6, partial(with_graphs, bench, "draw", "graphs")),
        "edit": (4, partial(eager, bench, "edit")),
        "edit graphs": (5, partial(with_graphs, bench, "edit", "graphs")),
        "fused": (12, partial(fused_with_graphs, bench)),
        "edit whole": (3, partial(whole_edit, bench)),
        **{f"draw {name}": (3, partial(fast, bench, "draw", name, speed)) for name, speed in speeds.items()},
        **{f"edit {name}": (4, partial(fast, bench, "edit", name, speed)) for name, speed in speeds.items()},
        "answer fast": (3, partial(fast, bench, "answer", "fast", FAST)),
        "answer": (3, partial(eager, bench, "answer")),
        "answer graphs": (3, partial(with_graphs, bench, "answer", "graphs")),
        "boxes": (2, partial(boxes, bench)),
        "float8": (5, partial(quantised, bench, Float8())),
        "int8": (4, partial(quantised, bench, RoundToNearest(bits=8))),
        "draw together": (4, partial(wide, bench, "draw", (1, 2, 4, 8))),
        "answer together": (3, partial(wide, bench, "answer", (1, 2, 4, 8))),
        "tokenizer": (2, partial(tokenizer, bench)),
        "whole": (4, partial(whole, bench)),
        "compiled": (30, partial(compiled, bench)),  # last: it may take all that is left
    }


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--size", choices=["lavida_o", "mid"], default="lavida_o", help="of the network")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps, to rehearse the script")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    parser.add_argument("--seconds", type=float, help="for all of it, Python's start apart  [80; --quick: no limit]")
    parser.add_argument("--only", help="measurements to run, such as 'draw,draw graphs'; ceilings always")
    given = parser.parse_args()
    seconds = math.inf if given.quick else 80.0
    model = made(given.device, SMALL if given.quick else MID if given.size == "mid" else SIZES["lavida_o"], given.quick)
    bench = Bench(
        model=model,
        device=given.device,
        quick=given.quick,
        peak=matmul_peak(given.device, 256 if given.quick else 8192),
        name="gpu.released" if given.size == "lavida_o" else "gpu.mid",
        history=given.history,
        until=began + (seconds if given.seconds is None else given.seconds),
    )
    settle()
    billions = sum(p.numel() for p in model.parts.net.parameters()) / 1e9
    print(f"{billions:.2f} B parameters after {time.perf_counter() - began:.1f} s", flush=True)
    failed, only = list[str](), set(given.only.split(",")) if given.only else None
    for name, (needs, job) in jobs(bench).items():
        if only is not None and name not in {*only, "ceilings"}:
            continue
        if bench.left < needs:
            print(f"-- {name}: not started, {bench.left:.1f} s are left of at least {needs}", flush=True)
            continue
        try:
            job()
        except Exception:
            traceback.print_exc()
            failed.append(name)
            if name == "draw graphs":
                bench.found[NO_GRAPHS] = 1.0
            freed(bench)
        print(f"-- {name}: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
