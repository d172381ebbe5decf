"""Tokens that a step leaves out, and order that unmasking sets (step-causal attention, Sparse-LaViDa, arXiv 2512.14008)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unmask.sampling import schedule, selection, stopping, token_sampler
from unmask.sequence import ON_UNMASK, Batch, collate
from unmask.step import Reuse

from .doubles import OnlyWhatIsNeeded
from .instances import row
from .layouts import LAYOUTS, MODEL, answer, computed_rows, prompt, requests, sampler_for, spans, spied


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
    """A token that is neither computed nor held changes no logit; a computed one does."""
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


def test_order_is_set_when_a_token_is_unmasked() -> None:
    rows = requests("order set when unmasked")
    result, _ = spied(sampler_for("order set when unmasked", schedule=schedule.Fixed(each=1)), rows)
    for b, one in enumerate(rows):
        n = len(one.ids)
        opened = one.masked
        assert sorted(result.order[b, :n][opened].tolist()) == list(range(1, int(opened.sum()) + 1))
        assert (result.segment[b, :n] == opened).all() and (result.order[b, :n][~opened] == 0).all()


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
    """Fault: filled tokens kept the order of masked ones, so unmasked tokens read masked ones and no cache could hold them."""
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
    assert result.order[0, 4:].tolist() == [1] * 8 and result.segment[0].tolist() == [0] * 4 + [1] * 8
