"""The released layout on one GPU: random weights made there in bfloat16, no file read. Seconds, FLOPs, memory.

    python bench/gpu/released.py --device cuda --history rows.jsonl     10.4 B parameters, or a middle size with --size mid
    python bench/gpu/released.py --device cpu --quick                   a small network, as a rehearsal

The tokenizer is that of ``mini``, whose ids are a part of the released vocabulary: the time does not depend on what the text says.
If one measurement fails, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import HISTORY, settle, show  # noqa: E402

from unmask.checkpoints.quantise import RoundToNearest  # noqa: E402
from unmask.data.world.render import render  # noqa: E402
from unmask.data.world.scenes import sample  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.attention import fused, plain  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.models.graphs import Graphs  # noqa: E402
from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig  # noqa: E402
from unmask.pipeline.model import Model  # noqa: E402
from unmask.sampling.sampler import Sampler, SamplingRun  # noqa: E402
from unmask.sequence import Batch, collate, stack  # noqa: E402
from unmask.tasks import edit, generate, released, understand  # noqa: E402
from unmask.tasks.parts import Parts  # noqa: E402
from unmask.tokens.prompts import RELEASED  # noqa: E402
from unmask.tokens.text import MASK, Text  # noqa: E402
from unmask.tokens.vq import VQ, VQConfig  # noqa: E402
from unmask.training.layers import prepared  # noqa: E402
from unmask.training.probe import flop_counter

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
ATTENTIONS = {"fused": fused, "plain": plain}
PROMPT = "two red apples on a wooden table beside a sleeping cat, in the morning sun"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The model and what one measurement needs beside it. ``peak``: measured bfloat16 FLOPs a second of a matrix product · ``name``: how
    the rows begin.
    """

    model: Model
    device: str
    quick: bool
    peak: float
    name: str

    @property
    def picture(self) -> Image.Image:
        return Image.fromarray(render(sample("grid", "validation", 0, 0), self.model.parts.side))


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
    with torch.device(device):
        vq = VQ(SMALL_VQ if quick else VQConfig()).eval().requires_grad_(False)
    parts = Parts(text=text, net=net, vq=vq, wording=RELEASED, side=256 if quick else 1024, fold=2)
    return Model(released.published(parts, {}), presets=released.PRESETS)


@torch.no_grad()
def drive(model: Model, batch: Batch, sampler: Sampler, most: int | None = None) -> tuple[list[float], SamplingRun]:
    """Seconds of every step (of the first ``most``), and the run as far as it got."""
    run, seconds = sampler.start(batch), []
    while (query := run.query) is not None and (most is None or len(seconds) < most):
        settle()
        began = time.perf_counter()
        run.advance(model.parts.net(query.batch, predict=query.predict, reuse=query.reuse))
        settle()
        seconds.append(time.perf_counter() - began)
    return seconds, run


@torch.no_grad()
def forward_flops(model: Model, run: SamplingRun) -> float:
    """FLOPs of the forward pass that a run waits for, as PyTorch counts them (plain attention: each of its products is counted)."""
    assert run.query is not None
    before, model.parts.net.attention = model.parts.net.attention, plain
    with flop_counter() as counter:
        model.parts.net(run.query.batch, predict=run.query.predict)
    model.parts.net.attention = before
    return float(counter.get_total_flops())


def batch_for(bench: Bench, task: str) -> tuple[Batch, Sampler]:
    parts, presets = bench.model.parts, bench.model.presets
    if task == "draw":
        built, sampler = generate.Generate(prompt=PROMPT).build(parts), presets.generate(parts)
    elif task == "edit":
        codes = torch.randint(0, parts.net.config.codes, parts.grid, generator=torch.Generator().manual_seed(0))
        look = parts.image_views(bench.picture)
        asked = edit.Edit(pixels=torch.zeros(0), instruction="make the cat blue", look=look, codes=codes)
        built, sampler = asked.build(parts), presets.edit(parts)
    else:
        asked = understand.Ask(
            pixels=parts.image_views(bench.picture), question="How many apples are there?", length=32
        )
        built, sampler = asked.build(parts), presets.ask(parts)
    known = parts.features.known([built], parts.net, torch.device(bench.device))
    return collate(known, [0]).to(bench.device), sampler


def ceilings(bench: Bench) -> list[Line]:
    size = 2**22 if bench.quick else 2**32
    return [
        Line(name="gpu.peak.bf16", value=bench.peak / 1e12, unit="TFLOP/s"),
        Line(name="gpu.peak.copy", value=bandwidth(bench.device, size) / 1e12, unit="TB/s"),
    ]


