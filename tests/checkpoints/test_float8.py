"""Weights in float8: what is rounded, that a card's product has the same operands, and what is refused by name."""

from __future__ import annotations

import copy
import functools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.float8 import Float8, Float8Weight, in_float8
from unmask.checkpoints.quantise import restored
from unmask.checkpoints.stream import CheckpointError
from unmask.models.blocks import fuse
from unmask.models.linear import Linear, side_by_side
from unmask.rng import generator

from ..pretend import pretended

ROUNDING = 2**-4  # of e4m3: three bits behind the first


def numbers(*shape: int, name: str = "float8") -> torch.Tensor:
    return torch.randn(*shape, generator=generator(name))


def layer(rows: int = 48, columns: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Linear, torch.Tensor]:
    """A quantised layer and the weight that it was made of."""
    made, weight = Linear(columns, rows, bias=False), numbers(rows, columns).to(dtype)
    made.weight = nn.Parameter(Float8()(weight, None), requires_grad=False)
    return made, weight


def test_each_row_has_its_own_scale() -> None:
    x = numbers(5, 32) * torch.tensor([1e-4, 1.0, 1e4, 0.0, 3.0])[:, None]
    rounded, scale = in_float8(x)
    assert rounded.dtype == torch.float8_e4m3fn and scale.shape == (5, 1)
    error = (rounded.float() * scale - x).abs()
    assert (error <= ROUNDING * x.abs() + 2**-10 * x.abs().amax(1, keepdim=True)).all() and not error[3].any()


@torch.no_grad()
def test_the_product_is_that_of_the_rounded_numbers() -> None:
    made, weight = layer()
    x = numbers(2, 7, 32, name="input")
    rows, scale = in_float8(x.flatten(0, 1))
    wanted = (rows.float() * scale) @ restored(made.weight).t()
    assert torch.allclose(made(x).flatten(0, 1), wanted, atol=1e-5)
    error = (made(x) - F.linear(x, weight)).norm() / F.linear(x, weight).norm()
    assert 0.005 < error < 0.05
    bias = numbers(48, name="bias")
    assert torch.allclose(F.linear(x, made.weight, bias), made(x) + bias, atol=1e-6)


@torch.no_grad()
def test_a_card_multiplies_the_same_numbers() -> None:
    made, _ = layer(dtype=torch.bfloat16)
    x = numbers(7, 32, name="input").to(torch.bfloat16)
    wanted = made(x).float()
    with pretended():
        moved = made.to("cuda")
        assert isinstance(moved.weight, Float8Weight)
        found = moved(x.to("cuda")).cpu().float()
    assert torch.allclose(found, wanted, rtol=2**-7, atol=2**-7)


@torch.no_grad()
def test_layers_that_read_the_same_share_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = []

    def counted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded.append(x)
        return in_float8(x)

    monkeypatch.setattr("unmask.checkpoints.float8.in_float8", counted)
    (first, _), (second, _), x = layer(), layer(16), numbers(7, 32, name="input")
    rounded.clear()
    a, b = side_by_side(x, (first, second))
    assert len(rounded) == 1 and a.shape == (7, 48) and b.shape == (7, 16)
    x.mul_(2)
    assert torch.allclose(first(x), 2 * a) and len(rounded) == 2


def test_a_weight_is_copied_and_moved_but_not_read() -> None:
    made, _ = layer()
    again = copy.deepcopy(made)
    assert torch.equal(restored(again.weight), restored(made.weight)) and "Float8Weight" in repr(made.weight)
    assert made.to(torch.bfloat16).weight.dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="dequantize"):
        _ = again.weight + 1


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="40 x 32 cannot be quantised to float8.*16.*int8"):
        Float8()(numbers(40, 32), None)
    with pytest.raises(CheckpointError, match="meta"):
        Float8()(numbers(48, 32).to("meta"), None)
    with pretended():
        with pytest.raises(CheckpointError, match="bfloat16.*float32"):
            Float8()(numbers(48, 32).to("cuda"), None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
        with pytest.raises(CheckpointError, match="9.0.*pretended card has 8.6"):
            Float8()(numbers(48, 32).to("cuda").to(torch.bfloat16), None)


def test_the_embedded_model_draws_in_float8() -> None:
    model = unmask.load("mini", storage=WeightStorage(quantise={"gen": Float8(), "und": Float8()}))
    assert isinstance(model.parts.net.blocks[0].gen.q.weight, Float8Weight)
    drawn = model.generate("a red apple", plan=False, settings=["schedule.steps=3"])[0]
    assert drawn.image.size == (128, 128)


@torch.no_grad()
def test_the_rounding_of_inputs_may_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler's own code, which is another one on a card: what was traced is run."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    made, _ = layer()
    x = numbers(7, 32, name="input")
    wanted, rounded = made(x), []
    fuse(made)
    assert torch.allclose(made(x.clone()), wanted, atol=1e-6)
    with mock.patch("unmask.checkpoints.float8.in_float8", lambda given: rounded.append(given)):
        found = made(x.clone())  # compiled, so what stands here is not called
    assert torch.allclose(found, wanted, atol=1e-6) and not rounded
    fuse(made, False)
    assert torch.equal(made(x.clone()), wanted)
