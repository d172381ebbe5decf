"""Recomputed activations, compiled layers, and logs beside metrics.jsonl: the same run, otherwise computed or reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.recipe import Recipe, override
from unmask.training.layers import layers, prepared
from unmask.training.states import STATE
from unmask.training.train import train

from . import line, tiny

torch.set_num_threads(1)


def short(*settings: str) -> Recipe:
    return override(tiny.recipe(), ["training.steps=4", *settings])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(short(), folder)
    return folder


def test_layers_are_the_elements_of_the_outermost_lists() -> None:
    module = tiny.model()
    assert layers(module) == list(module.blocks)
    nested = nn.Sequential(nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)]), nn.ReLU()]))
    assert layers(nested) == list(nested[0])


def test_recomputed_activations_give_the_same_bits(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    forward = type(tiny.model().blocks[0]).forward

    def counted(self: nn.Module, *given: Any, **named: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(self, *given, **named)

    monkeypatch.setattr(type(tiny.model().blocks[0]), "forward", counted)
    done = train(short("training.recompute=true"), tmp_path)
    again = len(calls)
    calls.clear()
    train(short(), tmp_path / "plain")
    assert again == 2 * len(calls)
    one, other = load_file(plain / STATE), load_file(tmp_path / STATE)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert all("forward" not in vars(layer) for layer in layers(done))
    train(short("training.steps=5"), tmp_path)  # a run may go on without


def test_between_passes_only_the_inputs_of_layers_are_kept() -> None:
    module = nn.ModuleDict(
        {"layers": nn.ModuleList(nn.Sequential(nn.Linear(4, 512), nn.GELU(), nn.Linear(512, 4)) for _ in range(3))}
    )

    def kept(recompute: bool) -> int:
        sizes: list[int] = []
        with (
            prepared(module, recompute=recompute, compile=False),
            torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t),
        ):
            x = torch.ones(100, 4)
            for layer in module["layers"]:
                x = layer(x)
        return max(sizes)

    assert kept(False) >= 100 * 512 and kept(True) <= 100 * 4


def test_compiled_layers_compute_the_same(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler's own rounding: the backend runs what was traced."""
    graphs: list[Any] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("torch.compile", lambda forward: real(forward, backend=backend, dynamic=True))
    train(short("training.compile=true", "training.recompute=true"), tmp_path)
    assert len(graphs) >= 2  # layers of one kind share a graph
    one, other = load_file(plain / STATE), load_file(tmp_path / STATE)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["recompute", "compile"])
def test_a_model_without_layers_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"training.{name} works on layers .*, and Linear has none; leave it false"):
        train(override(line.recipe(), [f"training.{name}=true"]), tmp_path)


def test_layers_are_restored_after_an_error() -> None:
    module = tiny.model()
    with pytest.raises(KeyError), prepared(module, recompute=True, compile=False):
        assert all("forward" in vars(layer) for layer in layers(module))
        raise KeyError
    assert all("forward" not in vars(layer) for layer in layers(module))


# -- logs -------------------------------------------------------------------------------------------------------------


class Kept:
    """A log in memory."""

    made: list[Kept] = []

    def __init__(self, folder: Path, start: int) -> None:
        self.start, self.rows, self.closed = start, [], False
        self.made.append(self)

    def write(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))

    def close(self) -> None:
        self.closed = True


def test_a_log_takes_every_row_and_is_closed(tmp_path: Path) -> None:
    Kept.made.clear()
    train(line.recipe(), tmp_path, logs=[Kept], stop_after=4)
    train(line.recipe(), tmp_path, logs=[Kept])
    first, second = Kept.made
    assert first.rows + second.rows == line.rows(tmp_path) and (first.start, second.start) == (0, 4)
    assert first.closed and second.closed

    def broken(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Any:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        train(dataclasses.replace(line.recipe(), objective=broken), tmp_path / "other", logs=[Kept])
    assert Kept.made[-1].closed


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from unmask.training.tensorboard import TensorBoard

    train(line.recipe(), tmp_path, logs=[TensorBoard])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(e.step, e.value) for e in events.Scalars("square")]
    assert found == [(r["step"], pytest.approx(r["square"])) for r in line.rows(tmp_path)]
