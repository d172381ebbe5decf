"""How fast: latency of each task, throughput in a batch, training, and every fast path beside its slow twin.

    unmask bench speed --threads 1 --json speed.json --plot speed.png       mini beside the published amount of work
    unmask bench speed --model mid --steps 4                                random weights in the released proportions
    unmask bench speed --model wide --steps 2                               the released widths, two layers
    unmask bench speed --model wide --steps 2 --resume                      … without the tasks that a stopped run measured
    unmask bench speed --model released --device cuda                       the released size
    python bench/speed.py --only latency,thinking,throughput,twins,training

Medians of several repeats after warm-ups (the first calls of a shape cost seconds of just-in-time work); twins take
turns, so that a busy machine harms both alike. Every figure is appended to bench/history.jsonl as soon as it is measured.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import paired  # noqa: E402
from profiled import profiled  # noqa: E402
from sizes import RANDOM  # noqa: E402

import unmask  # noqa: E402
from unmask.checkpoints.elastic import WeightStorage  # noqa: E402
from unmask.data.sources import pixels_of  # noqa: E402
from unmask.data.world.render import render  # noqa: E402
from unmask.data.world.scenes import Scene, sample  # noqa: E402
from unmask.evaluation.history import Line, append, cpu, measured  # noqa: E402
from unmask.evaluation.world_geneval import CATEGORIES, prompts  # noqa: E402
from unmask.models.attention import FITTING, Attention, blocked, fused, plain  # noqa: E402
from unmask.models.elastic import Elastic  # noqa: E402
from unmask.objectives import joining  # noqa: E402
from unmask.objectives.masked import Together  # noqa: E402
from unmask.pipeline.model import Model  # noqa: E402
from unmask.recipe import Recipe  # noqa: E402
from unmask.rng import generator  # noqa: E402
from unmask.sequence import Batch, Kind, collate  # noqa: E402
from unmask.tasks import generate, reflecting, understand  # noqa: E402
from unmask.training.losses import losses  # noqa: E402
from unmask.training.meters import matmul_peak  # noqa: E402
from unmask.training.optim import Masters  # noqa: E402
from unmask.training.probe import flop_counter

HISTORY = Path(__file__).with_name("history.jsonl")
PROMPT, QUESTION, PHRASE, INSTRUCTION = (
    "two red apples and a cat",
    "how many apples are there?",
    "the cat",
    "make the cat blue",
)
GROUPS = ("latency", "thinking", "throughput", "twins", "training", "paired", "profile")
ATTENTIONS: dict[str, Attention] = {"fitting": FITTING, "plain": plain, "blocked": blocked, "fused": fused}
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """``warm`` calls that do not count, then ``repeats`` that do."""

    repeats: int
    warm: int


def timed(works: list[Work], effort: Effort, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of several pieces of work that take turns."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(effort.warm + effort.repeats):
        for work, times in zip(works, taken, strict=True):
            settle()
            began = clock()
            work()
            settle()
            if number >= effort.warm:
                times.append(clock() - began)
    return [statistics.median(times) for times in taken]


def settle() -> None:
    """Wait until the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def scene_of(index: int) -> Scene:
    return sample("grid", "validation", 0, index)


def latency(model: Model, effort: Effort) -> Iterator[list[Line]]:
    """One request at a time, through the Python API, input and output included."""
    image = Image.fromarray(render(scene_of(0), 128))
    works: dict[str, Work] = {
        "draw": lambda: model.generate(PROMPT, plan=False),
        "answer": lambda: model.ask(image, QUESTION),
        "ground": lambda: model.ground(image, [PHRASE]),
        "edit": lambda: model.edit(image, INSTRUCTION),
        "draw_planned": lambda: model.generate(PROMPT, plan=True),
        "edit_planned": lambda: model.edit(image, INSTRUCTION, plan=True),
        "critique": lambda: reflecting.criticise(model, [PROMPT], [image]),
    }
    for name, work in works.items():
        (seconds,) = timed([partial(_unseen, model, work)], effort)
        yield [Line(name=f"speed.latency.{name}", value=seconds, unit="s")]


