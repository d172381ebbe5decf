"""Every task beside the published amount of work (``published.py``), on the same weights, in one run and in turns.

Public idea: ``paired(model, name, effort)`` yields the lines of a task as soon as they are measured: the seconds of a run, its forward
passes, operations done over those that are necessary, the fraction of the measured peak of a matrix product, the peak memory, and how many
times longer the slow twin takes. ``table`` and ``chart`` show them.

    unmask bench speed --json speed.json --plot speed.png
    unmask bench speed --model mid --steps 3 --cpu-time            random weights in the released proportions
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from charts import bars
from PIL import Image
from published import Published

from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.evaluation.history import Line
from unmask.models.sizes import ElasticConfig
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Branch, Kind, collate
from unmask.step import Prediction, Query
from unmask.tasks import edit, generate, ground, understand
from unmask.training.meters import matmul_peak
from unmask.training.probe import flop_counter

TASKS = ("draw", "edit", "answer", "boxes")
Denoise = Callable[..., Prediction]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """``warm`` turns that do not count, then ``repeats`` that do · ``steps``: the first of a run that are made (None: all) · ``clock``: of
    seconds, ``time.process_time`` on a CPU that others use too.
    """

    repeats: int
    warm: int
    steps: int | None = None
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: ``seconds`` of each of its passes and the step after it · ``ids``: what it drew or wrote · ``of``: steps of the schedule."""

    seconds: Sequence[float]
    ids: torch.Tensor
    of: int

    @property
    def pace(self) -> float:
        """Seconds of the whole schedule, if all later steps take as long as those after the first, which may compute a prompt."""
        first, *later = self.seconds
        missing = max(0, self.of - len(self.seconds))
        return sum(self.seconds) + missing * (statistics.mean(later) if later else first)


def request(model: Model, task: str) -> tuple[Batch, Sampler]:
    """One request whose picture is already encoded. An answer of a published model has 64 tokens, one of ours as many as it is made for."""
    parts, presets = model.parts, model.presets
    shown = Image.fromarray(render(sample("grid", "validation", 0, 0), parts.side))
    views = parts.image_views(shown)
    phrases, length = ("the cat", "the apple", "the dog", "the tree"), 64 if parts.quirks.one_segment else 4
    made: dict[str, tuple[Any, Callable[[], Sampler]]] = {
        "draw": (generate.Generate(prompt="two red apples and a cat"), lambda: presets.generate(parts)),
        "edit": (
            edit.Edit(
                pixels=torch.zeros(0),
                instruction="make the cat blue",
                look=views,
                codes=torch.randint(0, parts.net.config.codes, parts.grid, generator=torch.Generator().manual_seed(0)),
            ),
            lambda: presets.edit(parts),
        ),
        "answer": (
            understand.Ask(pixels=views, question="how many apples are there?", length=length),
            lambda: presets.ask(parts),
        ),
        "boxes": (ground.Ground(pixels=views, phrases=phrases), lambda: presets.ground(parts, 1)),
    }
    asked, sampler = made[task]
    known = parts.features.known([asked.build(parts)], parts.net, torch.device(model.device))
    return collate(known, [0]).to(model.device), sampler()


@torch.no_grad()
def drive(net: Denoise, batch: Batch, sampler: Sampler, effort: Effort) -> Run:
    """The first steps of a run."""
    run, seconds = sampler.start(batch), []
    while (query := run.query) is not None and (effort.steps is None or len(seconds) < effort.steps):
        settle()
        began = effort.clock()
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
        settle()
        seconds.append(effort.clock() - began)
    done = effort.steps is None or len(seconds) < effort.steps
    return Run(seconds=seconds, ids=run.batch.ids, of=len(seconds) if done else run.step.of)


