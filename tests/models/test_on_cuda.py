"""The formulas that CUDA computes in fewer kernels, on a pretended card: the same values, and how many operations they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unmask.models.blocks import rms_norm
from unmask.models.rope import rope_table, rotate
from unmask.rng import generator, rows
from unmask.sampling.token_sampler import gumbel
from unmask.sequence import Kind, Sequence, Span, collate

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
