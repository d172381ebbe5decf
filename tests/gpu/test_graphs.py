"""CUDA graphs of the layers beside the same layers kernel by kernel; a CPU has no graphs, so nothing here runs in the rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.models.graphs import Graphs, capture

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
