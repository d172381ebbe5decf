"""Caches: an exact cache equals no cache, and held tokens are not computed again."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unmask.sampling import blocks, cache, guidance, schedule, selection
from unmask.sampling.sampler import CachedTokenChanged, Sampler
from unmask.sequence import Batch, Sequence, Span, collate
from unmask.serving.batching import join, part_of, shares

from .doubles import CorrectingSteps, Everything, Redrawing, Remasking, SeesAll
from .instances import ALL_CACHES, NULL, assert_batch_invariant, name_of, row
from .layouts import (
    CODES_ONLY,
    LAYOUTS,
    MODEL,
    TEXT_MODEL,
    answer,
    assert_equal_runs,
    computed_rows,
    image,
    prompt,
    question,
    requests,
    sampler_for,
    spans,
    spied,
)

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
EXACT = [part for part in ALL_CACHES if part.exact] + [cache.BlockCache(refresh=1)]


@every_layout
@pytest.mark.parametrize("part", EXACT, ids=name_of)
def test_an_exact_cache_equals_no_cache(layout: str, part: Any) -> None:
    plain = sampler_for(layout)
    assert_equal_runs(plain, dataclasses.replace(plain, cache=part), requests(layout))


@pytest.mark.parametrize("part", EXACT, ids=name_of)
def test_an_exact_cache_equals_no_cache_in_a_text_model(part: Any) -> None:
    plain = sampler_for("prefix-LM")
    assert_equal_runs(plain, dataclasses.replace(plain, cache=part), requests("prefix-LM"), TEXT_MODEL)


@pytest.mark.parametrize("part", [cache.CroppedCache(), cache.BlockCache(), cache.BlockCache(refresh=2)], ids=name_of)
def test_approximate_caches_are_exact_where_nothing_behind_is_read(part: Any) -> None:
    """Block-causal: what lies before a block never reads it, and it never reads what lies behind."""
    plain = sampler_for("block-causal")
    assert_equal_runs(plain, dataclasses.replace(plain, cache=part), requests("block-causal"))


@pytest.mark.parametrize("part", [cache.CroppedCache(), cache.BlockCache()], ids=name_of)
def test_approximate_caches_differ_where_tokens_read_behind_them(part: Any) -> None:
    """What makes the test above one that can fail: with two-way attention the same caches are not exact."""
    rows = [row(spans(prompt(5), answer(12)), seed=1)]
    plain = sampler_for("block-causal")
    _, cached = spied(dataclasses.replace(plain, cache=part), rows)
    _, uncached = spied(plain, rows)
    assert any(
        (a[0][1] - b[0][1]).abs().max() > 1e-3
        for a, b in zip(cached, uncached, strict=False)
        if len(a[0][1]) == len(b[0][1])
    )


@every_layout
@pytest.mark.parametrize("part", ALL_CACHES, ids=name_of)
def test_answers_are_batch_invariant(layout: str, part: Any) -> None:
    assert_batch_invariant(sampler_for(layout, cache=part), requests(layout), MODEL)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.4, 0.7)])
@pytest.mark.parametrize("part", ALL_CACHES, ids=name_of)
def test_guidance_views_come_and_go(part: Any, interval: tuple[float, float]) -> None:
    """Rows whose blocks have different numbers of steps: the view is computed while any row needs it."""
    free = guidance.ClassifierFree(scale=1.5, drop=frozenset({"prompt"}), null_id=NULL, interval=interval)
    plain = sampler_for("block-causal", guidance=free, schedule=schedule.Fixed(each=1))
    plain = dataclasses.replace(plain, blocks=blocks.Blocks(length=6))
    rows = [row(spans(prompt(n), answer(m, order=1, order_step=6)), seed=n) for n, m in ((5, 11), (4, 8), (9, 2))]
    cached = dataclasses.replace(plain, cache=part)
    if part.exact:
        assert_equal_runs(plain, cached, rows)
    assert_batch_invariant(cached, rows, MODEL)


@pytest.mark.parametrize("part", [cache.BlockCache(), cache.CroppedCache()], ids=name_of)
def test_a_view_that_a_row_leaves_out_is_batch_invariant(part: Any) -> None:
    """Fault: a row's unguided view was kept fresh where another row was guided, and stale where it was alone."""
    free = guidance.ClassifierFree(scale=1.5, drop=frozenset({"prompt"}), null_id=NULL, interval=(0.5, 1.0))
    sampler = sampler_for("prefix-LM", guidance=free, cache=part, schedule=schedule.Fixed(each=1))
    sampler = dataclasses.replace(sampler, blocks=blocks.Blocks(length=8))
    rows = [row(spans(prompt(4), answer(n)), seed=n) for n in (16, 3, 12, 5)]
    assert_batch_invariant(sampler, rows, MODEL)