def steps(bench: Bench, task: str, *, most: int | None = None) -> list[Line]:
    """A full run, or its first steps, with each attention: first and last steps, FLOPs, fraction of the peak, memory."""
    lines = []
    batch, sampler = batch_for(bench, task)
    flops = forward_flops(bench.model, sampler.start(batch))
    for name, attention in ATTENTIONS.items():
        bench.model.parts.net.attention = attention
        drive(bench.model, batch, sampler, 2)
        if bench.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds, run = drive(bench.model, batch, sampler, most)
        step = statistics.median(seconds)
        more: dict[str, Any] = {"first_s": statistics.median(seconds[:4]), "last_s": statistics.median(seconds[-4:])}
        more |= {"steps": len(seconds), "of": run.step.of, "tokens": int(batch.valid.sum())}
        if bench.device != "cpu":
            more["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        prefix = f"{bench.name}.{task}.{name}"
        lines += [
            Line(name=f"{prefix}.step", value=step, unit="s", more=more),
            Line(name=f"{prefix}.run", value=sum(seconds), unit="s", more={"steps": len(seconds)}),
            Line(name=f"{prefix}.peak", value=flops / step / bench.peak, unit="share", more={"tflop": flops / 1e12}),
        ]
    return lines


@torch.no_grad()
def forward_alone(bench: Bench, task: str) -> list[Line]:
    """The network without the sampler: what a step takes beyond this is the sampler's, and waiting for the CPU."""
    batch, sampler = batch_for(bench, task)
    query, net = sampler.start(batch).query, bench.model.parts.net
    assert query is not None
    lines = []
    for name, net.attention in ATTENTIONS.items():
        seconds = []
        for _ in range(2 if bench.quick else 8):
            settle()
            began = time.perf_counter()
            net(query.batch, predict=query.predict)
            settle()
            seconds.append(time.perf_counter() - began)
        best = statistics.median(seconds[1:])
        lines.append(Line(name=f"{bench.name}.{task}.{name}.forward", value=best, unit="s"))
    return lines


@torch.no_grad()
def kernels(bench: Bench, task: str) -> list[Line]:
    """Where the GPU's time goes in three steps (printed), and the share of the time in which it works at all."""
    from torch.profiler import ProfilerActivity, profile

    if bench.device == "cpu":
        return []
    bench.model.parts.net.attention = fused
    batch, sampler = batch_for(bench, task)
    drive(bench.model, batch, sampler, 2)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        drive(bench.model, batch, sampler, 3)
    events = (e for e in seen.key_averages() if str(e.device_type).endswith("CUDA"))
    found = sorted(events, key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in found) / 1e6
    for e in found[:25]:
        print(f"    {e.self_device_time_total / 3e3:9.3f} ms/step {e.count / 3:7.1f} calls/step  {e.key[:110]}")
    plain_steps, _ = drive(bench.model, batch, sampler, 3)
    launches = sum(e.count for e in found) / 3
    more = {"gpu_s": busy / 3, "step_s": sum(plain_steps) / 3, "kernels": launches}
    return [Line(name=f"{bench.name}.{task}.busy", value=busy / sum(plain_steps), unit="share", more=more)]


@torch.no_grad()
def tokenizer(bench: Bench) -> list[Line]:
    """Encoding and decoding one picture, in float32 as always; the first call apart, because cuDNN chooses its kernels then."""
    parts, lines = bench.model.parts, []
    pixels = torch.rand(3, parts.side, parts.side, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(1, *parts.grid, dtype=torch.long)
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: parts.encode(pixels),
        "decode": lambda: parts.decode(codes),
    }
    for name, work in works.items():
        seconds = []
        for _ in range(4):
            settle()
            began = time.perf_counter()
            work()
            settle()
            seconds.append(time.perf_counter() - began)
        middle = statistics.median(seconds[1:])
        lines.append(Line(name=f"{bench.name}.vq.{name}", value=middle, unit="s", more={"first_s": seconds[0]}))
    return lines


def whole(bench: Bench) -> list[Line]:
    """A drawing through the Python API, picture included."""
    bench.model.parts.net.attention = fused
    few = ["schedule.steps=4"] if bench.quick else []
    settle()
    began = time.perf_counter()
    drawn = bench.model.generate(PROMPT, plan=False, settings=few)[0]
    settle()
    seconds = time.perf_counter() - began
    return [Line(name=f"{bench.name}.generate", value=seconds, unit="s", more={"pixels": drawn.image.width})]


def boxes(bench: Bench) -> list[Line]:
    """Four phrases on one picture through the Python API, whose features are known after the first call."""
    phrases, seconds = ["the cat", "a red apple", "the table", "the morning sun"], []
    bench.model.parts.net.attention = fused
    for _ in range(3):
        settle()
        began = time.perf_counter()
        bench.model.ground(bench.picture, phrases)
        settle()
        seconds.append(time.perf_counter() - began)
    more = {"first_s": seconds[0], "phrases": len(phrases)}
    return [Line(name=f"{bench.name}.boxes", value=statistics.median(seconds[1:]), unit="s", more=more)]


def wide(bench: Bench, task: str, rows: Sequence[int]) -> list[Line]:
    """Several requests in one batch, first steps: requests a second if all steps took as long."""
    one, sampler = batch_for(bench, task)
    lines = []
    for count in (1, 2) if bench.quick else rows:
        batch, bench.model.parts.net.attention = stack([one] * count), fused
        drive(bench.model, batch, sampler, 1)
        seconds, run = drive(bench.model, batch, sampler, 3)
        rate = count / (statistics.median(seconds) * run.step.of)
        more = {"step_s": statistics.median(seconds)}
        lines.append(Line(name=f"{bench.name}.batch{count}.{task}", value=rate, unit="1/s", more=more))
    return lines


def ways(bench: Bench, tasks: Sequence[str], way: str) -> list[Line]:
    """The median of a few steps as the network is now, beside nothing else."""
    bench.model.parts.net.attention = fused
    lines = []
    for task in tasks:
        batch, sampler = batch_for(bench, task)
        drive(bench.model, batch, sampler, 2)
        seconds, _ = drive(bench.model, batch, sampler, 4)
        lines.append(Line(name=f"{bench.name}.{task}.{way}.step", value=statistics.median(seconds), unit="s"))
    return lines


def compiled(bench: Bench) -> list[Line]:
    """Steps with layers that went through ``torch.compile``. On a CPU the compiler takes minutes."""
    if bench.device == "cpu":
        return []
    with torch.no_grad(), prepared(bench.model.parts.net, recompute=False, compile=True):
        return ways(bench, ["draw"], "compiled")


def graphed(bench: Bench) -> list[Line]:
    """Steps with the layers below the last as CUDA graphs, which only a card has."""
    if bench.device == "cpu":
        return []
    net = bench.model.parts.net
    net.graphs = Graphs()
    try:
        return ways(bench, ["draw", "edit", "answer"], "graphs")
    finally:
        net.graphs = None


def quantised(bench: Bench, bits: int) -> list[Line]:
    """Steps with the weights of both branches in few bits; the weights come back afterwards."""
    blocks = bench.model.parts.net.blocks
    inside = [m for b in blocks for n, m in b.named_modules() if isinstance(m, nn.Linear) and n != "out"]
    kept, least = [m.weight for m in inside], RoundToNearest(bits=bits)
    try:
        for module in inside:
            module.weight = nn.Parameter(least(module.weight.detach(), None), requires_grad=False)
        return ways(bench, ["draw", "answer"], least.label)
    finally:
        for module, weight in zip(inside, kept, strict=True):
            module.weight = weight


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--size", choices=["lavida_o", "mid"], default="lavida_o", help="of the network")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps, to rehearse the script")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    began = time.perf_counter()
    model = made(given.device, SMALL if given.quick else MID if given.size == "mid" else SIZES["lavida_o"], given.quick)
    peak = matmul_peak(given.device, 256 if given.quick else 8192)
    name = "gpu.released" if given.size == "lavida_o" else "gpu.mid"
    bench = Bench(model=model, device=given.device, quick=given.quick, peak=peak, name=name)
    settle()
    billions = sum(p.numel() for p in model.parts.net.parameters()) / 1e9
    print(f"{billions:.2f} B parameters after {time.perf_counter() - began:.1f} s", flush=True)
    most = 3 if given.quick else None
    jobs: dict[str, Callable[[], list[Line]]] = {
        "ceilings": lambda: ceilings(bench),
        "draw": lambda: steps(bench, "draw", most=most),
        "forward": lambda: [*forward_alone(bench, "draw"), *forward_alone(bench, "answer")],
        "answer": lambda: steps(bench, "answer", most=most),
        "kernels": lambda: [*kernels(bench, "draw"), *kernels(bench, "answer")],
        "edit": lambda: steps(bench, "edit", most=most or 6),
        "tokenizer": lambda: tokenizer(bench),
        "boxes": lambda: boxes(bench),
        "whole": lambda: whole(bench),
        "wide": lambda: [
            *wide(bench, "draw", (1, 2, 4, 8)),
            *wide(bench, "answer", (4, 8)),
            *wide(bench, "edit", (2,)),
        ],
        "graphs": lambda: graphed(bench),
        "int8": lambda: quantised(bench, 8),
        "int4": lambda: quantised(bench, 4),
        "compiled": lambda: compiled(bench),  # last: it may take all that is left
    }
    failed = []
    for name, job in jobs.items():
        try:
            lines = [dataclasses.replace(line, more={**(line.more or {}), "quick": given.quick}) for line in job()]
            show(lines)
            append(given.history, lines, device=given.device)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"-- {name}: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
