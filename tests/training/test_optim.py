"""The optimiser: learning rate, averaged weights, clipping, and small steps in bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unmask.recipe import Optim
from unmask.training.optim import Masters, rate

torch.set_num_threads(1)


def test_learning_rate() -> None:
    optim = Optim(lr=2.0, warmup=10, decay_from=0.5, floor=0.1)
    curve = [rate(optim, step, 100) for step in range(100)]
    assert curve[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert curve[10:51] == pytest.approx([2.0] * 41)
    assert curve[75] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert all(a > b for a, b in zip(curve[50:], curve[51:], strict=False))
    assert curve[99] == pytest.approx(0.2, rel=0.01) and rate(optim, 100, 100) == pytest.approx(0.2)
    assert [rate(Optim(lr=1.0, warmup=0, decay_from=1.0), s, 9) for s in (0, 8)] == [1.0, 1.0]


def linear(bias: float = 0.0) -> nn.Linear:
    made = nn.Linear(2, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, -2.0]]))
        made.bias.fill_(bias)
    return made


def test_average_follows_the_weights() -> None:
    module = linear()
    masters = Masters(module, Optim(ema=0.9), lambda name: True)
    expected = module.weight.detach().clone()
    for number in range(40):
        module(torch.tensor([1.0, 2.0])).sum().backward()
        masters.step(0.1, number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(masters.averaged()["weight"], expected)
    assert not torch.allclose(masters.averaged()["weight"], module.weight)


def test_without_an_average_the_weights_are_shipped() -> None:
    module = linear()
    masters = Masters(module, Optim(ema=0.0), lambda name: name == "weight")
    module(torch.tensor([1.0, 2.0])).sum().backward()
    masters.step(0.1, 0)
    assert torch.equal(masters.averaged()["weight"], module.weight)
    assert masters.averaged()["bias"].item() == 0.0 and not module.bias.requires_grad


def test_gradients_are_clipped_and_their_norm_is_returned() -> None:
    """AdamW alone hides a scale; with the second moment's beta at 1 - tiny it would not. The norm is that before clipping."""
    module = linear()
    masters = Masters(module, Optim(clip=1.0), lambda name: True)
    (module(torch.tensor([300.0, 400.0])) * 2).sum().backward()
    seen: list[Tensor] = []
    step = masters.adam.step
    masters.adam.step = lambda: seen.extend(m.grad.clone() for m in masters.master) or step()  # type: ignore[union-attr]
    norm = masters.step(0.1, 0)
    assert norm == pytest.approx(math.sqrt(600**2 + 800**2 + 2**2), rel=1e-5)
    assert float(torch.cat([g.flatten() for g in seen]).norm()) == pytest.approx(1.0, rel=1e-4)


def test_small_steps_are_not_lost_in_bf16() -> None:
    """The reason for float32 masters: a thousandth of a bfloat16 step, a thousand times, must arrive."""
    module = linear().to(torch.bfloat16)
    masters = Masters(module, Optim(ema=0.0), lambda name: True)
    for number in range(300):
        module(torch.tensor([1.0, 1.0], dtype=torch.bfloat16)).sum().backward()
        masters.step(1e-4, number)
    assert float(module.weight.detach()[0, 0]) == pytest.approx(1 - 300 * 1e-4, abs=0.005)


def test_a_parameter_without_gradient_stays() -> None:
    module = linear(0.5)
    masters = Masters(module, Optim(), lambda name: True)
    (module.weight.sum() * 1.0).backward()
    masters.step(0.1, 0)
    assert module.bias.item() == 0.5 and module.weight[0, 0].item() != 1.0