def test_held_tokens_are_not_computed_again() -> None:
    rows = [row(spans(prompt(20), answer(6, order=1)), seed=1)]
    sampler = sampler_for("prefix-LM", cache=cache.PrefixCache(), schedule=schedule.Fixed(each=1))
    counts, hooks = computed_rows(MODEL)
    try:
        sampler.sample(MODEL, collate(rows, [0]))
        cached, counts[:] = list(counts), []
        dataclasses.replace(sampler, cache=cache.NoCache()).sample(MODEL, collate(rows, [0]))
    finally:
        for hook in hooks:
            hook.remove()
    assert cached == [26] + 5 * [6] and counts == 6 * [26]


def test_finished_blocks_join_the_prefix() -> None:
    rows = [row(spans(prompt(10), answer(12, order=1, order_step=4)), seed=1)]
    sampler = sampler_for("block-causal", cache=cache.PrefixCache(), schedule=schedule.Equal(steps=2))
    counts, hooks = computed_rows(MODEL)
    try:
        sampler.sample(MODEL, collate(rows, [0]))
    finally:
        for hook in hooks:
            hook.remove()
    assert counts == [14, 4, 8, 4, 8, 4]  # a finished block is computed once more, clean, with the next one


def test_a_question_is_computed_only_while_it_is_answered() -> None:
    """Two questions about one prompt, answered one after the other: the prompt once, then the question at hand."""
    rows = [row(spans(prompt(20), *question(3, 1), *question(4, 2)), seed=1)]
    plain = sampler_for("segments", schedule=schedule.Fixed(each=1), blocks=blocks.SpanBySpan())
    sampler = dataclasses.replace(plain, cache=cache.PrefixCache())
    assert_equal_runs(plain, sampler, rows)
    counts, hooks = computed_rows(MODEL)
    try:
        sampler.sample(MODEL, collate(rows, [0]))
    finally:
        for hook in hooks:
            hook.remove()
    assert counts == [20 + 8] + 4 * [5] + [10] + 5 * [
        6
    ]  # a question is held as the prompt is: its answer has a higher order


def test_questions_in_one_step_share_what_is_before_them() -> None:
    """A step that scores all of them computes all of them, with the prompt once."""
    rows = [row(spans(prompt(20), *question(3, 1), *question(4, 2)), seed=1)]
    sampler = sampler_for("segments", schedule=schedule.Fixed(each=6), cache=cache.PrefixCache())
    counts, hooks = computed_rows(MODEL)
    try:
        sampler.sample(MODEL, collate(rows, [0]))
    finally:
        for hook in hooks:
            hook.remove()
    assert counts == [20 + 8 + 10, 5 + 6]


@pytest.mark.parametrize(
    ("table", "steps"), [(spans(prompt(6), answer(4)), 4), (spans(prompt(6), answer(4, order=1)), 1)]
)
def test_nothing_is_kept_where_nothing_could_be_lent(table: list[Span], steps: int) -> None:
    """Everything reads everything; or one step is all there is."""
    sampler = sampler_for("prefix-LM", schedule=schedule.Equal(steps=steps), cache=cache.PrefixCache())
    run = sampler.start(collate([row(table, seed=1)], [0]))
    while run.query is not None:
        assert run.query.reuse is None
        run.advance(MODEL(run.query.batch, predict=run.query.predict))
    assert run.number == steps and not run.states


def test_more_steps_than_planned_are_cached() -> None:
    """A threshold plans one step and takes as many as it needs."""
    sampler = sampler_for(
        "prefix-LM",
        schedule=schedule.Equal(steps=1),
        selection=selection.Threshold(value=0.99),
        cache=cache.PrefixCache(),
    )
    counts, hooks = computed_rows(MODEL)
    try:
        sampler.sample(MODEL, collate([row(spans(prompt(20), answer(6, order=1)), seed=1)], [0]))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(counts) > 3 and counts[:3] == [26, 26, 6]