def _unseen(model: Model, work: Work) -> None:
    """Run it without cached picture features: a model keeps those of pictures it has encoded."""
    model.parts.features.clear()
    work()


def thinking(model: Model, each: int, attempts: Sequence[int]) -> list[Line]:
    """Seconds a picture with planning and best of N, one prompt at a time; how many attempts it took (paper, table 15)."""
    asked = [p for kind in CATEGORIES for p in prompts(kind, each, level="grid", split="validation", seed=0)]
    lines = []
    for most in attempts:
        began = time.perf_counter()
        drawn = [model.generate(p.text, seed=p.seed, plan=True, attempts=most)[0] for p in asked]
        seconds = (time.perf_counter() - began) / len(asked)
        tries = sum(max(1, len(d.attempts)) for d in drawn) / len(asked)
        lines.append(Line(name=f"speed.reflect.{most}", value=seconds, unit="s", more={"tries": tries}))
    return lines


def throughput(model: Model, effort: Effort, rows: int = 16) -> list[Line]:
    """Requests a second with ``rows`` of them in one batch."""
    pixels = pixels_of([scene_of(i) for i in range(rows)], model.parts.side)
    asked = [understand.Ask(pixels=p, question=QUESTION).build(model.parts) for p in pixels]
    works: dict[str, Work] = {
        "draw": lambda: model.generate(PROMPT, n=rows, plan=False),
        "answer": lambda: model.run(asked, range(rows), understand.sampler(model.parts)),
    }
    lines = []
    for name, work in works.items():
        (seconds,) = timed([partial(_unseen, model, work)], effort)
        lines.append(Line(name=f"speed.batch{rows}.{name}", value=rows / seconds, unit="1/s"))
    return lines


def drawing_batch(model: Model, rows: int) -> Batch:
    """Pictures to draw, everything undecided."""
    built = generate.Generate(prompt=PROMPT).build(model.parts)
    return collate([built] * rows, range(rows)).to(model.device)


def twin(name: str, works: tuple[Work, Work], effort: Effort) -> list[Line]:
    """``works``: (fast, slow). The ratio is how many times longer the slow one takes."""
    fast, slow = timed(list(works), effort)
    beside = {"fast_s": fast, "slow_s": slow}
    return [Line(name=f"speed.twin.{name}", value=slow / fast, unit="ratio", more=beside)]


def twins(model: Model, effort: Effort, rows: int = 16) -> list[Line]:
    """Forward passes over ``rows`` pictures to draw. The first three pairs are exact, and checked to be equal."""
    net, batch = model.parts.net, drawing_batch(model, rows)
    before = net.attention
    codes = batch.masked
    few = codes & (codes.long().cumsum(1) <= 4)  # what one of 16 steps decides of 64 codes
    last_text = (batch.kind == Kind.TEXT) & batch.valid
    last_text &= last_text.flip(1).long().cumsum(1).flip(1) == 1

    def forward(predict: Tensor, attention: Attention = before, module: Elastic = net) -> Tensor:
        module.attention = attention
        return module(batch, predict=predict).logits(Kind.CODE)

    half = copy.deepcopy(net).to(torch.bfloat16)
    pairs: dict[str, tuple[Work, Work]] = {
        "attention_fused_over_plain": (lambda: forward(codes, plain), lambda: forward(codes, fused)),
        # One text token asked for keeps the understanding branch alive to its last layer; its head costs little.
        "understanding_to_the_end": (lambda: forward(codes), lambda: forward(codes | last_text)),
        "heads_on_all_tokens": (lambda: forward(few), lambda: forward(codes)),
        "fp32_over_bf16": (lambda: forward(codes, module=half), lambda: forward(codes)),
    }
    with torch.no_grad():
        same(forward(codes, fused), forward(codes, plain))
        same(forward(codes), forward(codes | last_text))
        chosen = few[codes]
        same(forward(few), forward(codes)[chosen])
        lines = [line for name, works in pairs.items() for line in twin(name, works, effort)]
    net.attention = before
    return lines


