"""Moves that no shipped part makes: remasking, resampling, corrections, changing blocks, and a start from uniform noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unmask import protocols
from unmask.sampling import blocks, schedule, selection, token_sampler
from unmask.sampling.prior import AllMasked, UniformIds
from unmask.sampling.sampler import NothingUnmasked, Sampler, SamplingRun
from unmask.sequence import Batch, Kind, collate
from unmask.step import Move, Proposal

from .doubles import Alternating, CorrectingSteps, NextTokens, Redrawing, Remasking, SeesAll
from .instances import BASE, CODES, TEXT, assert_batch_invariant, fake, fits, name_of, requests, run, sequence

EQUAL = dataclasses.replace(BASE, schedule=schedule.Equal(steps=4))
ANSWER = sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 8, True), given=(5,))
DOUBLES = [
    dataclasses.replace(EQUAL, selection=Remasking()),
    dataclasses.replace(EQUAL, selection=Remasking(rate=2, extra=6)),
    dataclasses.replace(EQUAL, selection=Remasking(idle=True, extra=4)),
    dataclasses.replace(EQUAL, selection=Remasking(), blocks=blocks.Blocks(length=4)),
    dataclasses.replace(EQUAL, token_sampler=SeesAll()),
    dataclasses.replace(EQUAL, token_sampler=SeesAll(), selection=selection.RandomOrder()),
    dataclasses.replace(EQUAL, token_sampler=SeesAll(), selection=Redrawing(rate=2)),
    dataclasses.replace(
        EQUAL, token_sampler=SeesAll(), selection=Redrawing(), stopping=CorrectingSteps(steps=3, bound=3)
    ),
    dataclasses.replace(
        EQUAL,
        token_sampler=SeesAll(),
        selection=Redrawing(),
        blocks=blocks.Blocks(length=4),
        stopping=CorrectingSteps(steps=9, bound=2),
    ),
    dataclasses.replace(EQUAL, blocks=NextTokens(length=3)),
    dataclasses.replace(EQUAL, blocks=Alternating(length=3)),
    dataclasses.replace(
        EQUAL,
        token_sampler=SeesAll(),
        selection=Redrawing(rate=3),
        prior=UniformIds(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES}),
        stopping=CorrectingSteps(steps=5, bound=5),
    ),
]
every_double = pytest.mark.parametrize("sampler", DOUBLES, ids=name_of)


def started(sampler: Sampler, *rows: Any) -> SamplingRun:
    return sampler.start(collate(list(rows), range(len(rows))))


def finish(going: SamplingRun) -> SamplingRun:
    while going.query is not None:
        going.advance(fake(going.query.batch, predict=going.query.predict))
    return going


def test_the_doubles_fit_their_protocols() -> None:
    for double, wanted in [
        (Remasking(), (protocols.Selection, protocols.Bounded)),
        (SeesAll(), (protocols.TokenSampler, protocols.Predicting)),
        (CorrectingSteps(steps=1, bound=1), (protocols.EarlyStopping, protocols.Correcting)),
        (NextTokens(length=1), (protocols.BlockSchedule,)),
    ]:
        assert all(fits(double, protocol) for protocol in wanted)


@every_double
def test_given_tokens_never_change_and_it_ends(sampler: Sampler) -> None:
    batch, result, steps = run(sampler, requests(sampler))
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])
    for step in steps:
        assert torch.equal(step.batch.ids[~batch.masked], batch.ids[~batch.masked])
        assert not (step.batch.masked & ~batch.masked).any()


@every_double
def test_an_answer_is_batch_invariant(sampler: Sampler) -> None:
    assert_batch_invariant(sampler, requests(sampler))


@every_double
def test_rows_end_within_their_bound(sampler: Sampler) -> None:
    for index, one in enumerate(requests(sampler)):
        going = sampler.start(collate([one], [index]))
        extra = 0
        if isinstance(sampler.selection, protocols.Bounded):
            sizes = going.agenda.block[going.open].unique(return_counts=True)[1].tolist()
            extra = sum(sampler.selection.extra_steps(n, len(sampler.schedule.counts(n))) for n in sizes)
        planned = going.agenda.planned
        if isinstance(sampler.blocks, NextTokens):  # planned when the later blocks were one
            planned = int(going.open.sum())
        assert finish(going).number <= planned + extra


def test_a_remasked_token_is_written_again() -> None:
    """Rate 1: after the first step every step but the last masks one token again, so the run takes its extra steps."""
    sampler = dataclasses.replace(EQUAL, selection=Remasking(rate=1, extra=3))
    batch, result, steps = run(sampler, [ANSWER])
    again = [
        bool((after.batch.masked & ~before.batch.masked).any()) for before, after in zip(steps, steps[1:], strict=False)
    ]
    assert sum(again) >= 3 and len(steps) <= 4 + 3
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])


def test_net_moves_never_exceed_counts() -> None:
    going = started(dataclasses.replace(EQUAL, selection=Remasking(rate=1, extra=3)), ANSWER)
    while going.query is not None and going.todo is not None:
        before, counts = going.batch.masked.sum(1), going.todo.counts
        going.advance(fake(going.query.batch, predict=going.query.predict))
        assert (before - going.batch.masked.sum(1) <= counts).all()


@pytest.mark.parametrize("forever", ["one in and one out", "nothing"])
def test_a_selection_that_breaks_its_bound_is_named(forever: str) -> None:
    """Fault: the bound only checked that a token was unmasked, so a selection that unmasks and remasks never ended."""

    class Endless:
        def extra_steps(self, tokens: int, planned: int) -> int:
            return 2

        def __call__(self, batch: Batch, proposal: Proposal, block: Any, counts: Any, progress: Any) -> Move:
            one = selection.first(proposal.score, block, torch.ones_like(counts))
            if forever == "nothing":
                return selection.move(torch.zeros_like(one))
            return Move(unmask=one, remask=batch.writable & ~batch.masked, redraw=torch.zeros_like(one))

    going = started(dataclasses.replace(EQUAL, selection=Endless()), ANSWER)
    with pytest.raises(NothingUnmasked, match="its bound"):
        for _ in range(50):
            assert going.query is not None
            going.advance(fake(going.query.batch, predict=going.query.predict))
    assert going.number == 4 + 2 - 1


def test_remasking_stays_in_the_rows_block() -> None:
    """Fault: masking a finished block again restarted its schedule, so two blocks could alternate without end."""

    class BackAndForth:
        def extra_steps(self, tokens: int, planned: int) -> int:
            return 0

        def __call__(self, batch: Batch, proposal: Proposal, block: Any, counts: Any, progress: Any) -> Move:
            return Move(unmask=block, remask=batch.writable & ~batch.masked & ~block, redraw=torch.zeros_like(block))

    sampler = dataclasses.replace(EQUAL, selection=BackAndForth(), blocks=blocks.Blocks(length=4))
    going = started(sampler, sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 8, True)))
    for _ in range(2):
        assert going.query is not None
        going.advance(fake(going.query.batch, predict=going.query.predict))
    assert going.query is None and not going.batch.masked.any()


def test_a_finished_row_is_not_redrawn() -> None:
    """Fault: a selection that resamples every row changed finished rows while others were running."""
    sampler = dataclasses.replace(BASE, schedule=schedule.Fixed(each=1), token_sampler=SeesAll(), selection=Redrawing())
    short, long = (sequence(("prompt", Kind.TEXT, 2, False), ("answer", Kind.TEXT, n, True), seed=n) for n in (2, 9))
    alone = sampler.sample(fake, collate([short], [0]))
    together = sampler.sample(fake, collate([short, long], [0, 1]))
    assert torch.equal(together.ids[0, :4], alone.ids[0])


@pytest.mark.parametrize(("steps", "bound", "taken"), [(0, 3, 0), (3, 3, 3), (9, 2, 2)])
def test_corrections_are_counted_and_bounded(steps: int, bound: int, taken: int) -> None:
    sampler = dataclasses.replace(
        EQUAL,
        token_sampler=SeesAll(),
        selection=Redrawing(rate=8),
        stopping=CorrectingSteps(steps=steps, bound=bound),
    )
    going = started(sampler, ANSWER)
    assert going.step.of == 4 + bound
    finish(going)
    assert going.number == 4 + taken and going.batch.clock.tolist() == [4 + taken]


def test_corrections_redraw_what_this_run_unmasked_and_nothing_else() -> None:
    sampler = dataclasses.replace(
        EQUAL,
        token_sampler=SeesAll(),
        selection=Redrawing(rate=8),
        stopping=CorrectingSteps(steps=4, bound=4),
    )
    batch, result, steps = run(sampler, [ANSWER])
    assert torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])
    assert any(not torch.equal(steps[3].batch.ids, step.batch.ids) for step in steps[4:])


def test_uniform_ids_run_on_corrections_alone() -> None:
    sampler = DOUBLES[-1]
    batch = collate([ANSWER], [3])
    going = sampler.start(batch)
    assert not going.batch.masked.any() and going.step.of == 5
    assert not torch.equal(going.batch.ids[batch.masked], batch.ids[batch.masked])
    assert torch.equal(going.batch.ids[~batch.masked], batch.ids[~batch.masked])
    start = going.batch.ids
    finish(going)
    assert going.number == 5 and not torch.equal(going.batch.ids, start)
    assert ((going.batch.ids >= 0) & (going.batch.ids < TEXT)).all()


def test_uniform_ids_leave_other_kinds_masked() -> None:
    prior = UniformIds(sizes={Kind.TEXT: 5})
    batch = collate([sequence(("answer", Kind.TEXT, 400, True), ("image", Kind.CODE, 16, True))], [0])
    drawn = prior(batch)
    assert torch.equal(drawn.masked, batch.masked & (batch.kind == Kind.CODE))
    assert (torch.bincount(drawn.ids[0, :400], minlength=5) > 50).all() and drawn.ids[0, :400].max() == 4


def test_a_block_schedule_is_asked_again_for_the_row_that_finished_a_block() -> None:
    """Fault: a new block that had the number of the finished one got its plan's rest, so all of it in one step."""
    sampler = dataclasses.replace(
        BASE, schedule=schedule.Fixed(each=1), token_sampler=token_sampler.Greedy(), blocks=NextTokens(length=3)
    )
    rows = [sequence(("prompt", Kind.TEXT, 2, False), ("answer", Kind.TEXT, n, True), seed=n) for n in (9, 5)]
    left: list[list[int]] = []
    result = sampler.sample(
        fake, collate(rows, [0, 1]), on_step=lambda step: left.append(step.batch.masked.sum(1).tolist())
    )
    assert result.clock.tolist() == [9, 5]
    assert [n for n, _ in left] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_progress_in_corrections_reaches_its_end() -> None:
    """Fault: a correcting step had the number and time of the last planned step, so a schedule over steps stood still."""
    seen: list[float] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watch(SeesAll):
        def __call__(self, batch: Batch, prediction: Any, progress: Any) -> Proposal:
            seen.append(float(progress.fraction[0]))
            return super().__call__(batch, prediction, progress)

    sampler = dataclasses.replace(DOUBLES[-1], token_sampler=Watch())
    finish(started(sampler, ANSWER))
    assert seen == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(("prior", "times"), [(True, [1.0, 0.8, 0.6, 0.4, 0.2]), (False, [1.0, 0.75, 0.5, 0.25, 0, 0])])