@pytest.mark.parametrize("part", ALL_CACHES, ids=name_of)
def test_text_of_later_orders_is_left_out_until_its_turn(part: Any) -> None:
    """Tokens behind all that is read are no part of a query, and make no difference."""
    rows = [row(spans(prompt(n), answer(m, order=1, order_step=4)), seed=n) for n, m in ((5, 12), (9, 7))]
    plain = sampler_for("block-causal", blocks=blocks.ByOrder(blocks=blocks.Blocks(length=3)))
    sampler = dataclasses.replace(plain, cache=part)
    assert_batch_invariant(sampler, rows, MODEL)
    run, lengths = sampler.start(collate(rows[:1], [0])), []
    while run.query is not None:
        lengths.append(run.query.batch.ids.shape[1])
        run.advance(MODEL(run.query.batch, predict=run.query.predict, reuse=run.query.reuse))
    if part == cache.PrefixCache():
        assert_equal_runs(plain, sampler, rows)
        assert (
            lengths == [9] * 4 + [13] * 4 + [17] * 4
        )  # of each canvas a block of three tokens and one of a single token
    if isinstance(part, cache.NoCache | cache.CroppedCache | cache.BlockCache):
        assert set(lengths) == {17}, "these compute everything at the first step of a block"


def test_masks_that_stay_equal_are_the_same_tensors() -> None:
    """So what a network makes of them is made once (``unmask.derived``), in a run alone and in runs that share forwards."""
    sampler = sampler_for("prefix-LM", schedule=schedule.Fixed(each=1), cache=cache.PrefixCache())
    rows = [row(spans(prompt(n), answer(6, order=1, order_step=6)), seed=n) for n in (9, 8)]
    runs, masks = [sampler.start(collate([one], [0])) for one in rows], []
    for _ in range(5):
        parts = [part_of(r.query, 4) for r in runs if r.query is not None]
        query = join(parts)
        assert query.reuse is not None
        own = runs[0].query.reuse if runs[0].query else None
        assert own is not None
        masks.append(
            (
                own.compute,
                own.state and own.state.held,
                query.reuse.compute,
                query.reuse.state and query.reuse.state.held,
            )
        )
        with torch.no_grad():
            prediction = MODEL(query.batch, predict=query.predict, reuse=query.reuse)
        for r, share in zip(runs, shares(prediction, parts, query), strict=True):
            r.advance(share)
    assert all(a is b for a, b in zip(masks[1], masks[2], strict=True)) and masks[0][0] is not masks[1][0]
    assert all(a is b for a, b in zip(masks[2], masks[4], strict=True))


def test_a_change_of_a_held_token_is_named() -> None:
    redraws = sampler_for("prefix-LM", token_sampler=SeesAll(), selection=Redrawing(), schedule=schedule.Fixed(each=1))
    rows = [row(spans(prompt(3), answer(6, order=1)), seed=1)]
    with pytest.raises(CachedTokenChanged, match="Everything holds it"):
        dataclasses.replace(redraws, cache=Everything()).sample(MODEL, collate(rows, [0]))
    remasks = dataclasses.replace(sampler_for("causal", selection=Remasking()), cache=cache.PrefixCache())
    with pytest.raises(CachedTokenChanged, match="PrefixCache holds it"):
        remasks.sample(MODEL, collate([row(spans(prompt(3), answer(6, order=1, order_step=1)), seed=1)], [0]))


def test_tokens_that_are_scored_again_are_not_held() -> None:
    """They may be redrawn: a causal answer of which every token is scored at every step."""
    rows = [row(spans(prompt(n), answer(6, order=n, order_step=1)), seed=n) for n in (3, 5)]
    plain = sampler_for("prefix-LM", token_sampler=SeesAll(), selection=Redrawing(), schedule=schedule.Fixed(each=1))
    assert_equal_runs(plain, dataclasses.replace(plain, cache=cache.PrefixCache()), rows)


def test_remasking_inside_the_block_agrees_with_a_prefix_cache() -> None:
    plain = sampler_for("prefix-LM", selection=Remasking())
    assert_equal_runs(plain, dataclasses.replace(plain, cache=cache.PrefixCache()), requests("prefix-LM"))


def test_corrections_agree_with_an_exact_cache() -> None:
    """Correcting steps score unmasked tokens, which a prefix cache therefore does not hold."""
    sampler = sampler_for(
        "prefix-LM", token_sampler=SeesAll(), selection=Redrawing(rate=2), stopping=CorrectingSteps(steps=2, bound=2)
    )
    rows = requests("prefix-LM")
    for part in (cache.PrefixCache(), cache.BlockCache(refresh=1)):
        assert_equal_runs(sampler, dataclasses.replace(sampler, cache=part), rows)


