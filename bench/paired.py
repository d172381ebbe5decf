"""Every task beside the published amount of work (``published.py``), on the same weights, in one run and in turns.

Public idea: ``paired(model, effort) -> list[Line]``: for each task the seconds of a run, its forward passes, operations done over those
that are necessary, the share of the measured peak of a matrix product, the most memory, and how many times longer the slow twin takes.
``table`` and ``plot`` show them.

    unmask bench speed --only paired --json speed.json --plot speed.svg
    unmask bench speed --only paired --model mid --steps 2        random weights in the released proportions
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: ``seconds`` without its start · ``ids``: what it drew or wrote · ``queries``: the passes it asked for."""

    seconds: float
    ids: torch.Tensor
    queries: int


def request(model: Model, task: str) -> tuple[Batch, Sampler]:
    """One request, its picture already seen."""
    parts, presets = model.parts, model.presets
    shown = Image.fromarray(render(sample("grid", "validation", 0, 0), parts.side))
    views = parts.image_views(shown)
    phrases = ("the cat",) if parts.quirks.one_segment else ("the cat", "the apple", "the dog", "the tree")
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
        "answer": (understand.Ask(pixels=views, question="how many apples are there?"), lambda: presets.ask(parts)),
        "boxes": (ground.Ground(pixels=views, phrases=phrases), lambda: presets.ground(parts, 1)),
    }
    asked, sampler = made[task]
    known = parts.features.known([asked.build(parts)], parts.net, torch.device(model.device))
    return collate(known, [0]).to(model.device), sampler()


