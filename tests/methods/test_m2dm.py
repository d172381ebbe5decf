"""M2DM against its derived arrays: the chain, importance, the spindle, the codebook and an exact world; and the laws of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.methods.m2dm import (
    Chain,
    CodeImportance,
    ImportantFirst,
    PriorityMasking,
    centred,
    consistent,
    measured,
    orthogonality,
    spindle,
)
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Progress, Proposal

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("m2dm")


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    names = ("alpha", "beta", "gamma")
    known = {f"chain_{name}_bar" for name in names} | {f"chain_step_{name}" for name in names} | {"chain_product"}
    known |= {"codebook", "codebook_orthogonality", "importance", "importance_raw"}
    known |= {"spindle_keep", "spindle_lambda", "spindle_mean_keep"}
    known |= {"world_consistent", "world_f1", "world_f2", "world_p_key"}
    assert set(arrays) == known


def test_the_chain(arrays: dict[str, Tensor]) -> None:
    symbols = arrays["chain_product"].shape[-1] - 1
    chain = Chain(kept=arrays["chain_alpha_bar"], masked=arrays["chain_gamma_bar"], symbols=symbols)
    assert torch.allclose(chain.replaced, arrays["chain_beta_bar"], atol=1e-12)
    for found, name in zip(chain.steps(), ("alpha", "beta", "gamma"), strict=True):
        assert torch.allclose(found, arrays[f"chain_step_{name}"], atol=1e-12)
    product = chain.by_steps()
    assert torch.allclose(product, arrays["chain_product"], atol=1e-12)
    assert torch.allclose(product.sum(1), torch.ones(()).double())
    for step in range(1, len(chain.kept)):
        assert torch.allclose(chain.at_once(step), product[step - 1], atol=1e-12)
    ends = {"kept": float(chain.kept[-1]), "masked": float(chain.masked[-1])}
    straight = Chain.straight(len(chain.kept) - 1, symbols, **ends)
    assert torch.allclose(straight.kept, chain.kept) and torch.allclose(straight.masked, chain.masked)


def test_importance_and_spindle(arrays: dict[str, Tensor]) -> None:
    raw = arrays["importance_raw"]
    found = centred(raw, torch.ones_like(raw, dtype=torch.bool))
    assert torch.allclose(found, arrays["importance"], atol=1e-12)
    steps, strength = len(arrays["spindle_keep"]) - 1, float(arrays["spindle_lambda"])
    t = (torch.arange(steps + 1, dtype=torch.float64) / steps)[:, None, None]
    kept = spindle(t, found, strength)
    assert torch.allclose(kept, arrays["spindle_keep"], atol=1e-12)
    assert torch.allclose(kept.mean(-1), arrays["spindle_mean_keep"], atol=1e-12)


def test_the_spindle_falls_and_keeps_the_important_longer(arrays: dict[str, Tensor]) -> None:
    f = arrays["importance"]
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None, None]
    kept = spindle(t, f, 1 / math.pi / float(f.abs().max()))
    assert (kept.diff(dim=0) <= 1e-12).all()
    by_importance = kept.gather(2, f.argsort(1).expand(len(t), -1, -1))
    assert (by_importance.diff(dim=2) >= 0).all()


def test_the_codebook(arrays: dict[str, Tensor]) -> None:
    assert torch.allclose(orthogonality(arrays["codebook"]), arrays["codebook_orthogonality"], rtol=1e-12)
    assert float(orthogonality(3 * torch.eye(4))) == 0


def test_the_exact_world(arrays: dict[str, Tensor]) -> None:
    key = torch.arange(len(arrays["world_p_key"]))
    states = torch.stack([key, arrays["world_f1"], arrays["world_f2"]], 1)
    orders = (
        [(0, 1, 2)],
        [(0,), (1, 2)],
        [(1, 2), (0,)],
        [(0, 1), (2,)],
        [(1,), (0, 2)],
        [(0,), (1,), (2,)],
        [(1,), (2,), (0,)],
    )
    found = [consistent(states, arrays["world_p_key"], order) for order in orders]
    wanted = arrays["world_consistent"]
    assert torch.allclose(torch.tensor(found).double(), wanted, atol=1e-12)
    with pytest.raises(ValueError, match="each of 3 tokens once"):
        consistent(states, arrays["world_p_key"], [(0,), (1,)])


def batch_of(codes: Tensor) -> Batch:
    n = codes.shape[1]
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
        Span(name="motion", kind=Kind.CODE, start=1, stop=1 + n, grid=(1, n), writable=True),
    )
    ids = torch.cat([torch.zeros(len(codes), 1, dtype=torch.long), codes], 1)
    masked = torch.arange(1 + n) > 0
    return collate([Sequence(ids=row, masked=masked, spans=spans) for row in ids], range(len(ids)))


TABLE = CodeImportance(tables={Kind.CODE: torch.tensor([0.5, 1.0, 4.0])})


def test_important_tokens_are_masked_less_often_before_the_end() -> None:
    batch = batch_of(torch.tensor([0, 1, 2]).repeat(3000, 4))
    process = PriorityMasking(importance=TABLE, strength=0.3)
    noisy = process.corrupt(batch, torch.full((3000,), 0.5), generator("m2dm"))
    rate = [float(noisy.masked[batch.kind == Kind.CODE].view(-1, 3)[:, i].float().mean()) for i in range(3)]
    assert rate[0] > rate[1] > rate[2] and sum(rate) / 3 == pytest.approx(0.5, abs=0.02)
    assert noisy.weight is not None
    assert torch.allclose(noisy.weight[0, 1:4], torch.tensor(rate), atol=0.03) and noisy.target is None


def test_replaced_tokens_are_scored_too() -> None:
    batch = batch_of(torch.tensor([0, 1, 2]).repeat(2000, 2))
    process = PriorityMasking(importance=TABLE, strength=0.0, replaced=0.5, sizes={Kind.CODE: 3})
    noisy = process.corrupt(batch, torch.full((2000,), 0.8), generator("replace"))
    assert noisy.target is not None and noisy.clean is not None
    changed = ~noisy.masked & (noisy.ids != noisy.clean)
    assert not (changed & ~noisy.target).any() and int(noisy.ids[:, 1:].max()) == 2
    share = float(changed[:, 1:].float().mean())
    assert share == pytest.approx(0.8 * 0.5 * 2 / 3, abs=0.02)
    assert float(noisy.masked[:, 1:].float().mean()) == pytest.approx(0.4, abs=0.02)


def test_important_candidates_are_taken_first() -> None:
    batch = batch_of(torch.tensor([[0, 2, 1, 2]]))
    ids = batch.ids
    score = torch.tensor([[0.0, -1.0, -2.0, -0.1, -0.5]])
    proposal = Proposal(ids=ids, score=score)
    progress = Progress(number=torch.zeros(1).long(), of=torch.ones(1).long(), length=5)
    taken = [
        ImportantFirst(importance=TABLE, sure=sure)(batch, proposal, batch.masked, torch.tensor([count]), progress)
        for sure, count in ((0.0, 1), (0.0, 2), (1.0, 1), (100.0, 1))
    ]
    assert [t.unmask[0].nonzero()[:, 0].tolist() for t in taken] == [[2], [2, 4], [4], [3]]


def test_measured_importance_is_the_mean_error_of_a_code() -> None:
    found = measured(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[0, 1], [0, 1]]), 3)
    assert found.tolist() == [3.0, 5.0, 4.0]


def test_rows_that_are_alike_have_no_importance() -> None:
    assert centred(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)).eq(0).all()
    one = centred(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    assert one[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"replaced is in 0..1"):
        PriorityMasking(importance=TABLE, replaced=1.0)
