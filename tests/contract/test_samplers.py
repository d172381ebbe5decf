"""Laws of sampling for every part: what a run may change, when it ends, and that rows do not affect each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.protocols import Bounded, Predicting
from unmask.sampling import blocks, presets, selection
from unmask.sampling.sampler import NothingPredicted, NothingUnmasked, Sampler
from unmask.sampling.spans import wished
from unmask.sequence import Batch, Kind, collate
from unmask.step import Move, Prediction, Progress, Proposal

from .instances import (
    ALL_SCHEDULES,
    BASE,
    CODES,
    DROP,
    GUIDANCES,
    NULL,
    SAMPLERS,
    STOPPINGS,
    assert_batch_invariant,
    fake,
    name_of,
    requests,
    run,
    sequence,
    tiny,
)

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)


@dataclasses.dataclass(kw_only=True)
class Watched:
    """A token sampler and a selection that note what passes; they have the optional methods of those they wrap."""

    sampler: Sampler
    moves: list[tuple[Batch, Proposal, Tensor, Tensor, Move]] = dataclasses.field(default_factory=list)

    def watched(self) -> Sampler:
        own = self.sampler.selection

        def call(batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
            move = own(batch, proposal, block, counts, progress)
            self.moves.append((batch, proposal, block, counts, move))
            return move

        members: dict[str, Any] = {"__call__": staticmethod(call)}
        members |= {name: getattr(own, name) for name in ("predict", "extra_steps") if hasattr(own, name)}
        spy: Any = type("Spy", (), {k: v if k == "__call__" else staticmethod(v) for k, v in members.items()})()
        return dataclasses.replace(self.sampler, selection=spy)


@every_sampler
def test_it_finishes_and_leaves_given_tokens_alone(sampler: Sampler) -> None:
    batch, result, steps = run(sampler, requests(sampler))
    assert not result.masked.any()
    given = ~batch.masked
    assert torch.equal(result.ids[given], batch.ids[given])
    assert all(torch.equal(step.batch.ids[given], batch.ids[given]) for step in steps)
    code = result.ids[(result.kind == Kind.CODE) & batch.masked]
    assert ((code >= 0) & (code < CODES)).all()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.number <= step.of for step in steps)


@every_sampler
def test_it_ends_within_its_bound(sampler: Sampler) -> None:
    """Planned steps plus the stated bound; one that may take fewer than its counts has a step for each token at most."""
    for index, one in enumerate(requests(sampler)):
        batch = collate([one], [index])
        watch = Watched(sampler=sampler)
        run_ = watch.watched().start(batch)
        planned, tokens = run_.agenda.planned, int(run_.open.sum())
        blocks_ = run_.agenda.block[run_.open].unique(return_counts=True)[1].tolist()
        while run_.query is not None:
            run_.advance(fake(run_.query.batch, predict=run_.query.predict))
        full = all(bool((move.unmask.sum(1) >= counts).all()) for *_, counts, move in watch.moves)
        extra = 0
        if isinstance(sampler.selection, Bounded):
            extra = sum(sampler.selection.extra_steps(n, len(sampler.schedule.counts(n))) or 0 for n in blocks_)
        if not extra and not full:
            planned = max(planned, tokens)
        assert run_.number <= planned + extra


@every_sampler
def test_an_answer_is_batch_invariant(sampler: Sampler) -> None:
    assert_batch_invariant(sampler, requests(sampler))


@every_sampler
def test_a_selection_keeps_its_contract(sampler: Sampler) -> None:
    """Inside the block, at most counts net of remasking, at least one unless bounded, and only scored tokens."""
    batch, watch = collate(requests(sampler), range(4)), Watched(sampler=sampler)
    watch.watched().sample(fake, batch)
    unmasked_here = torch.zeros_like(batch.masked)
    for at, proposal, block, counts, move in watch.moves:
        scored = proposal.score > -torch.inf
        assert torch.equal(proposal.ids[~scored], at.ids[~scored])
        assert not (move.unmask & ~block).any() and not ((move.unmask | move.redraw) & ~scored).any()
        assert (move.unmask.sum(1) - move.remask.sum(1) <= counts).all()
        if not isinstance(sampler.selection, Bounded):
            assert (move.unmask.sum(1) <= counts).all()
            assert torch.equal(move.unmask.any(1), block.any(1))
        assert not (move.remask & ~(at.writable & at.valid)).any()
        assert not ((move.remask | move.redraw) & ~unmasked_here).any()
        unmasked_here = (unmasked_here | move.unmask) & ~move.remask
        if not isinstance(sampler.token_sampler, Predicting):
            asked = wished(sampler.selection, at, block, counts)  # it may read tokens that are not masked
            assert not (scored & ~(block if asked is None else block | asked)).any()
    assert watch.moves


@pytest.mark.parametrize("part", ALL_SCHEDULES, ids=name_of)
def test_a_schedule_sums_up_and_has_no_empty_step(part: Any) -> None:
    for tokens in [*range(40), 100, 1024, 4096]:
        counts = part.counts(tokens)
        assert sum(counts) == tokens and all(isinstance(n, int) and n > 0 for n in counts)


def test_a_selection_that_takes_nothing_is_named() -> None:
    def lazy(batch: Batch, proposal: Any, where: Tensor, counts: Tensor, at: Any) -> Move:
        return selection.move(torch.zeros_like(where))

    with pytest.raises(NothingUnmasked, match="rows \\[0, 1, 2, 3\\]"):
        run(dataclasses.replace(BASE, selection=lazy), requests(BASE))


def test_a_token_that_the_model_does_not_score_is_a_named_error() -> None:
    """A third kind of token: the fake model scores text and codes only."""
    batch = collate([sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 4, True))], [0])
    strange = batch.replace(kind=batch.kind.masked_fill(batch.masked & (torch.arange(7) == 5), 9))
    with pytest.raises(NothingPredicted, match=r"row 0, token 5 \(kind 9\)"):
        BASE.sample(fake, strange)


def test_a_move_changes_only_what_was_masked_at_the_start() -> None:
    """Kept codes of an infill lie in a writable span; a selection that remasks or redraws them changes nothing."""
    batch = collate([sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 6, True), given=(4, 5))], [0])

    def greedy(b: Batch, proposal: Any, where: Tensor, counts: Tensor, at: Any) -> Move:
        everything = torch.ones_like(where)
        return Move(unmask=where, remask=everything & ~where, redraw=everything)

    result = dataclasses.replace(BASE, selection=greedy).sample(fake, batch)
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])


ELASTIC = [
    dataclasses.replace(BASE, guidance=GUIDANCES[3]),
    dataclasses.replace(BASE, blocks=blocks.Blocks(length=4), stopping=STOPPINGS[1], guidance=GUIDANCES[1]),
    presets.lavida_o_image(grid=(4, 4), null_id=NULL, drop=DROP),
    presets.lavida_o_image_256(null_id=NULL, drop=DROP),
]


@pytest.mark.parametrize("sampler", ELASTIC, ids=["edit", "blocks", "stratified", "confident"])
def test_the_laws_hold_with_the_real_model(sampler: Sampler) -> None:
    model, rows = tiny(), requests(sampler)
    batch = collate(rows, range(10, 14))
    result = assert_batch_invariant(sampler, rows, model)
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])


def test_a_finished_run_takes_no_prediction() -> None:
    run_ = BASE.start(collate([sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 1, True))], [0]))
    assert run_.query is not None
    run_.advance(fake(run_.query.batch, predict=run_.query.predict))
    assert run_.query is None
    with pytest.raises(ValueError, match="the run is finished"):
        run_.advance(Prediction(scored={}))