@torch.no_grad()
def drive(net: Denoise, batch: Batch, sampler: Sampler, most: int | None, wait: Callable[[], None]) -> Run:
    """The first ``most`` steps (None: all)."""
    run, queries = sampler.start(batch), 0
    wait()
    began = time.perf_counter()
    while (query := run.query) is not None and (most is None or queries < most):
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
        queries += 1
    wait()
    return Run(seconds=time.perf_counter() - began, ids=run.batch.ids, queries=queries)


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
    its branch's layers, keys and values alone where nothing later reads it, the last layer's feed-forward only where a token is scored.
    """
    batch, reuse = query.batch, query.reuse
    at = batch.leader & batch.valid
    computed = at if reuse is None else at & reuse.compute
    readable = at if reuse is None or reuse.state is None else at & (reuse.compute | reuse.state.held)
    gen_BL, text_BL = batch.branch == Branch.GEN, batch.kind == Kind.TEXT
    counts = [(m & ~gen_BL).sum(1).tolist() for m in (computed, readable)]
    counts += [(m & gen_BL).sum(1).tolist() for m in (computed, readable)]
    scored = [(query.predict & k).sum(1).tolist() for k in (text_BL, batch.kind == Kind.CODE)]
    rows = zip(*counts, *scored, strict=True)
    return sum(_needed(_Row(*row), config) for row in rows)


class _Row(NamedTuple):
    """Positions of a row that are computed, and that are read, by branch; tokens that are scored, by kind."""

    und: int
    und_read: int
    gen: int
    gen_read: int
    text: int
    codes: int


def _needed(row: _Row, config: ElasticConfig) -> float:
    d, e, total = config.width, config.gen_width, 0.0
    for layer in range(config.layers):
        joint, last = layer < config.joint_layers, layer == config.layers - 1
        read_later = layer < config.joint_layers - 1  # by the other branch
        und = (row.text if last else row.und) if row.text else row.und * (read_later and row.codes > 0)
        gen = (min(row.gen, row.codes) if last else row.gen) if row.codes else row.gen * (read_later and row.text > 0)
        total += row.und * (row.text > 0 or joint) * 4 * d * d + und * 2 * d * (2 * d + 3 * config.mlp)
        total += row.gen * (row.codes > 0 or joint) * 4 * d * e + gen * 2 * e * (2 * d + 3 * config.gen_mlp)
        both = row.und_read + row.gen_read
        total += 4 * d * ((und + gen) * both if joint else und * row.und_read + gen * row.gen_read)
    return total + row.text * 2 * d * config.vocab_size + row.codes * 2 * e * (2 * e + config.codes)


def paired(
    model: Model, *, repeats: int, warm: int, steps: int | None = None, tasks: Sequence[str] = TASKS
) -> list[Line]:
    """``steps``: of each run (None: all) · ``equal`` is the share of equal ids, which is 1 in float32 but for near ties."""
    net, device = model.parts.net, model.device
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    peak = matmul_peak(net.embed.weight.dtype, device)
    lines = []
    for task in tasks:
        batch, sampler = request(model, task)
        twin = Published(net)
        ways: dict[str, Denoise] = {"ours": net, "published": twin}
        times: dict[str, list[float]] = {name: [] for name in ways}
        held = memory(
            partial(drive, net, batch, sampler, steps, wait), device
        )  # first: later runs find their memory there
        found = {name: drive(way, batch, sampler, steps, wait) for name, way in ways.items()}
        for number in range(warm + repeats):
            for name, way in ways.items():
                twin.prompt = None
                seconds = drive(way, batch, sampler, steps, wait).seconds
                if number >= warm:
                    times[name].append(seconds)
        middle = {name: statistics.median(taken) for name, taken in times.items()}
        twin.prompt = None
        work = {name: operations(way, batch, sampler, steps, net.config) for name, way in ways.items()}
        done, necessary = work["ours"]
        more: dict[str, float] = {
            "published_s": middle["published"],
            "forwards": found["ours"].queries,
            "tflop": done / 1e12,
            "published_tflop": work["published"][0] / 1e12,
            "over_necessary": done / necessary,
            "peak": done / middle["ours"] / peak,
            "memory_mb": held / 1e6,
            "equal": float((found["ours"].ids == found["published"].ids)[batch.masked].float().mean()),
        }
        lines.append(Line(name=f"speed.paired.{task}.s", value=middle["ours"], unit="s", more=more))
        lines.append(Line(name=f"speed.paired.{task}", value=middle["published"] / middle["ours"], unit="ratio"))
    return lines


def memory(work: Callable[[], object], device: torch.device) -> float:
    """Peak bytes that a piece of work adds to those held before; 0 where the system does not report it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the largest size so far becomes the present one
    except OSError:
        return 0.0
    before = _status("VmRSS")
    work()
    return max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def table(lines: Sequence[Line]) -> str:
    """A line a task."""
    columns = (
        ("seconds", 10),
        ("published", 11),
        ("times", 7),
        ("passes", 8),
        ("TFLOP", 10),
        ("/needed", 9),
        ("of peak", 9),
    )
    head = f"{'task':8}" + "".join(f"{name:>{width}}" for name, width in columns) + f"{'MB':>8}{'equal':>7}"
    rows = [head]
    for seconds, ratio in zip(lines[::2], lines[1::2], strict=True):
        m = seconds.more or {}
        rows.append(
            f"{ratio.name.rpartition('.')[2]:8}{seconds.value:10.4f}{m['published_s']:11.4f}{ratio.value:7.2f}{m['forwards']:8.0f}"
            f"{m['tflop']:10.4f}{m['over_necessary']:9.3f}{m['peak']:9.3f}{m['memory_mb']:8.0f}{m['equal']:7.3f}"
        )
    return "\n".join(rows)


def plot(lines: Sequence[Line], title: str) -> str:
    """Seconds of each task and of the slow twin, as bars of an SVG picture."""
    bars = [(s.name.split(".")[2], s.value, (s.more or {})["published_s"]) for s in lines[::2]]
    most, parts = max(max(ours, theirs) for _, ours, theirs in bars), []
    for row, (task, ours, theirs) in enumerate(bars):
        for place, (value, colour) in enumerate(((ours, "#2a6fdb"), (theirs, "#b8bcc4"))):
            y, width = 40 + 60 * row + 22 * place, 420 * value / most
            parts.append(f'<rect x="80" y="{y}" width="{width:.1f}" height="20" fill="{colour}"/>')
            parts.append(f'<text x="{86 + width:.1f}" y="{y + 15}">{value:.3g} s</text>')
        parts.append(f'<text x="8" y="{58 + 60 * row}">{task}</text>')
    high = 60 * len(bars) + 60
    parts.append(f'<text x="80" y="{high - 10}" fill="#2a6fdb">unmask</text>')
    parts.append(f'<text x="160" y="{high - 10}" fill="#777">published amount of work</text>')
    size = f'width="600" height="{high}" font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><text x="8" y="20">{title}</text>{"".join(parts)}</svg>'
