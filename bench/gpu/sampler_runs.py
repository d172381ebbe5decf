"""Sampler runs on a device, timed without waiting for it between the steps, as the package runs them.

Public idea: ``drive(bench, batch, sampler) -> Timed``; ``with graphed(bench) as graphs:`` the layers run as CUDA graphs inside. A ``Bench``
writes each figure as soon as it is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import settle, show  # noqa: E402

from unmask.data.world.render import render  # noqa: E402
from unmask.data.world.scenes import sample  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.attention import plain  # noqa: E402
from unmask.models.graphs import Found, Graphs, Replay, capture  # noqa: E402
from unmask.pipeline.model import Model  # noqa: E402
from unmask.protocols import Run  # noqa: E402
from unmask.sampling.sampler import Sampler  # noqa: E402
from unmask.sequence import Batch, collate  # noqa: E402
from unmask.step import Query  # noqa: E402
from unmask.tasks import edit, generate, understand  # noqa: E402
from unmask.tasks.parts import Presets  # noqa: E402
from unmask.training.probe import flop_counter  # noqa: E402

NO_GRAPHS = "graphs.failed"
PROMPT = "two red apples on a wooden table beside a sleeping cat, in the morning sun"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The model and what one measurement needs beside it.

    ``peak``: measured bfloat16 FLOPs a second of a matrix product · ``name``: how the rows begin · ``history``: the file that they are
    appended to · ``until``: moment of ``time.perf_counter`` at which no long measurement starts any more · ``found``: figures that later
    measurements read, by name.
    """

    model: Model
    device: str
    quick: bool
    peak: float
    name: str
    history: Path
    until: float
    found: dict[str, float] = field(default_factory=dict)

    @property
    def card(self) -> bool:
        return self.device != "cpu"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()

    @functools.cached_property
    def picture(self) -> Image.Image:
        return Image.fromarray(render(sample("grid", "validation", 0, 0), self.model.parts.side))

    def row(self, name: str, value: float, unit: str, **more: Any) -> Line:
        return Line(name=f"{self.name}.{name}", value=value, unit=unit, more={**more, "quick": self.quick})

    def write(self, *lines: Line) -> None:
        """Print rows and append them to the history, so that nothing that follows can lose them."""
        show(list(lines))
        append(self.history, lines, device=self.device)


class Marks:
    """Moments on the device's own clock, which nobody waits for; on the CPU's where there is no card."""

    def __init__(self, card: bool) -> None:
        self.card, self.marks = card, list[Any]()

    def mark(self) -> None:
        now: Any = torch.cuda.Event(enable_timing=True) if self.card else time.perf_counter()
        if self.card:
            now.record()
        self.marks.append(now)

    def seconds(self) -> list[float]:
        """Between the marks. The device must have reached the last of them."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) / 1e3 if self.card else b - a for a, b in pairs]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """``seconds``: of the whole run · ``host``: until the CPU had launched all of it · ``steps``: of each step, on the device's clock."""

    seconds: float
    host: float
    steps: list[float]
    run: Run


@torch.no_grad()
def drive(bench: Bench, batch: Batch, sampler: Sampler, most: int | None = None) -> Timed:
    """Run all steps, or the first ``most``."""
    net, marks, done = bench.model.parts.net, Marks(bench.card), 0
    settle()
    began = time.perf_counter()
    run = sampler.start(batch)
    marks.mark()
    while (query := run.query) is not None and (most is None or done < most):
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
        marks.mark()
        done += 1
    host = time.perf_counter() - began
    settle()
    return Timed(seconds=time.perf_counter() - began, host=host, steps=marks.seconds(), run=run)


@torch.no_grad()
def flops(bench: Bench, query: Query) -> float:
    """FLOPs of one forward pass, as PyTorch counts them (plain attention: each of its products is counted)."""
    net = bench.model.parts.net
    before, net.attention = net.attention, plain
    try:
        with flop_counter() as counter:
            net(query.batch, predict=query.predict, reuse=query.reuse)
    finally:
        net.attention = before
    return float(counter.get_total_flops())


def batch_for(bench: Bench, task: str, presets: Presets | None = None) -> tuple[Batch, Sampler]:
    """A request of its own, with its picture's features known, and the sampler of the presets (None: of the model)."""
    parts, presets = bench.model.parts, presets or bench.model.presets
    if task == "draw":
        built, sampler = generate.Generate(prompt=PROMPT).build(parts), presets.generate(parts)
    elif task == "edit":
        codes = torch.randint(0, parts.net.config.codes, parts.grid, generator=torch.Generator().manual_seed(0))
        look = parts.image_views(bench.picture)
        wanted = edit.Edit(pixels=torch.zeros(0), instruction="make the cat blue", look=look, codes=codes)
        built, sampler = wanted.build(parts), presets.edit(parts)
    else:
        question = understand.Ask(
            pixels=parts.image_views(bench.picture), question="How many apples are there?", length=64
        )
        built, sampler = question.build(parts), presets.ask(parts)
    known = parts.features.known([built], parts.net, torch.device(bench.device))
    return collate(known, [0]).to(bench.device), sampler


def recomputed(work: Callable[[], Found]) -> tuple[Found, Replay]:
    """What stands for a CUDA graph on a CPU: the same work again, in the same tensors."""
    found = work()

    def replay() -> None:
        for kept, again in zip(found, work(), strict=True):
            if kept is not None and again is not None:
                kept.copy_(again)

    return found, replay


class Loud(Graphs):
    """Graphs that raise the error of a capture."""

    def _failed(self, name: tuple[int, bool], error: Exception) -> None:
        raise error


@contextmanager
def graphed(bench: Bench, *, must: bool = False) -> Iterator[Graphs]:
    """The layers below the last run as CUDA graphs inside, as in a model that ``unmask.load`` opens on a card; on a CPU, as what stands for
    them in a rehearsal.

    A layout that cannot be captured would run kernel by kernel; here its error is raised. Once graphs have failed
    (``bench.found[NO_GRAPHS]``), only measurements of graphs themselves use them (``must``).
    """
    net, graphs = bench.model.parts.net, Loud(capture=capture if bench.card else recomputed)
    net.graphs = None if NO_GRAPHS in bench.found and not must else graphs
    try:
        yield graphs
    finally:
        graphs.clear()
        net.graphs = None


def freed(bench: Bench) -> None:
    """Give the memory of what was measured back, which matters after a failure."""
    gc.collect()
    if bench.card:
        torch.cuda.empty_cache()


def memory(bench: Bench) -> dict[str, float]:
    """The most memory that was in use since the last call, in GB; nothing on a CPU."""
    if not bench.card:
        return {}
    most = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {"memory_gb": most}


def with_presets(bench: Bench, presets: Presets) -> Bench:
    """The same with a model of other presets."""
    return dataclasses.replace(bench, model=Model(bench.model.parts, presets))
