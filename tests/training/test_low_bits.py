"""Moments in 8 bits, and layers that multiply in float8."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.recipe import Optim, Recipe, Training, override
from unmask.rng import generator
from unmask.step import Loss
from unmask.training.layers import layers
from unmask.training.low_bits import to_float8
from unmask.training.states import STATE
from unmask.training.train import train

from . import line, tiny
from .tiny import recipe

torch.set_num_threads(1)
pytest.importorskip("torchao")


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
    with torch.no_grad():
        for n, p in enumerate(made.parameters()):
            p.copy_(0.2 * torch.randn(p.shape, generator=generator("wide", n)))
    return made


def objective(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Loss:
    """A map that is to be learned by heart."""
    total = (module(batch) - batch.roll(1, 1).sin()).square().mean()
    return Loss(total=total, terms={"square": total}, counts={})


def wide(bits: int, steps: int = 60) -> Recipe:
    """Two matrices of 8192 values, and biases."""
    return Recipe(
        name="wide",
        model=model,
        source=lambda step: torch.randn(64, 64, generator=generator("x", step % 4)),
        objective=objective,
        optim=Optim(lr=1e-3, warmup=1, bits=bits),
        training=Training(steps=steps, bf16=False, log_every=1, save_every=100),
    )


def test_the_moments_of_large_weights_take_a_quarter(tmp_path: Path) -> None:
    for bits in (8, 32):
        train(wide(bits, 2), tmp_path / str(bits))
    full, small = (load_file(tmp_path / bits / STATE) for bits in ("32", "8"))
    for name in ("exp_avg.0.weight", "exp_avg_sq.2.weight"):
        assert small[name].dtype == torch.uint8 and small[name].shape == full[name].shape
        assert small[name.replace(".", "_scale.", 1)].numel() * 256 == full[name].numel()
    assert small["exp_avg.0.bias"].dtype == torch.float32

    def size(state: dict[str, Tensor]) -> int:
        return sum(t.nbytes for n, t in state.items() if n.startswith("exp_avg"))

    assert size(small) < 0.28 * size(full)


def test_it_learns_nearly_as_with_32_bits(tmp_path: Path) -> None:
    for bits in (8, 32):
        train(wide(bits), tmp_path / str(bits))
    full, small = ([row["square"] for row in line.rows(tmp_path / bits)] for bits in ("32", "8"))
    assert small != full and full[-1] < 0.5 * full[0]
    assert small == pytest.approx(full, rel=0.03)


def test_a_run_with_8_bits_continues_bit_for_bit(tmp_path: Path) -> None:
    train(wide(8, 12), tmp_path / "whole")
    for steps in (5, 7):
        train(wide(8, 12), tmp_path / "pieces", stop_after=steps)
    one, other = (load_file(tmp_path / name / STATE) for name in ("whole", "pieces"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_other_bits_are_another_run(tmp_path: Path) -> None:
    train(wide(8), tmp_path, stop_after=2)
    with pytest.raises(ValueError, match="optim.bits was 8, is 32"):
        train(wide(32), tmp_path)
    with pytest.raises(ValueError, match="does not fit this recipe: exp_avg.* is uint8 .*, not float32"):
        train(wide(32), tmp_path, allow_changes=True)
    with pytest.raises(ValueError, match="optim.bits must be 32 or 8, got 4"):
        wide(4)


@pytest.mark.parametrize(
    ("setting", "module"), [("optim.bits=8", "torchao.optim"), ("training.float8=true", "torchao.float8")]
)
def test_without_torchao_the_extra_is_named(
    setting: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("unmask.training.train.refuse_without_float8", lambda device: None)
    with pytest.raises(ValueError, match=r"needs the package torchao; pip install 'unmask\[quant\]'"):
        train(override(recipe(), [setting]), tmp_path)


# -- float8 -----------------------------------------------------------------------------------------------------------


def test_float8_needs_a_device_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.float8 needs a GPU of compute capability 9.0 \(Hopper\) or later"):
        train(override(recipe(), ["training.float8=true", "training.device=cpu"]), tmp_path)


def test_layers_multiply_in_float8_and_keep_their_weights() -> None:
    """Emulated: rounded as on a GPU, multiplied in float32."""
    plain, rounded = tiny.model(), tiny.model()
    names = [name for name, _ in rounded.named_parameters()]
    to_float8(rounded, emulate=True)
    assert [name for name, _ in rounded.named_parameters()] == names
    swapped = {type(part).__name__ for layer in layers(rounded) for part in layer.modules()}
    assert "Float8Linear" in swapped and type(rounded.text_head) is type(plain.text_head)
    batch = tiny.Numbers()(0)
    batch = batch.replace(masked=batch.writable)
    for kind, scored in plain(batch).scored.items():
        ours = rounded(batch).scored[kind].logits
        difference = (ours - scored.logits).norm() / scored.logits.norm()
        assert 0 < difference < 0.1


def test_a_run_in_float8_learns_and_returns_its_own_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.train.refuse_without_float8", lambda device: None)
    monkeypatch.setattr("unmask.training.train.to_float8", lambda module: to_float8(module, emulate=True))
    made = override(recipe(), ["training.float8=true", "training.steps=4"])
    done = train(made, tmp_path / "float8")
    whole = train(override(made, ["training.float8=false"]), tmp_path / "whole")
    assert {type(part) for part in done.modules()} == {type(part) for part in whole.modules()}
    one, other = load_file(tmp_path / "float8" / STATE), load_file(tmp_path / "whole" / STATE)
    assert one.keys() == other.keys() and not all(torch.equal(one[k], other[k]) for k in one)
    assert all(torch.equal(p, one[f"average.{n}"]) for n, p in done.named_parameters() if f"average.{n}" in one)


def test_a_model_without_layers_for_float8_is_named() -> None:
    with pytest.raises(ValueError, match="training.float8 works on linear layers .*, and Linear has none"):
        to_float8(nn.Linear(16, 16), emulate=True)


# -- on a GPU ---------------------------------------------------------------------------------------------------------

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
def test_float8_on_a_gpu(tmp_path: Path) -> None:
    for setting in ("true", "false"):
        made = override(recipe(bf16=True), [f"training.float8={setting}", "training.device=cuda"])
        train(made, tmp_path / setting)
    ours, theirs = ([row["code"] for row in line.rows(tmp_path / setting)] for setting in ("true", "false"))
    assert ours != theirs and ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moments_in_8_bits_on_a_gpu(tmp_path: Path) -> None:
    """There torchao compiles its step."""
    for bits in (8, 32):
        train(override(wide(bits), ["training.device=cuda"]), tmp_path / str(bits))
    full, small = ([row["square"] for row in line.rows(tmp_path / bits)] for bits in ("32", "8"))
    assert small != full and small == pytest.approx(full, rel=0.03)
