"""Cross-entropy in chunks: the same loss and gradients as from all logits at once, without ever holding them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives.cross_entropy import cross_entropy
from unmask.objectives.masked import Masked
from unmask.protocols import Headless
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Head, Prediction, Scored

CONFIG = dataclasses.replace(SIZES["tiny"], vision=None, vocab_size=200)
SPANS = (
    Span(name="answer", kind=Kind.TEXT, start=0, stop=40, writable=True),
    Span(name="image", kind=Kind.CODE, start=40, stop=56, grid=(4, 4), fold=2, writable=True),
)


def made() -> Elastic:
    model = Elastic(CONFIG, mask_id=1)
    init(model, generator("model"))
    return model


def batch(spans: tuple[Span, ...] = SPANS) -> Batch:
    rng, length = generator("ids"), spans[-1].stop
    return collate(
        [
            Sequence(
                ids=torch.randint(0, 64, (length,), generator=rng),
                masked=torch.zeros(length, dtype=torch.bool),
                spans=spans,
            )
            for _ in range(3)
        ],
        range(3),
    )


class WithLogits(nn.Module):
    """A model that cannot leave its heads to the caller."""

    def __init__(self, of: Elastic) -> None:
        super().__init__()
        self.of, self.mask_id = of, of.mask_id

    def forward(self, batch: Batch, *, predict: Tensor | None = None) -> Prediction:
        return self.of(batch, predict=predict)


def scored(rows: int, size: int = 300, dtype: torch.dtype = torch.float32) -> tuple[Scored, Tensor, nn.Linear]:
    rng = generator("scored")
    layer = nn.Linear(8, size, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(size, 8, generator=rng))
    hidden = torch.randn(rows, 8, generator=rng).to(dtype).requires_grad_()
    ids = torch.randint(0, size, (rows,), generator=rng)
    return Scored(at=torch.arange(rows), hidden=hidden, head=Head(layer=layer, size=size)), ids, layer


@pytest.mark.parametrize("rows", [0, 1, 16, 47, 48, 100])
def test_chunks_equal_the_whole(rows: int) -> None:
    found, ids, layer = scored(rows)
    assert found.hidden is not None
    weight = torch.rand(rows, generator=generator("weight"))
    each = cross_entropy(found, ids, largest=48 * 300)
    wanted = F.cross_entropy(layer(found.hidden), ids, reduction="none")
    torch.testing.assert_close(each, wanted, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad((each * weight).sum(), [found.hidden, layer.weight])
    theirs = torch.autograd.grad((wanted * weight).sum(), [found.hidden, layer.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_more_logits_exist_than_allowed() -> None:
    """In the forward and the backward pass, whatever is kept between them."""
    found, ids, layer = scored(500)
    seen: list[int] = []
    layer.register_forward_hook(lambda module, given, out: seen.append(out.numel()))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = cross_entropy(found, ids, largest=64 * 300).sum()
    loss.backward()
    assert max(seen) == 64 * 300 and len(seen) == 2 * 8
    assert max(kept, default=0) < 64 * 300
    seen.clear()
    cross_entropy(found, ids).sum().backward()
    assert len(seen) == 1  # few tokens are not computed twice


def test_bfloat16_stays_bfloat16() -> None:
    found, ids, layer = scored(100, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    each = cross_entropy(found, ids, largest=16 * 300)
    assert each.dtype == torch.float32 and set(seen) == {torch.bfloat16}


def test_neither_logits_nor_a_head() -> None:
    with pytest.raises(ValueError, match="no logits, so no cross-entropy; give their kind an objective"):
        cross_entropy(Scored(at=torch.arange(2)), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("largest", [2**25, 16 * 64])
@pytest.mark.parametrize("complementary", [False, True])
def test_the_objective_equals_that_of_a_model_with_logits(
    largest: int, complementary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.objectives.cross_entropy.LARGEST", largest)
    model, objective = made(), Masked(complementary=complementary)
    assert isinstance(model, Headless) and not isinstance(WithLogits(model), Headless)
    found = []
    for of in (model, WithLogits(model)):
        loss = objective(of, batch(), generator("noise"))
        model.zero_grad()
        loss.total.backward()
        found.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (ours, a), (theirs, b) = found
    assert ours.counts == theirs.counts and ours.terms.keys() == {"text", "code"} and len(a) == len(b)
    exact = {"rtol": 0.0, "atol": 0.0} if largest == 2**25 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(ours.total, theirs.total, **exact)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, **exact)


def test_hidden_states_and_head_make_the_logits() -> None:
    model, some = made(), batch()
    with torch.no_grad():
        whole, parts = model(some, predict=some.writable), model.hidden_states(some, predict=some.writable)
    for kind in (Kind.TEXT, Kind.CODE):
        found = parts.scored[kind]
        assert found.logits is None and found.head is not None and found.hidden is not None
        assert torch.equal(found.at, whole.scored[kind].at)
        torch.testing.assert_close(found.head(found.hidden), whole.logits(kind))
        assert found.head.size == whole.logits(kind).shape[1]
