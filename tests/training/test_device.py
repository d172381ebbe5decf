"""Where a run computes: devices are chosen by name, batches follow, and a state saved on one device resumes on another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.recipe import override
from unmask.sequence import Batch
from unmask.step import Loss
from unmask.training.device import DeviceUnavailable, available, choose, move
from unmask.training.meters import matmul_peak
from unmask.training.parallel import backend
from unmask.training.states import STATE
from unmask.training.train import train

from ..machines import machine
from .line import rows
from .tiny import Numbers, recipe

ACCELERATORS = [name for name in available() if name != "cpu"]


@pytest.mark.parametrize(
    ("name", "cards", "mps", "wanted"),
    [
        ("cpu", 2, True, "cpu"),
        ("cuda", 2, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("auto", 2, True, "cuda:0"),
        ("auto", 0, True, "mps"),
        ("auto", 0, False, "cpu"),
    ],
)
def test_a_device_is_chosen_by_name(
    name: str, cards: int, mps: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cards=cards, mps=mps)
    assert choose(name) == torch.device(wanted)


@pytest.mark.parametrize(
    ("name", "cards", "mps", "says", "hint"),
    [
        ("cuda", 0, True, "the device 'cuda' is not available here", "use auto or mps or cpu"),
        ("cuda:2", 2, False, "the device 'cuda:2' is not available here", "use auto or cuda:0 or cuda:1 or cpu"),
        ("mps", 0, False, "the device 'mps' is not available here", "use auto or cpu"),
        ("gpu", 0, False, "'gpu' is not a device that unmask runs on", "use auto or cpu"),
    ],
)
def test_an_unavailable_device_is_named_with_those_that_are_there(
    name: str, cards: int, mps: bool, says: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, cards=cards, mps=mps)
    with pytest.raises(DeviceUnavailable) as error:
        train(override(recipe(), [f"training.device={name}"]), tmp_path)
    assert says in str(error.value) and str(error.value).endswith(f"; {hint}")


def test_each_process_of_a_machine_gets_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=2)
    assert [choose(name, local_rank=1, world=2) for name in ("cuda", "auto")] == [torch.device("cuda:1")] * 2
    with pytest.raises(DeviceUnavailable, match="2 processes cannot share cuda:1; use --device cuda"):
        choose("cuda:1", local_rank=0, world=2)
    with pytest.raises(
        DeviceUnavailable, match="process 3 of this machine has no card of its own, there are 2; use that"
    ):
        choose("cuda", local_rank=2, world=3)


def test_gradients_travel_by_what_the_device_knows() -> None:
    assert [backend(torch.device(d)) for d in ("cuda:1", "mps", "cpu")] == ["cpu:gloo,cuda:nccl", "gloo", "gloo"]


class Pair(NamedTuple):
    left: Tensor
    right: Any


def test_everything_in_a_batch_moves() -> None:
    meta = torch.device("meta")
    batch = Numbers()(0)
    moved = move({"a": batch, "b": (torch.zeros(2), [torch.zeros(3), "text"]), "c": Pair(torch.zeros(1), 3)}, meta)
    assert isinstance(moved["a"], Batch) and moved["a"].device == meta and moved["a"].seed.device == meta
    assert moved["b"][0].device == moved["b"][1][0].device == moved["c"].left.device == meta
    assert moved["b"][1][1] == "text" and moved["c"].right == 3
    assert isinstance(moved["b"], tuple) and isinstance(moved["b"][1], list) and isinstance(moved["c"], Pair)
    assert batch.device == torch.device("cpu")
    assert move(batch, batch.device) is batch


class Seen(Exception):
    """What the objective was given."""


def test_module_masters_and_batches_are_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for an accelerator: it holds no values, so the run ends at the objective."""
    meta, made = torch.device("meta"), []
    monkeypatch.setattr("unmask.training.train.choose", lambda name, local_rank, world: meta)
    monkeypatch.setattr("unmask.training.train._COUNTED", 1)
    monkeypatch.setattr("unmask.training.train._flops", lambda learner, step: 1.0)
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: made.append(device) or 1e9)
    monkeypatch.setattr("unmask.training.train.Masters.sync", lambda self: made.append(self.master[0].device))

    def objective(module: nn.Module, batch: Batch, rng: torch.Generator) -> Loss:
        raise Seen(batch.device, next(module.parameters()).device, rng.device)

    with pytest.raises(Seen) as seen:
        train(dataclasses.replace(recipe(), objective=objective), tmp_path)
    assert seen.value.args == (meta, meta, torch.device("cpu"))
    assert made == [meta, meta]


def test_the_peak_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    assert matmul_peak(torch.float32, "cpu") > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not ACCELERATORS, reason="needs an accelerator")
@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_run_goes_on_on_another_device(name: str, tmp_path: Path) -> None:
    there = override(recipe(), [f"training.device={name}"])
    train(recipe(), tmp_path / "cpu")
    for first, second in ((recipe(), there), (there, recipe()), (there, there)):
        folder = tmp_path / f"{first.training.device}-{second.training.device}"
        train(first, folder, stop_after=6)
        done = train(second, folder)
        assert {p.device.type for p in done.parameters()} == {"cpu"}
        assert {t.device.type for t in load_file(folder / STATE).values()} == {"cpu"}
        for got, wanted in zip(rows(folder), rows(tmp_path / "cpu"), strict=True):
            assert [got[k] for k in ("step", "text", "code")] == pytest.approx(
                [wanted[k] for k in ("step", "text", "code")], rel=0.02
            )