def same(a: Tensor, b: Tensor) -> None:
    """An exact twin must be equal up to rounding. ValueError where it is not."""
    apart = float((a - b).abs().max() / b.abs().max().clamp(min=1e-9))
    if apart > 1e-4:
        raise ValueError(f"a fast path differs from its slow twin by {apart:.2g} of the largest logit")


def training(effort: Effort) -> list[Line]:
    """Steps of ``mini.stage3`` from fresh weights, update included, data apart. Twins: a pass for each task, the other type, the other
    attention. ``unpadded``: the share of the peak if padded positions count as no work. With one thread, seconds are those of the
    processor (``cpu`` 1), so that other work on the machine counts little; the peak is measured in turns with the steps.
    """
    from unmask.recipes import mini

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    recipe = mini.stage3(vision="", start="")
    assert isinstance(recipe.objective, Together)
    alone = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, joined=False))
    recipe.source(1)  # the first batch also pays for the dictionary of squares
    began = time.perf_counter()
    batch = recipe.source(2)
    data = time.perf_counter() - began
    ways: list[tuple[Recipe, torch.dtype, Attention]] = [
        (recipe, torch.bfloat16, plain),
        (alone, torch.bfloat16, plain),
        (recipe, torch.float32, plain),
        (recipe, torch.bfloat16, fused),
    ]
    works = [stepper(given, batch, dtype, attention) for given, dtype, attention in ways]
    tokens, flops = works[0](), counted(works[0])
    with mock.patch.object(joining, "OVERHEAD", 0), mock.patch.object(joining, "ROUND", 1):
        necessary = counted(works[0])
    peaks: list[float] = []
    beside: list[Work] = [lambda: peaks.append(matmul_peak(torch.bfloat16, clock=clock))]
    bf16, apart, fp32, sdpa, _ = timed([*works, *beside], effort, clock)
    peak, by_cpu = statistics.median(peaks), float(clock is time.process_time)
    more = {"peak_flops_per_s": peak, "unpadded": necessary / bf16 / peak, "tflop": flops / 1e12, "cpu": by_cpu}
    before = {"slow_s": apart, "slow_peak": counted(works[1]) / apart / peak}
    return [
        Line(name="speed.train.tokens", value=tokens / bf16, unit="1/s", more={"step_s": bf16, "data_s": data}),
        Line(name="speed.train.peak", value=flops / bf16 / peak, unit="share", more=more),
        Line(name="speed.twin.train_apart_over_joined", value=apart / bf16, unit="ratio", more=before),
        Line(name="speed.twin.train_fp32_over_bf16", value=fp32 / bf16, unit="ratio", more={"slow_s": fp32}),
        Line(name="speed.twin.train_fused_over_plain", value=sdpa / bf16, unit="ratio", more={"slow_s": sdpa}),
    ]


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of a piece of work."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


def stepper(recipe: Recipe, batch: object, dtype: torch.dtype, attention: Attention) -> Callable[[], int]:
    """One step of the trainer on a given batch, as a call that returns the number of tokens it learned from."""
    module = recipe.model()
    module.attention = attention
    masters = Masters(module, recipe.optim, recipe.trainable)
    module.to(dtype)
    masters.params = [p for p in module.parameters() if p.requires_grad]
    masters.sync()

    def work() -> int:
        (loss,) = losses(recipe.objective(module, batch, generator("bench")))
        loss.total.backward()
        masters.step(recipe.optim.lr, 0)
        return sum(loss.counts.values())

    return work


