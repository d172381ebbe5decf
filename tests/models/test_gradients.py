"""Norm, rotary embedding and attention with hand-written gradients: the plain formulas bit for bit, autograd's gradients to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.models import attention, blocks, rope
from unmask.models.attention import plain
from unmask.models.blocks import rms_norm
from unmask.models.gradients import softmax, worthwhile
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
    for module in (attention, blocks, rope):
        monkeypatch.setattr(module, "wanted" if module is rope else "worthwhile", lambda x: False)


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


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 0.0), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool, dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows one is padded, and what is padded does not count in the loss. In float32 every bit is autograd's."""
    q, k, v = (
        drawn(2, 3, 9, 16, dtype=dtype),
        drawn(2, 3, 11, 16, dtype=dtype),
        drawn(2, 3, 11, 16, dtype=dtype).flip(-1),
    )
    length = torch.tensor([11, 7])
    attend = (torch.arange(11) < length[:, None])[:, None, None].expand(-1, 1, 9, -1) if masked else None
    real = (torch.arange(9) < length[:, None])[:, None, :, None] if masked else torch.ones((), dtype=torch.bool)

    def work(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, attend).where(real, 0)

    got, own = gradients(work, q, k, v)
    without(monkeypatch)
    wanted, by_autograd = gradients(work, q, k, v)
    assert torch.equal(got, wanted)
    alike(own, by_autograd, apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_softmax_rounds_once(dtype: torch.dtype) -> None:
    score = 3 * drawn(5, 223, dtype=dtype)
    found, wanted = softmax(score), score.double().softmax(-1)
    assert found.dtype == dtype
    apart = torch.finfo(dtype).eps / 2 + 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.double(), wanted, rtol=apart, atol=torch.finfo(dtype).tiny)


def test_attention_of_frozen_keys_or_queries() -> None:
    q, k, v = (drawn(1, 2, n, 8) for n in (3, 4, 4))
    for chosen in ((0,), (1,), (0, 2), (1, 2)):
        leaves = [x.clone().requires_grad_(i in chosen) for i, x in enumerate((q, k, v))]
        plain(*leaves, None).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i in chosen for i in range(3)]


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
