"""The laws of objectives over batches of tokens: zero at a perfect model, finite everywhere, equal to brute force in a small world."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask import protocols
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.models.fake import FakeDenoiser
from unmask.objectives.masked import InverseTime, Masked, Plain
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss, Prediction, Reuse, Scored

from .instances import ALL_OBJECTIVES, OBJECTIVES, fits, name_of, tiny

WORDS, SIZES = 3, {Kind.TEXT: 3, Kind.CODE: 5}
every_objective = pytest.mark.parametrize("objective", ALL_OBJECTIVES, ids=name_of)


class World(nn.Module):
    """A model to train whose logits are the truth (``right``), or the fake denoiser's; ``scale`` wide."""

    mask_id = 2

    def __init__(self, *, right: bool, scale: float) -> None:
        super().__init__()
        self.right, self.scale = right, scale
        self.fake = FakeDenoiser(sizes=SIZES, spread=scale)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        found = self.fake(batch, predict=predict)
        if not self.right:
            return found.with_logits({kind: found.logits(kind) + self.unused for kind in found.scored})
        assert batch.clean is not None
        truth = batch.clean.flatten()
        right = {k: nn.functional.one_hot(truth[s.at], SIZES[k]) * self.scale for k, s in found.scored.items()}
        return found.with_logits({kind: logits + self.unused for kind, logits in right.items()})


def batch_of(rows: int = 4, words: int = 4, codes: int = 4) -> Batch:
    """Given text, writable text and writable codes, with random ids."""
    found = []
    for n in range(rows):
        rng = generator("rows", n)
        ids = torch.cat(
            [torch.randint(0, WORDS, (1 + words,), generator=rng), torch.randint(0, 5, (codes,), generator=rng)]
        )
        spans = [
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
            Span(name="answer", kind=Kind.TEXT, start=1, stop=1 + words, writable=True),
        ]
        if codes:
            spans.append(
                Span(name="image", kind=Kind.CODE, start=1 + words, stop=len(ids), grid=(1, codes), writable=True)
            )
        found.append(Sequence(ids=ids, masked=torch.zeros(len(ids), dtype=torch.bool), spans=tuple(spans)))
    return collate(found, range(rows))


def losses(objective: Any, model: nn.Module, batch: Batch, key: object = "loss") -> list[Loss]:
    found = objective(model, batch, generator(key))
    return [found] if isinstance(found, Loss) else list(found)


@every_objective
def test_it_is_zero_at_a_perfect_model_and_positive_elsewhere(objective: Any) -> None:
    assert fits(objective, protocols.Objective)
    for loss in losses(objective, World(right=True, scale=80.0), batch_of()):
        assert loss.total.item() == pytest.approx(0.0, abs=1e-6)
    assert all(loss.total.item() > 0 for loss in losses(objective, World(right=False, scale=1.0), batch_of()))


@every_objective
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_it_is_finite_and_so_are_its_gradients(objective: Any, scale: float) -> None:
    model = World(right=False, scale=scale)
    for loss in losses(objective, model, batch_of()):
        loss.total.backward()
        assert loss.total.isfinite() and all(term.isfinite() for term in loss.terms.values())
        assert model.unused.grad is not None and model.unused.grad.isfinite().all()
        assert set(loss.counts) <= set(loss.terms) and all(count > 0 for count in loss.counts.values())


@every_objective
def test_a_batch_without_a_writable_token_has_a_loss_of_zero(objective: Any) -> None:
    batch = batch_of()
    nothing = batch.replace(writable=torch.zeros_like(batch.writable))
    for loss in losses(objective, World(right=False, scale=1.0), nothing):
        assert loss.total.item() == 0.0 and loss.total.requires_grad


@every_objective
def test_the_same_generator_gives_the_same_loss(objective: Any) -> None:
    model, batch = World(right=False, scale=1.0), batch_of()
    one, same, other = (losses(objective, model, batch, key) for key in ("a", "a", "b"))
    assert [x.total.item() for x in one] == [x.total.item() for x in same] != [x.total.item() for x in other]


@every_objective
def test_the_real_model_learns_from_it(objective: Any) -> None:
    model = tiny()
    for loss in losses(objective, model, batch_of(codes=0)):
        loss.total.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def masks(words: int) -> Iterator[tuple[int, ...]]:
    return (m for m in itertools.product((0, 1), repeat=words) if any(m))