def settle() -> None:
    """Wait until the GPU, if there is one, has done everything queued."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def operations(
    net: Denoise, batch: Batch, sampler: Sampler, most: int | None, config: ElasticConfig
) -> tuple[float, float]:
    """(done, necessary) of a run."""
    run, necessary, queries = sampler.start(batch), 0.0, 0
    with flop_counter() as counter:
        while (query := run.query) is not None and (most is None or queries < most):
            necessary += needed(query, config)
            run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
            queries += 1
    return float(counter.get_total_flops()), necessary


def needed(query: Query, config: ElasticConfig) -> float:
    """Operations of the matrix products of a pass without which its answer cannot be had (spec 1.4, 1.7): each computed position through
    its branch's layers, keys and values alone where nothing later reads it, the last layer's queries and feed-forward only where a token
    is scored; for codes also their way into a position and out of it.
    """
    batch, reuse = query.batch, query.reuse
    at = batch.leader & batch.valid
    computed = at if reuse is None else at & reuse.compute
    readable = at if reuse is None or reuse.state is None else at & (reuse.compute | reuse.state.held)
    gen_BL, text_BL = batch.branch == Branch.GEN, batch.kind == Kind.TEXT
    counts = [(m & ~gen_BL).sum(1).tolist() for m in (computed, readable)]
    counts += [(m & gen_BL).sum(1).tolist() for m in (computed, readable)]
    scored = [(query.predict & k).sum(1).tolist() for k in (text_BL, batch.kind == Kind.CODE)]
    folded_BL = computed & gen_BL & (batch.stride > 0)
    asked_BL = query.predict & gen_BL & computed
    first = torch.arange(asked_BL.shape[1], device=batch.device).expand_as(asked_BL)
    for corner in (1, batch.stride, batch.stride + 1):
        at = (first + corner).clamp(max=asked_BL.shape[1] - 1)
        asked_BL = asked_BL | (folded_BL & (query.predict & gen_BL).gather(1, at))
    squares = [(folded_BL & m).sum(1).tolist() for m in (folded_BL, asked_BL)]
    rows = zip(*counts, *scored, asked_BL.sum(1).tolist(), *squares, strict=True)
    return sum(_needed(_Row(*row), config) for row in rows)


class _Row(NamedTuple):
    """Positions of a row that are computed, and that are read, by branch; tokens that are scored, by kind; positions of the
    scored codes (``asked``); positions of four codes, and those of them with scored ones.
    """

    und: int
    und_read: int
    gen: int
    gen_read: int
    text: int
    codes: int
    asked: int
    folded: int
    unfolded: int


def _needed(row: _Row, config: ElasticConfig) -> float:
    d, e, total = config.width, config.gen_width, 0.0
    for layer in range(config.layers):
        joint, last = layer < config.joint_layers, layer == config.layers - 1
        read_later = layer < config.joint_layers - 1  # by the other branch
        und = (row.text if last else row.und) if row.text else row.und * (read_later and row.codes > 0)
        gen = (row.asked if last else row.gen) if row.codes else row.gen * (read_later and row.text > 0)
        total += row.und * (row.text > 0 or joint) * 4 * d * d + und * 2 * d * (2 * d + 3 * config.mlp)
        total += row.gen * (row.codes > 0 or joint) * 4 * d * e + gen * 2 * e * (2 * d + 3 * config.gen_mlp)
        both = row.und_read + row.gen_read
        total += 4 * d * ((und + gen) * both if joint else und * row.und_read + gen * row.gen_read)
    way_in = row.gen * 2 * e * e + row.folded * 8 * e * e
    way_out = row.unfolded * 8 * e * e + row.codes * 2 * e * (2 * e + config.codes)
    return total + row.text * 2 * d * config.vocab_size + way_in + way_out


def paired(model: Model, name: str, effort: Effort, tasks: Sequence[str] = TASKS) -> Iterator[list[Line]]:
    """Two lines a task. ``name``: of the model, in the names of the lines · ``equal``: fraction of equal ids, 1 in float32 but for ties."""
    net, device = model.parts.net, model.device
    for task in tasks:
        batch, sampler = request(model, task)
        twin = Published(net)
        ways: dict[str, Denoise] = {"ours": net, "published": twin}
        held, work = memory(
            partial(operations, net, batch, sampler, effort.steps, net.config), device
        )  # first: memory is reused
        theirs, _ = operations(twin, batch, sampler, effort.steps, net.config)
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        peaks = []
        for _ in range(effort.warm + effort.repeats):
            peaks.append(peak(net.embed.weight.dtype, device, effort.clock))
            for way, denoise in ways.items():
                twin.prompt = None
                runs[way].append(drive(denoise, batch, sampler, effort))
        kept = {way: some[effort.warm :] for way, some in runs.items()}
        seconds = {way: statistics.median(sum(run.seconds) for run in some) for way, some in kept.items()}
        pace = {way: statistics.median(run.pace for run in some) for way, some in kept.items()}
        (done, necessary), ours = work, runs["ours"][-1]
        more: dict[str, float] = {
            "published_s": seconds["published"],
            "forwards": len(ours.seconds),
            "of": ours.of,
            "pace_s": pace["ours"],
            "published_pace_s": pace["published"],
            "tflop": done / 1e12,
            "published_tflop": theirs / 1e12,
            "over_necessary": done / necessary,
            "peak": done / seconds["ours"] / statistics.median(peaks),
            "memory_mb": held / 1e6,
            "equal": float((ours.ids == runs["published"][-1].ids)[batch.masked].float().mean()),
        }
        whole = Line(name=f"speed.paired.{name}.{task}.s", value=seconds["ours"], unit="s", more=more)
        ratio = pace["published"] / pace["ours"]
        yield [whole, Line(name=f"speed.paired.{name}.{task}", value=ratio, unit="ratio")]


def peak(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """Operations a second of a large matrix product, by the clock of the runs beside it: the best of five."""
    if device.type != "cpu":
        return matmul_peak(dtype, device)
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = clock()
        a @ b
        best = min(best, clock() - began)
    return 2 * 1024**3 / best


def memory(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Peak bytes that a piece of work adds to those held before (0 where the system does not report it), and its result."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        found = work()
        return torch.cuda.max_memory_allocated(device) - before, found
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the largest size so far becomes the present one
    except OSError:
        return 0.0, work()
    before = _status("VmRSS")
    found = work()
    return max(0.0, _status("VmHWM") - before), found


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def table(lines: Sequence[Line]) -> str:
    """A line a task. "seconds" and "published": of the whole schedule, estimated where only its first steps were made."""
    names = ("seconds", "published", "ratio", "passes", "of", "TFLOP", "/needed", "of peak", "MB", "equal")
    rows = [f"{'task':8}" + "".join(f"{name:>10}" for name in names)]
    for seconds, ratio in zip(lines[::2], lines[1::2], strict=True):
        m: dict[str, float] = seconds.more or {}  # type: ignore[assignment]
        shown = [f"{m['pace_s']:.4f}", f"{m['published_pace_s']:.4f}", f"{ratio.value:.2f}"]
        shown += [f"{m['forwards']:.0f}", f"{m['of']:.0f}", f"{m['tflop']:.4f}", f"{m['over_necessary']:.3f}"]
        shown += [f"{m['peak']:.3f}", f"{m['memory_mb']:.0f}", f"{m['equal']:.3f}"]
        rows.append(f"{ratio.name.rpartition('.')[2]:8}" + "".join(f"{text:>10}" for text in shown))
    return "\n".join(rows)


def chart(lines: Sequence[Line], title: str) -> Image.Image:
    """Seconds of each task and of the slow twin, as bars."""
    rows = []
    for line in lines[::2]:
        more: dict[str, float] = line.more or {}  # type: ignore[assignment]
        rows.append((line.name.split(".")[3], (more["pace_s"], more["published_pace_s"])))
    return bars(rows, ("unmask", "published amount of work"), title)
