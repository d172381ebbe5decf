"""DiffDis against its derived arrays: queries, losses, and masked models as classifiers in an exact world; and the laws of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.signal import scaled_linear
from unmask.methods.diffdis import (
    DrawAndMatch,
    QueryHead,
    TextQuery,
    by_bounds,
    by_query,
    by_slot,
    contrast,
    cosines,
    denoised,
    every_mask,
    noised,
)
from unmask.models.fake import FakeDenoiser
from unmask.objectives.likelihood import Masks, estimates, masks
from unmask.objectives.masked import Masked
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse, Scored

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("diffdis")


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    known = {"t", "alpha_bar", "noise", "pred_noise", "pred_query", "query", "query_t"}
    known |= {"score.cosine", "score.temperature", "loss.noise", "loss.contrastive", "loss.contrastive_symmetric"}
    known |= {f"world.{n}" for n in ("joint", "elbo", "posterior", "slot_score", "single_mask_first_hidden")}
    assert set(arrays) == known


def test_queries_are_noised_and_found_again(arrays: dict[str, Tensor]) -> None:
    signal = scaled_linear()[arrays["t"]]
    assert torch.allclose(signal, arrays["alpha_bar"], rtol=1e-4)
    noisy = noised(arrays["query"], arrays["noise"], signal)
    assert torch.allclose(noisy, arrays["query_t"], atol=1e-5)
    found = denoised(noisy, arrays["pred_noise"], signal)
    assert torch.allclose(found, arrays["pred_query"], rtol=1e-3, atol=1e-4)
    assert torch.allclose(denoised(noisy, arrays["noise"], signal), arrays["query"], atol=1e-4)


def test_losses(arrays: dict[str, Tensor]) -> None:
    assert torch.allclose(nn.functional.mse_loss(arrays["pred_noise"], arrays["noise"]), arrays["loss.noise"])
    score = cosines(arrays["pred_query"], arrays["query"])
    assert torch.allclose(score, arrays["score.cosine"], atol=1e-5)
    temperature = float(arrays["score.temperature"])
    assert torch.allclose(contrast(score, temperature), arrays["loss.contrastive"], rtol=1e-4)
    both = contrast(score, temperature, both_ways=True)
    assert torch.allclose(both, arrays["loss.contrastive_symmetric"], rtol=1e-4)


# -- the exact world ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """ln p of every masked token given the visible ones, of a joint table [x1, x2, y]; rows are y, x1, x2."""

    joint: Tensor

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        asked, found = batch.masked if predict is None else predict, {}
        table = self.joint.permute(2, 0, 1)
        for at in asked.flatten().nonzero()[:, 0].tolist():
            row, place = divmod(at, batch.ids.shape[1])
            p = table
            for other in range(3):
                if other != place and not batch.masked[row, other]:
                    p = p.index_select(other, batch.ids[row, other][None])
            found[at] = p.sum([other for other in range(3) if other != place]).log()
        kinds = {kind: [at for at in found if int(batch.kind.flatten()[at]) == kind] for kind in (Kind.TEXT, Kind.CODE)}
        return Prediction(
            scored={
                kind: Scored(at=torch.tensor(ats), logits=torch.stack([found[at] for at in ats]))
                for kind, ats in kinds.items()
                if ats
            }
        )


def row(y: int, x1: int, x2: int) -> Sequence:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
        Span(name="image", kind=Kind.CODE, start=1, stop=3, grid=(1, 2), writable=True),
    )
    return Sequence(ids=torch.tensor([y, x1, x2]), masked=torch.tensor([False, True, True]), spans=spans)


def test_bounds_over_all_masks_are_exact(arrays: dict[str, Tensor]) -> None:
    joint, labels = arrays["world.joint"], arrays["world.joint"].shape[2]
    model = Exact(joint)
    for x1 in range(joint.shape[0]):
        for x2 in range(joint.shape[1]):
            rows = [row(y, x1, x2) for y in range(labels)]
            drawn, weights = every_mask(rows[0])
            found = by_bounds(model, rows, drawn, weights)
            assert torch.allclose(found, arrays["world.elbo"][x1, x2], atol=1e-10)
            posterior = (found + joint.sum((0, 1)).log()).softmax(0)
            assert torch.allclose(posterior, arrays["world.posterior"][x1, x2], atol=1e-10)
            first = Masks(masked=torch.tensor([[False, True, False]]), tokens=2)
            one = by_bounds(model, rows, first)
            assert torch.allclose(one, arrays["world.single_mask_first_hidden"][x1, x2], atol=1e-10)
            hidden = replace(rows[0], masked=torch.tensor([True, False, False]))
            slot = by_slot(model, hidden, [[y] for y in range(labels)])
            assert torch.allclose(slot.exp(), arrays["world.slot_score"][x1, x2], atol=1e-10)


def test_scores_do_not_depend_on_the_order_of_candidates() -> None:
    model, rows = FakeDenoiser(), [row(y, 1, 2) for y in (0, 1, 2, 1)]
    drawn = masks(rows[0], samples=6)
    found, back = by_bounds(model, rows, drawn), by_bounds(model, rows[::-1], drawn)
    assert torch.equal(found, back.flip(0)) and found[1] == found[3] != found[0]
    with pytest.raises(ValueError, match="same length"):
        by_bounds(model, [rows[0], replace(rows[0], ids=torch.zeros(4).long())], drawn)
    with pytest.raises(ValueError, match="must have 2 tokens"):
        by_slot(model, rows[0], [[1]])


def test_shared_masks_lower_the_variance_of_a_difference() -> None:
    """Exactly, over all masks, where labels change the pictures a little."""
    rng = generator("shared masks")
    joint = torch.rand(3, 3, 1, generator=rng).double() ** 2 * (1 + 0.3 * torch.rand(3, 3, 3, generator=rng))
    joint = joint / joint.sum()
    model, (drawn, weights) = Exact(joint), every_mask(row(0, 0, 0))
    shared, apart = [], []
    for x1 in range(joint.shape[0]):
        each = [estimates(model, row(y, x1, 0), drawn) for y in range(joint.shape[2])]
        for a, b in combinations(each, 2):
            shared.append(variance(a - b, weights))
            apart.append(variance(a, weights) + variance(b, weights))
    assert sum(shared) < 0.3 * sum(apart)


def variance(values: Tensor, weights: Tensor) -> float:
    return float(weights @ (values - weights @ values).square())


# -- training ----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A fake that draws, with the mean code of the picture as its features."""

    mask_id = 15

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeDenoiser(sizes={Kind.TEXT: 16, Kind.CODE: 16})
        self.scale = nn.Parameter(torch.ones(()))
        self.head = QueryHead(2, 6, inner=64)

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        found = self.fake(batch, predict=predict)
        return found.with_logits({kind: found.logits(kind) * self.scale for kind in found.scored})

    def features(self, batch: Batch) -> Tensor:
        return batch.ids[:, 1:].float() / 4