@pytest.mark.parametrize("layout", CODES_ONLY)
def test_codes_of_one_position_may_be_unmasked_at_different_steps(layout: str) -> None:
    """Fault: a position counted as unmasked after its first code, so its readers were cached before the other three were known."""
    order = (
        0,
        2,
        3,
        6,
        7,
        1,
        4,
        5,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
    )  # one code of the first position and all of the second
    plain = sampler_for(layout, selection=selection.InOrder(order=order), schedule=schedule.Fixed(each=5))
    assert_equal_runs(plain, dataclasses.replace(plain, cache=cache.PrefixCache()), requests(layout))


# -- runs that share a forward ------------------------------------------------------------------------------------------


def joined(samplers: list[Sampler], rows: list[Sequence], model: Any = MODEL) -> list[Batch]:
    """Every request in its own run; at each step queries of one shape share a forward."""
    runs = [s.start(collate([one], [30 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    while any(r.query is not None for r in runs):
        waiting = [(r, part_of(r.query, 8)) for r in runs if r.query is not None]
        shape = waiting[0][1].shape
        some = [(r, part) for r, part in waiting if part.shape == shape]
        query = join([part for _, part in some])
        with torch.no_grad():
            prediction = model(query.batch, predict=query.predict, reuse=query.reuse)
        for (r, _), own in zip(some, shares(prediction, [part for _, part in some], query), strict=True):
            r.advance(own)
    return [r.batch for r in runs]


@every_layout
@pytest.mark.parametrize("part", ALL_CACHES, ids=name_of)
def test_runs_that_share_forwards_equal_runs_alone(layout: str, part: Any) -> None:
    sampler = sampler_for(layout, cache=part)
    guided = dataclasses.replace(
        sampler,
        guidance=guidance.ClassifierFree(scale=1.0, drop=frozenset({"prompt"}), null_id=NULL, interval=(0.4, 0.8)),
    )
    rows = [one for pair in zip(requests(layout), requests(layout), strict=True) for one in pair]
    samplers = [sampler, guided] * (len(rows) // 2)
    alone = [s.sample(MODEL, collate([one], [30 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    for one, other in zip(joined(samplers, rows), alone, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.clock, other.clock)


def test_a_run_without_reuse_joins_one_with() -> None:
    """One step or many: both compute, the first keeps nothing."""
    quick = sampler_for("prefix-LM", schedule=schedule.Equal(steps=1), cache=cache.PrefixCache())
    samplers = [quick, dataclasses.replace(quick, schedule=schedule.Fixed(each=2))]
    rows = [row(spans(prompt(n), answer(6, order=1)), seed=n) for n in (9, 8)]
    runs = [s.start(collate([one], [30 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    parts = [part_of(r.query, 8) for r in runs if r.query is not None]
    assert [part.query.reuse is None for part in parts] == [True, False] and parts[0].shape == parts[1].shape
    alone = [s.sample(MODEL, collate([one], [30 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    for one, other in zip(joined(samplers, rows), alone, strict=True):
        assert torch.equal(one.ids, other.ids)


def test_a_run_of_codes_joins_one_that_had_text_before() -> None:
    """Fault: the states of two runs have different layers where one scored text earlier; stacking raised KeyError."""
    before, only = spans(prompt(4), answer(2, order=1), image(order=2)), spans(prompt(6), image(order=2))
    sampler = sampler_for("text, then codes", cache=cache.PrefixCache())
    longer = dataclasses.replace(sampler, schedule=schedule.Fixed(each=1))
    samplers, rows = [sampler, longer], [row(before, seed=1), row(only, seed=2)]
    alone = [s.sample(MODEL, collate([one], [30 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    for order in ((0, 1), (1, 0)):
        runs = {i: samplers[i].start(collate([rows[i]], [30 + i])) for i in order}
        together = 0
        while going := {i: part_of(r.query, 8) for i, r in runs.items() if r.query is not None}:
            shared = len({part.shape for part in going.values()}) == 1
            together += shared and len(going) == 2
            for some in [list(going)] if shared else [[i] for i in going]:
                query = join([going[i] for i in some])
                with torch.no_grad():
                    prediction = MODEL(query.batch, predict=query.predict, reuse=query.reuse)
                for i, own in zip(some, shares(prediction, [going[i] for i in some], query), strict=True):
                    runs[i].advance(own)
        assert together > 0
        assert all(torch.equal(runs[i].batch.ids, alone[i].ids) for i in order)
