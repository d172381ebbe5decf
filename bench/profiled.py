"""Where the time of a step goes. Public idea: ``profiled(model, name, task) -> Line``: fractions of the operators' own time.

unmask bench speed --only profile --model mid
"""

from __future__ import annotations

import torch
from paired import request
from torch.profiler import ProfilerActivity, profile

from unmask.evaluation.history import Line
from unmask.pipeline.model import Model

KINDS = {
    "linear layers": ("mm", "addmm", "linear", "_linear_pointwise", "_int_mm"),
    "attention products": ("bmm", "baddbmm"),
    "fused attention": ("flash_attention", "efficient_attention", "cudnn_attention"),
    "softmax": ("softmax",),
    "copies": ("copy_", "cat", "index", "index_select", "gather", "clone", "index_copy_", "repeat_interleave"),
    "elementwise": ("mul", "add", "sub", "div", "silu", "pow", "rsqrt", "sum", "masked_fill", "where", "exp", "log"),
}


@torch.no_grad()
def profiled(model: Model, name: str, task: str) -> Line:
    """The second step of a task (or its only one), the sampler's part included; the value is the fraction in matrix products."""
    batch, sampler = request(model, task)
    on_gpu = model.device.type == "cuda"
    run, net = sampler.start(batch), model.parts.net

    def step() -> None:
        query = run.query
        assert query is not None
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))

    if run.step.of > 1:
        step()  # the first one also lays the batch out
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        step()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in seen.key_averages():
        spent[_kind(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    shares = {kind: taken / sum(spent.values()) for kind, taken in spent.items()}
    products = shares["linear layers"] + shares["attention products"] + shares["fused attention"]
    return Line(name=f"speed.profile.{name}.{task}", value=products, unit="share", more=shares)


def _kind(operator: str) -> str:
    name = operator.rpartition("::")[2]
    exact = [kind for kind, names in KINDS.items() if name in names]
    within = [kind for kind, names in KINDS.items() if any(len(part) > 5 and part in name for part in names)]
    stripped = [kind for kind, names in KINDS.items() if name.rstrip("_") in names]
    return next(iter([*exact, *stripped, *within]), "other")