def test_time_falls_in_corrections_of_uniform_diffusion_alone(prior: bool, times: list[float]) -> None:
    """Fault: every step of uniform diffusion had time 0. After masked diffusion, corrections are at time 0."""
    chosen = UniformIds(sizes={Kind.TEXT: TEXT}) if prior else AllMasked()
    steps = 5 if prior else 2
    stopping = CorrectingSteps(steps=steps, bound=steps)
    sampler = dataclasses.replace(DOUBLES[-1], prior=chosen, stopping=stopping)
    whole = sequence(("answer", Kind.TEXT, 8, True))
    going, seen = started(sampler, whole), []
    while going.query is not None:
        time = going.query.batch.time
        assert time is not None and time.shape == going.batch.ids.shape and bool((time == time[0, 0]).all())
        seen.append(float(time[0, 0]))
        going.advance(fake(going.query.batch, predict=going.query.predict))
    assert seen == pytest.approx(times)


def test_each_row_has_the_time_of_its_own_corrections() -> None:
    """A row that starts with nothing masked beside one that masked diffusion finishes."""
    sampler = dataclasses.replace(DOUBLES[-1], prior=UniformIds(sizes={Kind.TEXT: TEXT}))
    text = sequence(("answer", Kind.TEXT, 4, True))
    both = sequence(("answer", Kind.TEXT, 4, True), ("image", Kind.CODE, 16, True))
    going, seen = started(sampler, text, both), []
    while going.query is not None:
        assert going.query.batch.time is not None
        seen.append(going.query.batch.time[:, 0].tolist())
        going.advance(fake(going.query.batch, predict=going.query.predict))
    assert [time for time, _ in seen] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    assert [time for _, time in seen] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