def show(lines: list[Line]) -> None:
    for line in lines:
        beside = " ".join(f"{k} {v:.4g}" for k, v in (line.more or {}).items())
        print(f"{line.name:42} {line.value:10.4g} {line.unit:6} {beside}", flush=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--model", default="mini", help="name of a shipped model, a folder, or random weights: mid, wide or released"
    )
    parser.add_argument("--threads", type=int, help="processor threads to use")
    parser.add_argument("--repeats", type=int, default=9, help="calls that each median is over")
    parser.add_argument("--warm", type=int, default=2, help="calls before them that do not count")
    parser.add_argument("--attempts", default="1,2,4,8", help="largest numbers of attempts to reflect with")
    parser.add_argument("--prompts", type=int, default=2, help="of each category, that are reflected upon")
    parser.add_argument("--only", default="paired", help=f"groups to measure, of {', '.join(GROUPS)}")
    parser.add_argument("--history", type=Path, default=HISTORY, help="file to append to")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="paired: leave out tasks that the history has from the same command at the same commit on this machine",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0; training is measured on the CPU alone")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the network  [default: as the model opens]"
    )
    parser.add_argument("--steps", type=int, help="paired: time the first steps of each run alone  [default: all]")
    parser.add_argument("--tasks", default=",".join(paired.TASKS), help="paired, profile: tasks to measure")
    parser.add_argument(
        "--cpu-time", action="store_true", help="paired: CPU seconds, for a machine that others use too"
    )
    parser.add_argument("--json", type=Path, help="paired: also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="paired: also draw the seconds, as a PNG picture")
    parser.add_argument("--attention", choices=list(ATTENTIONS), default="fitting", help="of latency and throughput")
    return parser


def opened(given: argparse.Namespace) -> Model:
    """The model that is measured, on its device. ValueError for a text model."""
    if given.model in RANDOM:
        sys.path.insert(0, str(Path(__file__).parent / "gpu"))
        from released import made

        return made(given.device, RANDOM[given.model], quick=False)
    storage = WeightStorage(dtype=getattr(torch, given.dtype) if given.dtype else None)
    model = unmask.load(given.model, device=given.device, storage=storage)
    if not isinstance(model, Model):
        raise ValueError(f"{given.model} is a text model, and this measures drawing and looking; give it another model")
    model.parts.net.attention = ATTENTIONS[given.attention]
    return model


def beside_published(model: Model, given: argparse.Namespace) -> Iterator[list[Line]]:
    """The group ``paired``, with its table, JSON and picture at the end. Lines of a stopped run are in these, and are not yielded."""
    model.parts.net.attention = FITTING
    clock = time.process_time if given.cpu_time else time.perf_counter
    effort = paired.Effort(repeats=given.repeats, warm=given.warm, steps=given.steps, clock=clock)
    name, tasks = Path(given.model).name, given.tasks.split(",")
    known = measured(given.history, device=given.device) if given.resume else {}
    found = {line: known[line] for line in known if line.startswith(f"speed.paired.{name}.")}
    for some in paired.paired(model, name, effort, [t for t in tasks if f"speed.paired.{name}.{t}" not in found]):
        yield some
        found |= {line.name: line for line in some}
    lines = [found[f"speed.paired.{name}.{task}{end}"] for task in tasks for end in (".s", "")]
    where = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else cpu()
    title = f"{given.model}, {where}, {torch.get_num_threads()} threads, {str(model.parts.net.embed.weight.dtype)[6:]}"
    print(title, paired.table(lines), sep="\n")
    if given.json:
        rows = [{"name": line.name, "value": line.value, "unit": line.unit, **(line.more or {})} for line in lines]
        given.json.write_text(json.dumps({"where": title, "figures": rows}, indent=2) + "\n")
    if given.plot:
        paired.chart(lines, title).save(given.plot)


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    unknown = set(given.only.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if given.dtype == "bfloat16" and "twins" in given.only.split(","):
        parser.error("twins must be equal up to float32 rounding; leave out --dtype bfloat16, or name other groups")
    model = opened(given)
    effort = Effort(repeats=given.repeats, warm=given.warm)
    groups: dict[str, Callable[[], Iterable[list[Line]]]] = {
        "latency": lambda: latency(model, effort),
        "thinking": lambda: [thinking(model, given.prompts, [int(n) for n in given.attempts.split(",")])],
        "throughput": lambda: [throughput(model, effort)],
        "twins": lambda: [twins(model, effort)],
        "training": lambda: [training(effort)],
        "paired": lambda: beside_published(model, given),
        "profile": lambda: ([profiled(model, Path(given.model).name, task)] for task in given.tasks.split(",")),
    }
    for name in given.only.split(","):
        for lines in groups[name]():
            show(lines)
            append(given.history, lines, device="cpu" if name == "training" else given.device)


if __name__ == "__main__":
    main()
