"""The released size on one GPU: random weights made there in bfloat16, no file read. Seconds, FLOPs, memory.

    python bench/gpu/released.py --device cuda --history rows.jsonl
    python bench/gpu/released.py --device cpu --quick          a small network, as a rehearsal

What the text says is of no matter to the time: the tokenizer is that of ``mini``, whose ids are a part of the released vocabulary.
Each measurement is on its own; where one fails, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import HISTORY, settle, show  # noqa: E402

from unmask.data.world.render import render  # noqa: E402
from unmask.data.world.scenes import sample  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.attention import fused, plain  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig  # noqa: E402
from unmask.pipeline.model import Model  # noqa: E402
from unmask.sampling.sampler import Sampler, SamplingRun  # noqa: E402
from unmask.sequence import Batch, collate  # noqa: E402
from unmask.tasks import edit, generate, released, understand  # noqa: E402
from unmask.tasks.parts import Parts  # noqa: E402
from unmask.tokens.prompts import RELEASED  # noqa: E402
from unmask.tokens.text import MASK, Text  # noqa: E402
from unmask.tokens.vq import VQ, VQConfig  # noqa: E402

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
    """The model and what one measurement needs beside it. ``peak``: measured bfloat16 FLOPs a second of a matrix product."""

    model: Model
    device: str
    quick: bool
    peak: float

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


def made(device: str, quick: bool) -> Model:
    """A model in the released layout with random weights, made where it works."""
    config = SMALL if quick else SIZES["lavida_o"]
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
    with FlopCounterMode(display=False) as counter:
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
    """A whole run, or its first steps, with each attention: first and last steps, FLOPs, share of the peak, memory."""
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
        prefix = f"gpu.released.{task}.{name}"
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
        lines.append(Line(name=f"gpu.released.{task}.{name}.forward", value=best, unit="s"))
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
    found = [e for e in seen.key_averages() if str(e.device_type).endswith("CUDA")]
    found.sort(key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in found) / 1e6
    for event in found[:25]:
        print(
            f"    {event.self_device_time_total / 3e3:9.3f} ms/step {event.count / 3:7.1f} calls/step  {event.key[:110]}"
        )
    plain_steps, _ = drive(bench.model, batch, sampler, 3)
    launches = sum(e.count for e in found) / 3
    more = {"gpu_s": busy / 3, "step_s": sum(plain_steps) / 3, "kernels": launches}
    return [Line(name=f"gpu.released.{task}.busy", value=busy / sum(plain_steps), unit="share", more=more)]


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
        lines.append(Line(name=f"gpu.released.vq.{name}", value=middle, unit="s", more={"first_s": seconds[0]}))
    return lines


def whole(bench: Bench) -> list[Line]:
    """A drawing through the Python API, picture included."""
    bench.model.parts.net.attention = fused
    few = ["schedule.steps=4"] if bench.quick else []
    settle()
    began = time.perf_counter()
    drawn = bench.model.generate(PROMPT, plan=False, settings=few)[0]
    settle()
    side = {"pixels": drawn.image.width}
    return [Line(name="gpu.released.generate", value=time.perf_counter() - began, unit="s", more=side)]


def wide(bench: Bench) -> list[Line]:
    """Several drawings in one batch, first steps: pictures a second if all 64 steps took as long."""
    bench.model.parts.net.attention = fused
    batch, sampler = batch_for(bench, "draw")
    built = generate.Generate(prompt=PROMPT).build(bench.model.parts)
    lines = []
    for rows in (1, 2) if bench.quick else (4, 16):
        batch = collate([built] * rows, range(rows)).to(bench.device)
        drive(bench.model, batch, sampler, 1)
        seconds, run = drive(bench.model, batch, sampler, 3)
        rate = rows / (statistics.median(seconds) * run.step.of)
        more = {"step_s": statistics.median(seconds)}
        lines.append(Line(name=f"gpu.released.batch{rows}.draw", value=rate, unit="1/s", more=more))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps, to rehearse the script")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    given = parser.parse_args()
    began = time.perf_counter()
    model = made(given.device, given.quick)
    peak = matmul_peak(given.device, 256 if given.quick else 8192)
    bench = Bench(model=model, device=given.device, quick=given.quick, peak=peak)
    settle()
    parameters = sum(p.numel() for p in model.parts.net.parameters())
    print(f"{parameters / 1e9:.2f} B parameters after {time.perf_counter() - began:.1f} s", flush=True)
    most = 3 if given.quick else None
    jobs: dict[str, Callable[[], list[Line]]] = {
        "ceilings": lambda: ceilings(bench),
        "draw": lambda: steps(bench, "draw", most=most),
        "forward": lambda: [*forward_alone(bench, "draw"), *forward_alone(bench, "answer")],
        "answer": lambda: steps(bench, "answer", most=most),
        "kernels": lambda: [*kernels(bench, "draw"), *kernels(bench, "answer")],
        "edit": lambda: steps(bench, "edit", most=most or 6),
        "tokenizer": lambda: tokenizer(bench),
        "whole": lambda: whole(bench),
        "wide": lambda: wide(bench),
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
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
