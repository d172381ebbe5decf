"""Joints on which methods were found to break, each by its smallest case."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.fake import FakeDenoiser
from unmask.models.sizes import SIZES
from unmask.positions import whole_positions
from unmask.rng import generator
from unmask.sampling.sampler import NothingUnmasked, Sampler
from unmask.sampling.schedule import Equal, Fixed
from unmask.sampling.selection import Confident, PerSpan, RandomOrder
from unmask.sampling.token_sampler import Categorical, OnlyIds, TopP
from unmask.sequence import ON_UNMASK, Batch, Kind, Sequence, Span, collate, sequence_at, stack
from unmask.step import Move, Prediction, Progress, Proposal, Query, Scored

NULL = 3


def texts(*sizes: tuple[str, int, bool], **more: object) -> Sequence:
    """(name, tokens, writable) of spans of text; ``more``: fields of every writable span."""
    spans, start = [], 0
    for name, tokens, writable in sizes:
        own = more if writable else {}
        spans.append(Span(name=name, kind=Kind.TEXT, start=start, stop=start + tokens, writable=writable, **own))  # type: ignore[arg-type]
        start += tokens
    masked = torch.cat([torch.full((len(s),), s.writable) for s in spans])
    return Sequence(ids=torch.arange(start) + 8, masked=masked, spans=tuple(spans))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything:
    """A token sampler that reads all masked tokens of the block, however few are taken."""

    inner: Categorical = Categorical()

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        return block

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        return self.inner(batch, prediction, progress)


@pytest.mark.parametrize(
    "wrap", [TopP(mass=0.9, token_sampler=Everything()), OnlyIds(low=4, high=9, token_sampler=Everything())]
)
def test_a_wrapper_asks_for_what_the_wrapped_part_wants(wrap: TopP | OnlyIds) -> None:
    sampler = Sampler(schedule=Fixed(each=4), token_sampler=wrap, selection=RandomOrder())
    run = sampler.start(collate([texts(("prompt", 2, False), ("answer", 12, True))], [0]))
    assert run.query is not None and int(run.query.predict.sum()) == 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle:
    """Unmasks nothing at the first step of a block."""

    def extra_steps(self, tokens: int, planned: int) -> int:
        return 1

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        move = Confident()(batch, proposal, block, counts, progress)
        return dataclasses.replace(move, unmask=move.unmask & (progress.number > 0)[:, None])


def test_per_span_is_bounded_where_its_selection_is() -> None:
    batch = collate([texts(("a", 3, True), ("b", 4, True))], [0])
    for selection in (Idle(), PerSpan(selection=Idle())):
        done = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(), selection=selection).sample(
            FakeDenoiser(), batch
        )
        assert not done.masked.any()
    assert PerSpan(selection=Confident()).extra_steps(4, 2) is None


def test_a_selection_that_remasks_says_when_a_block_ends() -> None:
    """A selection that remasks as many tokens as it unmasks would never end; without a bound it is refused at its first such step."""

    def swaps(batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        move = Confident()(batch, proposal, block, counts, progress)
        return dataclasses.replace(move, remask=batch.writable & ~batch.masked)

    batch = collate([texts(("a", 4, True))], [0])
    sampler = Sampler(schedule=Fixed(each=1), token_sampler=Categorical(), selection=swaps)
    with pytest.raises(NothingUnmasked, match="give it extra_steps"):
        sampler.sample(FakeDenoiser(), batch)


def test_values_leave_a_run_and_stand_beside_rows_that_have_none() -> None:
    plain = texts(("prompt", 2, False), ("answer", 3, True))
    valued = dataclasses.replace(plain, values=torch.ones(5, 4))
    one, other = collate([valued], [0]), collate([plain], [1])
    for views in ([one, other], [other, one]):
        together = stack(views)
        assert together.values is not None and together.values.shape == (2, 5, 4)
        assert sorted(together.values.sum((1, 2)).tolist()) == [0.0, 20.0]
    changed = one.replace(values=one.values * 7)  # type: ignore[operator]
    found = sequence_at(valued, changed, 0).values
    assert found is not None and torch.equal(found, torch.full((5, 4), 7.0))


def test_given_and_filled_tokens_of_a_span_with_orders_set_on_unmasking_are_read() -> None:
    sequence = texts(("prompt", 2, False), ("answer", 4, True), order=ON_UNMASK, segment=1)
    sequence = dataclasses.replace(sequence, masked=torch.tensor([False, False, True, False, True, True]))
    batch = collate([sequence], [0])
    assert batch.order[0].tolist() == [0, 0, ON_UNMASK, 0, ON_UNMASK, ON_UNMASK]
    assert batch.segment[0].tolist() == [0, 0, 1, 1, 1, 1]

    def fills(b: Batch) -> Batch:
        """Fills the last token as soon as another one is unmasked."""
        last = (torch.arange(6) == 5) & (b.clock > 0)[:, None]
        return b.replace(masked=b.masked & ~last)

    sampler = Sampler(schedule=Fixed(each=1), token_sampler=Categorical(), selection=Confident(), stopping=fills)
    done = sampler.sample(FakeDenoiser(), batch)
    assert not done.masked.any() and int(done.order.max()) <= 2 and torch.equal(done.segment, batch.segment)
    assert int(done.order[0, 5]) == 1  # filled at the first step


def test_views_with_other_numbers_of_a_kind_are_split_by_rows() -> None:
    from unmask.sampling.sampler import _split

    batch = collate([texts(("prompt", 2, False), ("answer", 3, True))], [0])
    at = torch.tensor([1, 2, 8])  # two tokens of the first view, one of the second
    whole = Prediction(scored={0: Scored(at=at, logits=torch.arange(3.0)[:, None])})
    query = Query(batch=batch, predict=torch.zeros(2, 5, dtype=torch.bool))
    first, second = _split(whole, query, 2, batch)
    assert first.scored[0].at.tolist() == [1, 2] and second.scored[0].at.tolist() == [3]
    assert second.logits(0).flatten().tolist() == [2.0]


def test_a_kind_that_a_network_does_not_read_is_a_named_error() -> None:
    net = Elastic(SIZES["tiny"], mask_id=NULL).eval()
    init(net, generator("joints"))
    batch = collate([texts(("prompt", 2, False), ("answer", 3, True))], [0])
    with pytest.raises(ValueError, match="tokens of kind 5"):
        net(batch.replace(kind=torch.tensor([[5, 0, 0, 0, 0]])))


def test_the_grid_of_a_kind_of_a_method_is_folded_like_codes() -> None:
    span = Span(name="motion", kind=4, start=0, stop=16, grid=(4, 4), fold=2, writable=True)
    batch = collate([Sequence(ids=torch.arange(16), masked=torch.ones(16, dtype=torch.bool), spans=(span,))], [0])
    assert int(batch.leader.sum()) == 4 and sorted(set(batch.position[0].tolist())) == [0, 1, 2, 3]
    chosen = torch.arange(16)[None] == 0
    assert whole_positions(batch, chosen)[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
