"""The figure ``peak`` of metrics.jsonl: operations over the time of the updates, right from the first row on."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.recipe import override
from unmask.sequence import Batch, stack
from unmask.training.losses import size
from unmask.training.optim import freeze_others
from unmask.training.probe import flops
from unmask.training.train import train

from .tiny import Numbers, recipe

UPDATE, SOURCE, PEAK = 2.0, 100.0, 1e6


def batch(step: int) -> Batch:
    """Every second one has twice as many rows."""
    return stack([Numbers()(step)] * (1 + step % 2))


def test_it_is_right_from_the_first_row_and_leaves_the_source_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    given = recipe()

    def source(step: int) -> Batch:
        now[0] += SOURCE
        return batch(step)

    def objective(*given_: Any) -> Any:
        now[0] += UPDATE
        return given.objective(*given_)

    module, device = given.model(), torch.device("cpu")
    freeze_others(module, given.trainable)
    work = flops(given, module, batch(0), 0, device)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: PEAK)
    monkeypatch.setattr("unmask.training.train._COUNTED", 6)
    made = dataclasses.replace(given, source=source, objective=objective)
    train(override(made, ["training.steps=6", "training.log_every=1", "training.bf16=false"]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = [row["peak"] for row in rows if "peak" in row]
    once = work / UPDATE / PEAK
    assert shares == pytest.approx([once, 2 * once] * 3, abs=1e-3) and once > 0.5


def test_the_size_of_a_batch() -> None:
    one = Numbers()(0)
    positions = int((one.leader & one.valid).sum())
    assert size(one) == positions == 4 * (6 + 4)
    assert size({"a": one, "b": [one, torch.zeros(2, 3)], "c": "name"}) == 2 * positions + 6
