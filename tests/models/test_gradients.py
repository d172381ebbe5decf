"""Norm and rotary embedding with hand-written gradients: the plain formulas bit for bit, and autograd's gradients to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.models import blocks, rope
from unmask.models.blocks import rms_norm
from unmask.models.gradients import worthwhile
from unmask.models.rope import rope_table, rotate

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def gradients(work: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in given]
    found = work(*leaves)
    weighed = drawn(*found.shape, dtype=found.dtype)
    return found.detach(), list(torch.autograd.grad((found * weighed).sum(), leaves))


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks, rope):
        monkeypatch.setattr(module, "worthwhile", lambda x: False)


def alike(got: list[Tensor], wanted: list[Tensor], apart: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert float((a.double() - b.double()).norm()) <= apart * float(b.double().norm())


@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
@pytest.mark.parametrize(("shape", "width"), [((3, 5, 24), None), ((7, 16), 40), ((1, 8), None), ((0, 8), None)])
def test_the_norm(
    shape: tuple[int, ...], width: int | None, dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = 3 * drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype)

    def work(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, 1e-5, width)

    got, own = gradients(work, x, weight)
    without(monkeypatch)
    wanted, by_autograd = gradients(work, x, weight)
    assert torch.equal(got, wanted)
    alike(own, by_autograd, apart)


@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
def test_the_rotation(dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rope_table(torch.arange(14).view(2, 7) * 5, 8, 500.0)

    def work(x: Tensor) -> Tensor:
        return rotate(x.transpose(1, 2), table)  # not contiguous, as in a layer

    x = drawn(2, 7, 3, 8, dtype=dtype)
    got, own = gradients(work, x)
    without(monkeypatch)
    wanted, by_autograd = gradients(work, x)
    assert torch.equal(got, wanted)
    alike(own, by_autograd, apart)


def test_a_frozen_weight_has_no_gradient() -> None:
    x, weight = drawn(3, 8).requires_grad_(), drawn(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_only_where_a_gradient_of_the_input_is_wanted() -> None:
    x = drawn(3, 8).requires_grad_()
    assert worthwhile(x) and not worthwhile(x.detach())
    with torch.no_grad():
        assert not worthwhile(x)
    weight = drawn(8).requires_grad_()
    rms_norm(x.detach(), weight, 1e-5).sum().backward()  # by autograd
    assert weight.grad is not None