def batch_of() -> Batch:
    return collate([row(y, y, y + 1) for y in range(4)], range(4))


def test_a_weight_of_0_is_drawing_alone() -> None:
    net, queries = Net(), TextQuery.random(16, 6, generator("q"))
    alone = Masked()(net, batch_of(), generator("d"))
    joint = DrawAndMatch(queries=queries, weights=(1.0, 0.0, 0.0))(net, batch_of(), generator("d"))
    assert torch.equal(alone.total, joint.total) and alone.terms.keys() == joint.terms.keys()
    more = DrawAndMatch(queries=queries)(net, batch_of(), generator("d"))
    assert float(more.total.detach()) > float(alone.total.detach()) and {"noise", "contrast"} < more.terms.keys()


def test_matching_learns_which_text_belongs_to_a_picture() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    queries = TextQuery.random(16, 6, generator("q"))
    objective, batch = DrawAndMatch(queries=queries, weights=(0.0, 1.0, 1.0)), batch_of()
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(250):
        optimiser.zero_grad()
        objective(net, batch, generator("match", step)).total.backward()
        optimiser.step()
    score = by_query(net, batch, queries(batch), generator("score"))
    assert score.argmax(1).tolist() == [0, 1, 2, 3]
    assert torch.allclose(queries(batch).norm(dim=1), torch.ones(4))


def test_too_many_masks_are_refused() -> None:
    spans = (Span(name="image", kind=Kind.CODE, start=0, stop=13, grid=(1, 13), writable=True),)
    with pytest.raises(ValueError, match="13 tokens have too many masks"):
        every_mask(Sequence(ids=torch.zeros(13).long(), masked=torch.ones(13).bool(), spans=spans))