@pytest.mark.parametrize("weight", [Plain(), InverseTime()], ids=name_of)
def test_a_loss_is_that_of_brute_force(weight: Any) -> None:
    """Three words, every mask, probabilities one by one: -log p(true) of masked tokens, averaged or weighed by 1/t."""
    model, batch = World(right=False, scale=1.0), batch_of(rows=1, words=3, codes=0)
    objective = Masked(weight=weight)
    for mask in masks(3):
        masked = torch.tensor([[0, *mask]]).bool()
        noisy = batch.replace(masked=masked, weight=torch.full_like(masked, 0.4, dtype=torch.float))
        each = []
        for token in masked[0].nonzero().flatten().tolist():
            only = torch.zeros_like(masked)
            only[0, token] = True
            p = model(noisy, predict=only).logits(Kind.TEXT)[0].double().softmax(0)
            each.append(-p[batch.ids[0, token]].log().item())
        wanted = sum(each) / len(each) if isinstance(weight, Plain) else sum(each) / 0.4 / 3
        assert objective.of(model, noisy).total.item() == pytest.approx(wanted, rel=1e-5)


def test_the_weighted_loss_bounds_the_likelihood() -> None:
    """The mean of the 1/t loss over many draws is the sum over masks of their probability times their loss, by enumeration."""
    model, batch = World(right=False, scale=1.0), batch_of(rows=1, words=3, codes=0)
    wanted = 0.0
    for mask in masks(3):
        masked, n = torch.tensor([[0, *mask]]).bool(), sum(mask)
        loss = Masked().of(model, batch.replace(masked=masked, weight=torch.ones(1, 4)))
        each = loss.total.item() * n
        # The integral of t^(n-1) (1-t)^(3-n) over 0..1, a beta function.
        wanted += (
            each
            * float(torch.exp(torch.lgamma(torch.tensor([n, 4.0 - n])).sum() - torch.lgamma(torch.tensor(3.0 + 1))))
            / 3
        )
    many = batch_of(rows=1, words=3, codes=0)
    many = collate([Sequence(ids=many.ids[0], masked=many.masked[0], spans=many.span_table[0])] * 8_000, range(8_000))
    objective = Masked(corruption=Absorbing(otherwise=Uniform()), weight=InverseTime())
    found = objective(model, many, generator("bound")).total.item()
    assert found == pytest.approx(wanted, rel=0.05)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A process that replaces ids and marks tokens to score, masked or not."""

    target: tuple[int, ...]

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return torch.full(batch.ids.shape, 0.5)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        target = torch.zeros_like(clean.masked)
        target[:, list(self.target)] = True
        ids = torch.where(clean.writable, torch.randint(0, WORDS, clean.ids.shape, generator=rng), clean.ids)
        return clean.replace(ids=ids, time=time, weight=torch.ones_like(time), target=target)


def test_target_says_what_is_scored() -> None:
    """Two of three words are scored although nothing is masked; the truth is ``clean``, not the replaced ids."""
    seen: list[Tensor] = []

    class Watch(World):
        def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
            assert predict is not None
            seen.append(predict)
            return super().forward(batch, predict=predict, reuse=reuse)

    process = Marks(target=(2, 3))
    assert fits(process, protocols.Corruption)
    objective = Masked(corruption=process)
    loss = objective(Watch(right=True, scale=80.0), batch_of(rows=2, words=3, codes=0), generator("target"))
    assert loss.total.item() == pytest.approx(0.0, abs=1e-6) and loss.counts == {"text": 4}
    assert seen[0].nonzero()[:, 1].tolist() == [2, 3, 2, 3]


def test_a_kind_without_logits_is_named() -> None:
    class Silent(World):
        def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
            found = super().forward(batch, predict=predict, reuse=reuse)
            return dataclasses.replace(found, scored={7: Scored(at=torch.tensor([1]), hidden=torch.ones(1, 2))})

    with pytest.raises(ValueError, match="tokens of kind 7 have no logits"):
        OBJECTIVES[0](Silent(right=True, scale=1.0), batch_of(), generator("silent"))


def test_scoring_given_tokens_is_finite() -> None:
    """Fault: 1/t weights divided by the tokens that could be masked, of which there were none."""
    batch = batch_of(rows=2, words=3, codes=0)
    given = batch.replace(writable=torch.zeros_like(batch.writable))
    objective = Masked(corruption=Marks(target=(0,)), weight=InverseTime())
    loss = objective(World(right=False, scale=1.0), given, generator("given"))
    assert 0 < loss.total.item() < 10
