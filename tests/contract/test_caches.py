"""Caches: cached equals uncached where a cache calls itself exact, and nothing that is held is computed again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.protocols import Predicting, TokenSampler
from unmask.sampling import blocks, cache, guidance, schedule, selection, stopping, token_sampler
from unmask.sampling.sampler import CachedTokenChanged, Sampler
from unmask.sequence import ON_UNMASK, Batch, Kind, Sequence, Span, collate
from unmask.serving.batching import join, part_of, shares
from unmask.step import Prediction, Progress, Proposal, Reuse

from .doubles import CorrectingSteps, Everything, OnlyWhatIsNeeded, Redrawing, Remasking, SeesAll
from .instances import ALL_CACHES, NULL, assert_batch_invariant, name_of, row, tiny

MODEL, TEXT_MODEL = tiny(), tiny("text", gen_width=0, vision=None)
ORDER = tuple(token for square in (0, 2, 8, 10) for token in (square, square + 1, square + 4, square + 5))
TOLERANCE = 2e-6  # of logits; other kernels for few rows round differently


def spans(*given: dict[str, Any]) -> list[Span]:
    """Spans one after the other: name, tokens and what else differs from a writable text span."""
    table, at = [], 0
    for one in given:
        tokens = one.pop("tokens")
        kind = one.pop("kind", Kind.TEXT)
        picture: dict[str, Any] = {"grid": (4, tokens // 4), "fold": 2} if kind == Kind.CODE else {}
        table.append(
            Span(kind=kind, start=at, stop=at + tokens, writable=not one["name"].startswith("p"), **picture, **one)
        )
        at += tokens
    return table


def prompt(tokens: int, **more: Any) -> dict[str, Any]:
    return {"name": "prompt", "tokens": tokens, **more}


def answer(tokens: int, **more: Any) -> dict[str, Any]:
    return {"name": "answer", "tokens": tokens, **more}


def image(**more: Any) -> dict[str, Any]:
    return {"name": "image", "kind": Kind.CODE, "tokens": 16, **more}


def asked(n: int, segment: int) -> list[dict[str, Any]]:
    """A question and its answer in a segment of their own."""
    return [prompt(n, segment=segment), answer(n + 2, segment=segment, order=1, name=f"answer{segment}")]


LAYOUTS: dict[str, list[list[Span]]] = {
    "prefix-LM": [spans(prompt(n), answer(m, order=1)) for n, m in ((9, 8), (4, 5), (12, 3))],
    "causal": [spans(prompt(n, order_step=1), answer(m, order=n, order_step=1)) for n, m in ((9, 8), (4, 5))],
    "block-causal": [spans(prompt(n), answer(m, order=1, order_step=4)) for n, m in ((5, 12), (9, 7))],
    "segments": [spans(prompt(5), *asked(3, 1), *asked(4, 2)), spans(prompt(4), *asked(5, 1))],
    "codes": [spans(prompt(n), image(order=1)) for n in (3, 8)],
    "text, then codes": [spans(prompt(n), answer(4, order=1), image(order=2)) for n in (3, 6)],
    "order set when unmasked": [
        spans(prompt(n), answer(m, order=ON_UNMASK, segment=1)) for n, m in ((6, 8), (3, 5), (8, 2))
    ],
    "codes, order set when unmasked": [spans(prompt(n), image(order=ON_UNMASK, segment=1)) for n in (3, 6)],
}
CODES_ONLY = ("codes", "codes, order set when unmasked")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@dataclass(frozen=True, kw_only=True)
class Spy:
    """A token sampler that notes every prediction."""

    token_sampler: TokenSampler = token_sampler.Categorical(temperature=0.7)
    seen: list[dict[int, tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        self.seen.append({k: (s.at, prediction.logits(k)) for k, s in prediction.scored.items()})
        return self.token_sampler(batch, prediction, progress)


class PredictingSpy(Spy):
    """A spy on a token sampler that says which tokens to score."""

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        assert isinstance(self.token_sampler, Predicting)
        return self.token_sampler.predict(batch, block, counts)


def sampler_for(layout: str, **changes: Any) -> Sampler:
    one = Sampler(
        schedule=schedule.Equal(steps=4),
        token_sampler=token_sampler.Categorical(temperature=0.7),
        selection=selection.InOrder(order=ORDER) if layout in CODES_ONLY else selection.Confident(),
        blocks={"block-causal": blocks.Blocks(length=4), "text, then codes": blocks.SpanBySpan()}.get(
            layout, blocks.Whole()
        ),
    )
    return dataclasses.replace(one, **changes)


def requests(layout: str) -> list[Sequence]:
    return [row(table, seed=n) for n, table in enumerate(LAYOUTS[layout])]


def spied(
    sampler: Sampler, rows: list[Sequence], model: Any = MODEL
) -> tuple[Batch, list[dict[int, tuple[Tensor, Tensor]]]]:
    kind = PredictingSpy if isinstance(sampler.token_sampler, Predicting) else Spy
    spy = kind(token_sampler=sampler.token_sampler)
    result = dataclasses.replace(sampler, token_sampler=spy).sample(model, collate(rows, range(20, 20 + len(rows))))
    return result, spy.seen


def assert_equal_runs(one: Sampler, other: Sampler, rows: list[Sequence], model: Any = MODEL) -> None:
    (a, seen_a), (b, seen_b) = spied(one, rows, model), spied(other, rows, model)
    assert torch.equal(a.ids, b.ids) and len(seen_a) == len(seen_b)
    for step_a, step_b in zip(seen_a, seen_b, strict=True):
        for kind in step_a.keys() | step_b.keys():
            at_a, logits_a = step_a[kind]
            at_b, logits_b = step_b[kind]
            assert torch.equal(at_a, at_b)
            torch.testing.assert_close(logits_a, logits_b, atol=TOLERANCE, rtol=0)


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


def computed_rows(model: Elastic) -> tuple[list[int], list[Any]]:
    """How many rows enter the query projections of layer 0, understanding and generation branch together."""
    counts: list[int] = []
    block: Any = model.blocks[0]
    hooks = [
        branch.q.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[0] * args[0].shape[1]))
        for branch in (block.und, block.gen)
    ]
    return counts, hooks


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


def test_a_change_of_a_held_token_is_named() -> None:
    rows = [row(spans(prompt(3), answer(6, order=1)), seed=1)]
    redraws = sampler_for("prefix-LM", token_sampler=SeesAll(), selection=Redrawing(), schedule=schedule.Fixed(each=1))
    with pytest.raises(CachedTokenChanged, match="Everything holds it"):
        dataclasses.replace(redraws, cache=Everything()).sample(MODEL, collate(rows, [0]))
    causal = dataclasses.replace(redraws, cache=cache.PrefixCache())
    with pytest.raises(CachedTokenChanged, match="PrefixCache holds it"):
        causal.sample(MODEL, collate([row(spans(prompt(3), answer(6, order=1, order_step=1)), seed=1)], [0]))


def test_remasking_inside_the_block_agrees_with_a_prefix_cache() -> None:
    plain = sampler_for("prefix-LM", selection=Remasking())
    assert_equal_runs(plain, dataclasses.replace(plain, cache=cache.PrefixCache()), requests("prefix-LM"))


def test_corrections_of_a_held_token_are_named() -> None:
    """After the last unmasking a prefix cache holds everything; corrections then need no cache, or one that refreshes."""
    sampler = sampler_for(
        "prefix-LM", token_sampler=SeesAll(), selection=Redrawing(rate=2), stopping=CorrectingSteps(steps=2, bound=2)
    )
    rows = requests("prefix-LM")
    with pytest.raises(CachedTokenChanged):
        dataclasses.replace(sampler, cache=cache.PrefixCache()).sample(MODEL, collate(rows, range(3)))
    assert_equal_runs(sampler, dataclasses.replace(sampler, cache=cache.BlockCache(refresh=1)), rows)


# -- runs that share a forward ------------------------------------------------------------------------------------------


def joined(samplers: list[Sampler], rows: list[Sequence], model: Any = MODEL) -> list[Batch]:
    """Every request in a run of its own; at each step the queries of one shape share a forward."""
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


# -- the third class of tokens, and order that unmasking sets -----------------------------------------------------------


def changed(model: Any, batch: Batch, other: Batch, **more: Any) -> set[int]:
    with torch.no_grad():
        a, b = model(batch, **more), model(other, **more)
    return {
        int(at)
        for kind, scored in a.scored.items()
        for at, x, y in zip(scored.at, scored.logits, b.scored[kind].logits, strict=True)
        if not torch.equal(x, y)
    }


def test_a_truncated_token_influences_nothing() -> None:
    """Neither computed nor held: changing what it shows changes no logit, and a computed one does."""
    batch = collate([row(spans(prompt(5), answer(6)), seed=1)], [0])
    compute = batch.valid.clone()
    compute[0, 3] = compute[0, 9] = False
    reuse = Reuse(compute=compute, keep=torch.zeros_like(compute))
    predict = batch.masked & compute
    for token, moves in ((3, False), (4, True)):
        ids = batch.ids.clone()
        ids[0, token] += 20
        assert bool(changed(MODEL, batch, batch.replace(ids=ids), predict=predict, reuse=reuse)) is moves
    seen = batch.replace(masked=batch.masked & (torch.arange(11) != 9))  # token 9 shows its id, and nobody reads it
    assert not changed(MODEL, batch, seen, predict=predict, reuse=reuse)


@pytest.mark.parametrize("layout", ["order set when unmasked", "prefix-LM"])
def test_only_what_is_needed_is_computed(layout: str) -> None:
    rows = [row(LAYOUTS[layout][0], seed=1)]
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    sampler = sampler_for(layout, selection=selection.InOrder(order=order), schedule=schedule.Fixed(each=2))
    counts, hooks = computed_rows(MODEL)
    try:
        dataclasses.replace(sampler, cache=OnlyWhatIsNeeded()).sample(MODEL, collate(rows, [0]))
    finally:
        for hook in hooks:
            hook.remove()
    given = len(rows[0].spans[0])
    assert counts == [given + 2, 4, 4, 4]


@pytest.mark.parametrize("layout", CODES_ONLY)
def test_codes_of_one_position_may_be_unmasked_at_different_steps(layout: str) -> None:
    """Fault: a position counted as unmasked with its first code, so what read it was held before the other three were known."""
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


def test_order_is_set_when_a_token_is_unmasked() -> None:
    rows = requests("order set when unmasked")
    result, _ = spied(sampler_for("order set when unmasked", schedule=schedule.Fixed(each=1)), rows)
    for b, one in enumerate(rows):
        n = len(one.ids)
        opened = one.masked
        assert sorted(result.order[b, :n][opened].tolist()) == list(range(1, int(opened.sum()) + 1))
        assert (result.segment[b, :n] == 0).all() and (result.order[b, :n][~opened] == 0).all()


def test_unmasked_tokens_never_read_masked_ones() -> None:
    """Step-causal: changing a masked token's position moves no unmasked token, changing an unmasked one moves later ones."""
    one = row(LAYOUTS["order set when unmasked"][0], seed=1)
    run = sampler_for("order set when unmasked", schedule=schedule.Fixed(each=2)).start(collate([one], [0]))
    for _ in range(2):
        assert run.query is not None
        with torch.no_grad():
            run.advance(MODEL(run.query.batch, predict=run.query.predict))
    batch = run.batch
    hidden = batch.masked[0].nonzero().flatten().tolist()
    last = (batch.order[0] == 2).nonzero().flatten().tolist()
    first = (batch.order[0] == 1).nonzero().flatten().tolist()
    assert len(hidden) == 4 and len(last) == 2 and len(first) == 2

    def moved(token: int) -> set[int]:
        position = batch.position.clone()
        position[0, token] += 3
        return changed(MODEL, batch, batch.replace(position=position), predict=batch.valid)

    prompt_ = set(range(6))
    assert moved(hidden[0]) == set(hidden)
    assert moved(last[0]) == {*last, *hidden}
    assert moved(first[0]) == {*first, *last, *hidden}
    assert moved(0) == prompt_ | {*first, *last, *hidden}


def test_what_early_stopping_fills_gets_its_order_too() -> None:
    """Fault: filled tokens kept the order of masked ones: unmasked tokens that read masked ones, and are held by no cache."""
    end = 9
    one = row(spans(prompt(4), answer(8, order=ON_UNMASK, segment=1)), seed=1)
    sampler = sampler_for(
        "order set when unmasked",
        token_sampler=token_sampler.OnlyIds(low=end, high=end + 1, token_sampler=token_sampler.Greedy()),
        selection=selection.InOrder(order=tuple(range(8))),
        schedule=schedule.Fixed(each=1),
        stopping=stopping.EndOfTurn(ids=(end,)),
    )
    result = sampler.sample(MODEL, collate([one], [0]))
    assert result.clock.tolist() == [1] and not result.masked.any()
    assert result.order[0, 4:].tolist() == [1] * 8 and (result.segment == 0).all()
