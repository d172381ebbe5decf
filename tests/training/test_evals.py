"""Evaluations during a run: on the averaged weights, into metrics.jsonl, without a trace in the training."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unmask.recipe import Eval, Recipe, override
from unmask.training.states import STATE
from unmask.training.train import train

from .line import recipe, rows


def values(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(r["step"], r[name]) for r in rows(folder) if name in r]


def bias(module: nn.Linear, step: int) -> dict[str, float]:
    return {"bias": module.bias.item(), "step": step}


def with_evals(*evals: Eval, bf16: bool = False) -> Recipe:
    return dataclasses.replace(recipe(bf16=bf16), evals=evals)


def test_values_are_written_with_their_step(tmp_path: Path) -> None:
    train(with_evals(Eval(name="a", every=3, run=bias), Eval(name="b", every=4, run=bias)), tmp_path)
    assert values(tmp_path, "a.step") == [(3, 3), (6, 6), (8, 8)]  # at the end, too
    assert values(tmp_path, "b.step") == [(4, 4), (8, 8)]


def test_the_averaged_weights_are_measured(tmp_path: Path) -> None:
    done = train(with_evals(Eval(name="a", every=5, run=bias)), tmp_path)
    (step, measured), (last, final) = values(tmp_path, "a.bias")
    assert (step, last) == (5, 8)
    assert final == pytest.approx(done.bias.item(), abs=1e-7)
    state = load_file(tmp_path / STATE)
    assert state["average.bias"].item() == pytest.approx(final) != pytest.approx(state["master.bias"].item())
    assert measured != final


@pytest.mark.parametrize("bf16", [False, True])
def test_training_is_the_same_with_and_without(bf16: bool, tmp_path: Path) -> None:
    """An evaluation may draw random numbers and change modes, and it sees no gradients."""

    def intrusive(module: nn.Module, step: int) -> dict[str, float]:
        assert not module.training and not torch.is_grad_enabled()
        module.train()
        torch.rand(3), random.random(), np.random.rand()
        return {"x": float(module(torch.ones(1, 3, dtype=module.weight.dtype)))}  # type: ignore[arg-type]

    torch.manual_seed(5)
    plain = train(recipe(bf16=bf16), tmp_path / "plain")
    after = torch.get_rng_state()
    torch.manual_seed(5)
    done = train(with_evals(Eval(name="a", every=1, run=intrusive), bf16=bf16), tmp_path / "evals")
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), done.parameters(), strict=True))
    one, other = (load_file(tmp_path / name / STATE) for name in ("plain", "evals"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_weights_come_back_after_an_evaluation_that_fails(tmp_path: Path) -> None:
    modules: list[nn.Linear] = []

    def broken(module: nn.Linear, step: int) -> dict[str, float]:
        modules.append(module)
        raise RuntimeError("no images")

    with pytest.raises(RuntimeError, match="no images"):
        train(with_evals(Eval(name="a", every=4, run=broken)), tmp_path)
    state = load_file(tmp_path / STATE)  # of step 3
    assert modules[0].training and modules[0].bias.item() != pytest.approx(state["average.bias"].item())


def test_a_resumed_run_measures_each_step_once(tmp_path: Path) -> None:
    made = with_evals(Eval(name="a", every=2, run=bias))
    train(made, tmp_path / "whole")
    for steps in (4, 1, 3):
        train(made, tmp_path / "pieces", stop_after=steps)
    assert values(tmp_path / "pieces", "a.bias") == values(tmp_path / "whole", "a.bias")


def test_how_often_is_a_setting(tmp_path: Path) -> None:
    made = override(with_evals(Eval(name="a", every=2, run=bias)), ["evals.a.every=4"])
    train(made, tmp_path)
    assert [step for step, _ in values(tmp_path, "a.bias")] == [4, 8]
    with pytest.raises(ValueError, match="no field 'b'; did you mean 'evals.a.every'"):
        override(made, ["evals.b.every=4"])
    with pytest.raises(ValueError, match="evals.a.every must be at least 1, got 0"):
        override(made, ["evals.a.every=0"])


def test_two_evaluations_of_one_name_are_refused() -> None:
    each = Eval(name="a", every=2, run=bias)
    with pytest.raises(ValueError, match="evals must have different names, got a, a"):
        with_evals(each, each)
