"""CUDA graphs of the layers beside the same layers kernel by kernel; a CPU has no graphs, so nothing here runs in the rehearsal."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.models.graphs import Graphs, capture
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks.generate import Generate

from .test_cuda import DEVICE, ON_GPU, batch_of, sampler_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_GPU and torch.cuda.is_available()), reason="no CUDA device"),
]


@torch.no_grad()
@pytest.mark.parametrize("task", ["draw", "edit", "answer"])
def test_layers_that_run_as_graphs_compute_what_single_kernels_compute(task: str) -> None:
    """Every token of two runs that take their steps in turns, each with a graph of its own."""
    card, picture = (
        unmask.load("mini", device=DEVICE),
        Image.fromarray(render(sample("grid", "validation", 0, 0), 128)),
    )
    net, captured = card.parts.net, []

    def counted(work: Callable[[], Any]) -> Any:
        captured.append(1)
        return capture(work)

    batches = [batch_of(card, task, picture, seed).to(DEVICE) for seed in range(2)]
    alone = [sampler_of(card, task).sample(net, batch).ids for batch in batches]
    net.graphs = Graphs(capture=counted)
    runs = [sampler_of(card, task).start(batch) for batch in batches]
    while any(run.query for run in runs):
        for run in runs:
            for _ in range(3):
                if run.query:
                    run.advance(net(run.query.batch, predict=run.query.predict, reuse=run.query.reuse))
    assert captured and all(torch.equal(run.batch.ids, ids) for run, ids in zip(runs, alone, strict=True))


@pytest.mark.parametrize("task", ["draw", "edit", "answer"])
def test_a_model_draws_edits_and_answers_with_graphs_unless_they_are_declined(task: str) -> None:
    """The same results, graphs that were used, and no memory that they keep afterwards."""
    found, picture = [], Image.fromarray(render(sample("grid", "validation", 0, 0), 128))
    for graphs in (False, True):
        model = unmask.load("mini", device=DEVICE, graphs=graphs)
        if task == "answer":
            found.append(model.ask(picture, "what is in the picture?").text)
        else:
            drawn = model.generate("a red apple") if task == "draw" else model.edit(picture, "make the cat blue")
            found.append(drawn[0].image.tobytes())
    used = model.parts.net.graphs
    gc.collect()
    assert found[0] == found[1] and used is not None and used.failure is None and not used.known
    assert used.replays > 0 or task == "answer"  # which may take one step


def test_requests_of_a_server_run_as_graphs_alone_and_together() -> None:
    model = unmask.load("mini", device=DEVICE)
    prompts, sampler = ("a red apple", "two blue cats and a dog"), model.presets.generate(model.parts)
    tasks = [Generate(prompt=prompt).build(model.parts) for prompt in prompts]
    alone = [model.run([task], [0], sampler).rows[0].ids for task in tasks]
    used = model.parts.net.graphs
    assert used is not None
    for some in ([0], [0, 1]):
        engine, before = Engine(model.parts.net, device=model.device), used.replays
        handles = [engine.submit(Request(sequence=tasks[i], sampler=sampler, seed=0)) for i in some]
        engine.drain()
        assert all(torch.equal(handle.result().ids, alone[i]) for i, handle in zip(some, handles, strict=True))
        assert used.replays > before and used.failure is None
