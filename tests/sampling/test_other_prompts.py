"""Guidance with prompts of another length: each view equals a row that has that prompt alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.guidance import NoGuidance
from unmask.sampling.other_prompts import OtherPrompts
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Progress

torch.set_num_threads(1)
OWN, NULL, BARE, REST = [5, 6, 7, 8, 9], [11, 12], [13, 14, 15], [20, 0, 0, 0, 21]
GUIDANCE = OtherPrompts(scale=2.0, instead=(("null", {"prompt"}), ("bare", {"prompt"})), other_scale=1.0)


@pytest.fixture(scope="module")
def model() -> Elastic:
    made = Elastic(replace(SIZES["tiny"], vision=None), mask_id=3).eval()
    init(made, generator("other", 0))
    return made


def row(*prompts: tuple[str, list[int]], field: int = 0) -> Sequence:
    """Prompts, all but the last in a segment of their own, and three masked tokens. ``field``: places that every prompt ends at."""
    ids, spans = list[int](), list[Span]()
    for number, (name, words) in enumerate(prompts):
        last, start = number == len(prompts) - 1, len(ids)
        offset = field - len(words) if field else 0
        ids += words
        place = {"start": start, "stop": len(ids), "segment": 0 if last else number + 1, "position_offset": offset}
        spans.append(Span(name=name, kind=Kind.TEXT, **place))
    start = len(ids)
    for name, at, stop in (("assistant", 0, 1), ("answer", 1, 4), ("end", 4, 5)):
        spans.append(Span(name=name, kind=Kind.TEXT, start=start + at, stop=start + stop, writable=name == "answer"))
    masked = torch.zeros(start + 5, dtype=torch.bool)
    masked[start + 1 : start + 4] = True
    return Sequence(ids=torch.tensor(ids + REST), masked=masked, spans=tuple(spans))


def both(field: int = 0) -> Sequence:
    return row(("null", NULL), ("bare", BARE), ("prompt", OWN), field=field)


def logits(model: Elastic, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch).logits(Kind.TEXT)


def progress(batch: Batch) -> Progress:
    zero = torch.zeros(batch.rows, dtype=torch.long)
    return Progress(number=zero, of=zero + 3, length=batch.ids.shape[1])


@pytest.mark.parametrize("field", [0, 7])
def test_each_view_is_a_row_with_that_prompt_alone(model: Elastic, field: int) -> None:
    batch = collate([both(field)], [0])
    views = GUIDANCE.views(batch, progress(batch))
    assert len(views) == 3
    for view, words in zip(views, (OWN, NULL, BARE), strict=True):
        alone = collate([row(("prompt", words), field=field)], [0])
        torch.testing.assert_close(logits(model, view), logits(model, alone), atol=1e-5, rtol=0)
        assert view.position[view.valid].tolist() == alone.position[0].tolist()


def test_other_prompts_change_nothing_without_guidance(model: Elastic) -> None:
    batch, alone = collate([both()], [0]), collate([row(("prompt", OWN))], [0])
    torch.testing.assert_close(logits(model, batch), logits(model, alone), atol=1e-5, rtol=0)
    none = replace(GUIDANCE, scale=0.0, other_scale=0.0)
    assert len(none.views(batch, progress(batch))) == 1


def test_the_merge_is_linear_in_both_scales(model: Elastic) -> None:
    batch = collate([both()], [0])
    predictions = [model(view) for view in GUIDANCE.views(batch, progress(batch))]
    c, u, v = (p.logits(Kind.TEXT) for p in predictions)
    merged = GUIDANCE.merge(batch, predictions, progress(batch)).logits(Kind.TEXT)
    torch.testing.assert_close(merged, c + 2 * (c - u) + (c - v), atol=1e-5, rtol=0)
    second = replace(GUIDANCE, scale=0.0)
    merged = second.merge(batch, [predictions[0], predictions[2]], progress(batch)).logits(Kind.TEXT)
    torch.testing.assert_close(merged, c + (c - v), atol=1e-5, rtol=0)


def test_rows_with_prompts_of_different_lengths_are_batch_invariant(model: Elastic) -> None:
    sampler = Sampler(schedule=Equal(steps=3), token_sampler=Greedy(), selection=Confident(), guidance=GUIDANCE)
    rows = [both(), row(("null", BARE + NULL), ("bare", NULL), ("prompt", OWN[:2]))]
    together = sampler.sample(model, collate(rows, [0, 1]))
    for number, one in enumerate(rows):
        alone = sampler.sample(model, collate([one], [number]))
        span = one.span("answer")
        assert together.ids[number, span.start : span.stop].tolist() == alone.ids[0, span.start : span.stop].tolist()
    plain = replace(sampler, guidance=NoGuidance()).sample(model, collate(rows, [0, 1]))
    assert not torch.equal(plain.ids, together.ids)
