"""The formulas that CUDA computes in fewer kernels, on a pretended card: the same values, and how many operations they take."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unmask.models.blocks import fuse, rms_norm
from unmask.models.elastic import Elastic, init
from unmask.models.gradients import rows_at
from unmask.models.rope import rope_table, rotate, rotate_fused
from unmask.models.sizes import SIZES
from unmask.recipe import Optim
from unmask.rng import generator, rows
from unmask.sampling.token_sampler import gumbel
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.training.device import many_shapes, move
from unmask.training.optim import Masters

from ..objectives.test_joining import made as joined_model
from ..objectives.test_passes import STEP, masking, together
from ..pretend import Card, on_card, pretended

VIEWS = ("view", "slice", "split", "alias", "t", "expand")


@pytest.fixture
def card() -> Iterator[Card]:
    with pretended() as made:
        yield made


class Kernels(TorchDispatchMode):
    """Names of the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if (name := func.overloadpacket.__name__) not in VIEWS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def ran(work: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    with torch.no_grad(), Kernels() as kernels:
        found = work()
    return found, kernels.found


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-7), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_positions_are_rotated_in_three_operations(dtype: torch.dtype, most: float, card: Card) -> None:
    """Up to one rounding of the type, between numbers of about one."""
    x_BHTK = torch.randn(2, 3, 37, 16, generator=generator("rotated")).to(dtype)
    table = rope_table(torch.arange(37).expand(2, -1), 16, 5e5)
    wanted = rotate(x_BHTK.double(), (table[0].double(), table[1].double()))
    x, there = x_BHTK.to("cuda"), (table[0].to("cuda"), table[1].to("cuda"))
    found, kernels = ran(lambda: rotate(x, there))
    assert on_card(found) and found.dtype == dtype
    assert ((found.cpu().double() - wanted).abs() <= most * wanted.abs().clamp(min=1)).all()
    assert [name for name in kernels if not name.startswith("empty")] == ["mul", "addcmul", "addcmul"]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 4e-7), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_a_norm_is_rounded_once(dtype: torch.dtype, most: float, card: Card) -> None:
    x_NW, weight_W = (torch.randn(*shape, generator=generator("norm")).to(dtype) for shape in ((50, 64), (64,)))
    scale = (x_NW.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    wanted = x_NW.double() * scale * weight_W.double()
    x, weight = x_NW.to("cuda"), weight_W.to("cuda")
    with torch.no_grad():
        found = rms_norm(x, weight, 1e-5)
    assert on_card(found) and found.dtype == dtype
    assert ((found.cpu().double() - wanted).abs() <= most * wanted.abs() + 1e-7).all()


def test_noise_has_the_random_numbers_of_the_cpu(card: Card) -> None:
    span = Span(name="answer", kind=Kind.TEXT, start=0, stop=3, writable=True)
    row = Sequence(ids=torch.zeros(3, dtype=torch.long), masked=torch.ones(3, dtype=torch.bool), spans=(span,))
    batch = collate([row, row], [5, 6])
    given = ((3, 2), (11,), torch.float32, (0.8, 0.5))
    here = gumbel(rows(batch, "draw"), *given, torch.device("cpu"))
    there = gumbel(rows(batch, "draw"), *given, torch.device("cuda", 0))
    assert on_card(there) and not on_card(here) and torch.equal(there.cpu(), here)
    assert here.shape == (5, 11) and not torch.equal(here[:2], here[3:])


@pytest.mark.slow
@torch.no_grad()
def test_compiled_rotations_and_activations_give_the_same_values() -> None:
    """The compiler of a CPU stands for that of a card; without it there is nothing to test."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    net = Elastic(SIZES["tiny"], mask_id=7).eval()
    init(net, generator("fused"))
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=5),
        Span(name="image", kind=Kind.CODE, start=5, stop=21, grid=(4, 4), fold=2, writable=True),
    )
    row = Sequence(ids=torch.full((21,), 9), masked=torch.arange(21) >= 5, spans=spans)
    batch = collate([row], [0])
    wanted = net(batch).logits(Kind.CODE)
    used: list[int] = []
    fuse(net)
    with mock.patch("unmask.models.blocks.rotate_fused", lambda *given: used.append(1) or rotate_fused(*given)):
        found = net(batch).logits(Kind.CODE)
    assert torch.allclose(found, wanted, atol=1e-5) and len(used) >= SIZES["tiny"].layers
    fuse(net, False)
    assert torch.equal(net(batch).logits(Kind.CODE), wanted)


def _gradients(device: str) -> tuple[Tensor, Tensor]:
    """Of rotated keys, and of rows that many positions name."""
    x_BHTK = torch.randn(2, 3, 9, 16, generator=generator("keys"))
    weight = torch.randn(2, 3, 9, 16, generator=generator("weight")).to(device)
    table = rope_table(torch.arange(9).expand(2, -1), 16, 5e5)
    x = x_BHTK.to(device).requires_grad_()
    (rotate(x, (table[0].to(device), table[1].to(device))) * weight).sum().backward()
    rows_RW = torch.randn(5, 4, generator=generator("rows")).to(device).requires_grad_()
    named = torch.tensor([0] * 30 + [3, 1, 3]).to(device)
    (rows_at(rows_RW, named) * torch.randn(33, 4, generator=generator("more")).to(device)).sum().backward()
    assert x.grad is not None and rows_RW.grad is not None
    return x.grad.cpu(), rows_RW.grad.cpu()


def test_gradients_of_rotations_and_of_named_rows(card: Card) -> None:
    for found, wanted in zip(_gradients("cuda"), _gradients("cpu"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_step_on_masked_passes_is_that_of_a_cpu(card: Card) -> None:
    """Loss, gradient norm and weights of one update; nothing in it mixes devices."""
    found = {}
    for device in ("cpu", "cuda"):
        model, target = joined_model(), torch.device(device)
        masters = Masters(model, Optim(), lambda name: True, device=device)
        masters.sync()
        with many_shapes(target):
            loss = together()(model, move(masking()(STEP), target), generator("unused"))
            masters.backward(loss.total, 1)
        norm = masters.step(1e-3, 0)
        found[device] = (float(loss.total.detach()), norm, [m.detach().cpu() for m in masters.master])
    assert found["cuda"][:2] == pytest.approx(found["cpu"][:2], rel=1e-4)
    for a, b in zip(found["cuda"][2], found["cpu"][2], strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-3, atol=2.1e-3
        )  # Adam's first step is the sign of a gradient: a rounded zero may flip
