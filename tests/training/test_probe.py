"""FLOPs are counted by a pass that leaves no trace: weights, buffers, modes and random streams stay as they were."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unmask.recipe import Recipe, Training
from unmask.step import Loss
from unmask.training.probe import flops, unchanged
from unmask.training.train import train

CPU = torch.device("cpu")


class Normed(nn.Module):
    """Has all that a pass may change: batch statistics, dropout's random stream, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(x)))


def objective(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Loss:
    noise = torch.rand(batch.shape, generator=rng) * random.random() * float(np.random.rand())
    total = module(batch + noise).square().mean()
    return Loss(total=total, terms={"square": total}, counts={"rows": len(batch)})


def recipe(objective=objective) -> Recipe:  # noqa: ANN001
    def model() -> nn.Module:
        torch.manual_seed(0)
        return Normed()

    return Recipe(
        name="normed",
        model=model,
        source=lambda step: torch.arange(32.0).reshape(8, 4) + step,
        objective=objective,
        training=Training(steps=4, bf16=False, log_every=2),
    )


def test_counting_leaves_no_trace() -> None:
    made = recipe()
    module = made.model()
    module.drop.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert flops(made, module, made.source(0), 0, CPU) == 3 * 8 * 4 * 2  # out: one product forward, two backward
    after = module.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert random.getstate() == streams[0] and np.random.get_state()[1].tolist() == streams[1]
    assert torch.equal(torch.get_rng_state(), streams[2])
    assert all(p.grad is None for p in module.parameters())
    assert not module.drop.training and module.norm.training


def test_modes_and_buffers_come_back_after_an_error() -> None:
    module = Normed()
    mean = module.norm.running_mean
    with pytest.raises(KeyError), unchanged(module, CPU):
        module(torch.randn(8, 4))
        module.eval()
        raise KeyError
    assert module.training and mean is not None and torch.equal(mean, torch.zeros(4))


def test_a_run_without_counting_has_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def seeded(folder: str) -> dict[str, Tensor]:
        random.seed(1)
        np.random.seed(1)
        return train(recipe(), tmp_path / folder).state_dict()

    counted = seeded("counted")
    monkeypatch.setattr("unmask.training.train.flops", lambda *given: 1)
    plain = seeded("plain")
    assert all(torch.equal(counted[k], plain[k]) for k in plain)


def test_no_training_step_runs_under_the_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One counted pass before the first step; the counter changes the last bits of a gradient."""
    calls: list[str] = []
    monkeypatch.setattr(FlopCounterMode, "__enter__", lambda self: calls.append("counter") or self)
    monkeypatch.setattr(FlopCounterMode, "__exit__", lambda self, *error: calls.append("end"))
    monkeypatch.setattr(FlopCounterMode, "get_total_flops", lambda self: 7)

    def noted(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Loss:
        calls.append("objective")
        return objective(module, batch, rng)

    made = dataclasses.replace(recipe(), objective=noted)
    train(made, tmp_path / "short", stop_after=2)
    assert calls == ["objective", "objective"]  # too short a run to be worth a count
    calls.clear()
    monkeypatch.setattr("unmask.training.train._COUNTED", 2)
    train(made, tmp_path / "counted", stop_after=2)
    assert calls == ["counter", "objective", "end", "objective", "objective"]
    train(made, tmp_path / "counted")
    assert calls[5:] == ["counter", "objective", "end", "objective", "objective"]
    train(made, tmp_path / "counted")  # nothing is left to do, so nothing is counted
    assert len(calls) == 10
