"""How costs grow with the picture, the batch, the number of boxes and the length of an answer, on a network with random weights.

    unmask bench growth --threads 1 --cpu-time --plot docs/pictures/growth.png --record
    unmask bench growth --only boxes,answers --repeats 1

For each of them: the seconds of one step (a whole pass for boxes, a whole answer estimated from its first steps) and the floating-point
operations, and "growth": how many times the seconds grow from the least to the most, over the same of the operations. Above 1.3 it
needs an explanation. The sizes take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from charts import Curve, Panel, curves
from paired import Effort, drive, operations
from sizes import RANDOM
from speed import HISTORY, PROMPT, QUESTION
from text import PHRASES, picture

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from released import made

from unmask.evaluation.history import Line, append, cpu
from unmask.pipeline.model import Model
from unmask.sampling.blocks import Blocks
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, collate
from unmask.tasks.generate import Generate
from unmask.tasks.ground import Ground
from unmask.tasks.understand import Ask

BLOCK = 16
Made = Callable[[Model, int], tuple[Batch, Sampler]]


def canvas(model: Model, side: int) -> tuple[Batch, Sampler]:
    """A drawing of ``side`` pixels with guidance."""
    parts = replace(model.parts, side=side)
    return collate([Generate(prompt=PROMPT).build(parts)], [0]).to(model.device), model.presets.generate(parts)


def pictures(model: Model, rows: int) -> tuple[Batch, Sampler]:
    """``rows`` drawings of 512 pixels in one batch."""
    parts = replace(model.parts, side=512)
    built = Generate(prompt=PROMPT).build(parts)
    return collate([built] * rows, range(rows)).to(model.device), model.presets.generate(parts)


def boxes(model: Model, count: int) -> tuple[Batch, Sampler]:
    """``count`` phrases in one prompt."""
    parts = model.parts
    built = Ground(pixels=parts.image_views(picture()), phrases=PHRASES[:count]).build(parts)
    known = parts.features.known([built], parts.net, model.device)
    return collate(known, [0]).to(model.device), model.presets.ground(parts, 1)


def answer(model: Model, length: int) -> tuple[Batch, Sampler]:
    """An answer of ``length`` tokens in blocks of 16 behind a picture and a question."""
    parts = model.parts
    built = Ask(pixels=parts.image_views(picture()), question=QUESTION, length=length).build(parts)
    known = parts.features.known([built], parts.net, model.device)
    sampler = replace(model.presets.ask(parts), blocks=Blocks(length=BLOCK))
    return collate(known, [0]).to(model.device), sampler


# What is varied, its sizes, and whether one step or the whole schedule counts. A canvas has a side that its order of positions can halve.
COSTS: dict[str, tuple[str, Made, Sequence[int], bool]] = {
    "canvas": ("a drawing step, by pixels", canvas, (256, 512, 1024), False),
    "batch": ("a drawing step at 512 px, by pictures", pictures, (1, 2, 4, 8), False),
    "boxes": ("boxes, by phrases", boxes, (1, 2, 4, 8), False),
    "answers": ("an answer, by tokens", answer, (16, 32, 64, 128), True),
}


def measured(model: Model, name: str, sizes: Sequence[int], effort: Effort) -> tuple[list[Line], Panel]:
    """The lines of one cost, and its curves: seconds, and operations at the rate of the least size."""
    title, make, _, whole = COSTS[name]
    requests = {size: make(model, size) for size in sizes}
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(effort.warm + effort.repeats):
        for size, (batch, sampler) in requests.items():
            run = drive(model.parts.net, batch, sampler, effort)
            if turn >= effort.warm:
                later = run.seconds[1:] or run.seconds  # the first step also lays the batch out
                taken[size].append(run.pace if whole else statistics.mean(later))
    seconds = {size: statistics.median(some) for size, some in taken.items()}
    flops = {size: _flops(model, *requests[size], effort, whole) for size in sizes}
    lines = [
        Line(name=f"growth.{name}.{size}", value=seconds[size], unit="s", more={"tflop": flops[size] / 1e12})
        for size in sizes
    ]
    least, most = min(sizes), max(sizes)
    times, work = seconds[most] / seconds[least], flops[most] / flops[least]
    more = {"seconds": times, "operations": work, "least": least, "most": most}
    lines.append(Line(name=f"growth.{name}", value=times / work, unit="ratio", more=more))
    fair = [(float(size), flops[size] / flops[least] * seconds[least]) for size in sizes]
    measured_ones = Curve(name="seconds", points=[(float(size), seconds[size]) for size in sizes])
    return lines, Panel(title=title, curves=(measured_ones, Curve(name="as its operations grow", points=fair)))


def _flops(model: Model, batch: Batch, sampler: Sampler, effort: Effort, whole: bool) -> float:
    """Of the last step that is timed, or of the whole schedule if all later steps cost as much as those after the first."""
    net, steps = model.parts.net, effort.steps or 1
    done = [operations(net, batch, sampler, most, net.config)[0] for most in (1, steps)]
    later = (done[1] - done[0]) / (steps - 1) if steps > 1 else done[0]
    return done[0] + (sampler.start(batch).step.of - 1) * later if whole else later or done[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(COSTS), help="costs to measure")
    parser.add_argument("--model", choices=list(RANDOM), default="mid", help="size of the network")
    parser.add_argument("--layers", type=int, help="of the network  [default: those of its size]")
    parser.add_argument("--sizes", type=int, nargs="*", help="least to most, of the one cost that --only names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, the first apart")
    parser.add_argument("--repeats", type=int, default=3, help="turns that each median is over")
    parser.add_argument("--warm", type=int, default=1, help="turns before them that do not count")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, for a machine that others use too")
    parser.add_argument("--plot", type=Path, help="draw the curves, as a PNG picture")
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--record", action="store_true", help="append the rows to the history")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - set(COSTS):
        parser.error(f"unknown cost {', '.join(sorted(unknown))}; there are {', '.join(COSTS)}")
    if given.sizes and len(names) > 1:
        parser.error("--sizes goes with one cost; name it with --only")
    torch.set_num_threads(given.threads)
    config = RANDOM[given.model]
    if given.layers:
        config = replace(config, layers=given.layers, joint_layers=max(1, given.layers * 17 // 32))
    model = made(given.device, config, quick=False)
    clock = time.process_time if given.cpu_time else time.perf_counter
    effort = Effort(repeats=given.repeats, warm=given.warm, steps=given.steps, clock=clock)
    panels = []
    for name in names:
        lines, panel = measured(model, name, given.sizes or COSTS[name][2], effort)
        panels.append(panel)
        for line in lines:
            beside = " ".join(f"{k} {v:.4g}" for k, v in (line.more or {}).items())
            print(f"{line.name:24} {line.value:9.4g} {line.unit:6} {beside}", flush=True)
        if given.record:
            append(given.history, lines, device=given.device)
    if given.plot:
        where = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else cpu()
        curves(panels, f"{given.model}, {where}, {given.threads} threads, bfloat16").save(given.plot)


if __name__ == "__main__":
    main()
