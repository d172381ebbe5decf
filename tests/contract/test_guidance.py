"""The laws of guidance: scale 0 is none, a view keeps its place, merging sees the batch, views are the rows of the request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.sampling import guidance
from unmask.sequence import Batch, Kind, collate, stack
from unmask.step import Prediction, Progress, Scored

from .doubles import SeesAll
from .instances import (
    ALL_GUIDANCES,
    BASE,
    DROP,
    EDIT,
    GUIDANCES,
    NULL,
    assert_batch_invariant,
    fake,
    name_of,
    requests,
    run,
    sequence,
    tiny,
)

every_guidance = pytest.mark.parametrize("part", ALL_GUIDANCES, ids=name_of)


def at(number: int, of: int, batch: Batch) -> Progress:
    full = torch.full((batch.rows,), 0)
    return Progress(number=full + number, of=full + of, length=batch.ids.shape[1])


def test_scale_zero_equals_no_guidance() -> None:
    _, plain, _ = run(BASE, requests(BASE))
    free = guidance.ClassifierFree(scale=0.0, drop=DROP, null_id=NULL)
    never = guidance.ClassifierFree(scale=4.0, drop=DROP, null_id=NULL, interval=(0.0, 0.0))
    for part in (free, dataclasses.replace(EDIT, scale=0.0, image_scale=0.0), never):
        _, guided, steps = run(dataclasses.replace(BASE, guidance=part), requests(BASE))
        assert torch.equal(guided.ids, plain.ids) and steps
    _, guided, _ = run(dataclasses.replace(BASE, guidance=GUIDANCES[1]), requests(BASE))
    assert not torch.equal(guided.ids, plain.ids)


@every_guidance
def test_a_view_keeps_its_place(part: Any) -> None:
    """The first view is the batch itself; at every step the views are the first ones of the longest list, tensor by tensor."""
    batch = collate(requests(BASE), range(4))
    lists = [part.views(batch, at(number, 8, batch)) for number in range(8)]
    longest = max(lists, key=len)
    for views in lists:
        assert views[0] is batch
        for view, known in zip(views, longest, strict=False):
            assert torch.equal(view.ids, known.ids) and torch.equal(view.kind, known.kind)


@every_guidance
def test_views_differ_in_given_tokens_only(part: Any) -> None:
    batch = collate(requests(BASE), range(4))
    for view in part.views(batch, at(3, 8, batch)):
        assert torch.equal(view.ids[batch.writable], batch.ids[batch.writable])
        for name in ("masked", "writable", "order", "leader", "seed", "clock"):
            assert torch.equal(getattr(view, name), getattr(batch, name)), name
        # Given tokens may be left out; then the writable ones move, all of a row alike.
        assert not bool((view.valid & ~batch.valid).any())
        for name in ("valid", "segment"):
            assert torch.equal(getattr(view, name)[batch.writable], getattr(batch, name)[batch.writable]), name
        for moved, writable in zip(view.position - batch.position, batch.writable & batch.valid, strict=True):
            assert len(moved[writable].unique()) == 1


@every_guidance
def test_merging_equal_views_changes_nothing_and_keeps_the_tokens(part: Any) -> None:
    batch = collate(requests(BASE), range(4))
    progress = at(3, 8, batch)
    one = fake(batch)
    merged = part.merge(batch, [one] * len(part.views(batch, progress)), progress)
    for kind, scored in one.scored.items():
        assert torch.equal(merged.scored[kind].at, scored.at)
        torch.testing.assert_close(merged.logits(kind), scored.logits, atol=1e-4, rtol=1e-4)


@every_guidance
def test_a_kind_without_logits_passes(part: Any) -> None:
    """Continuous tokens have hidden states alone."""
    batch = collate(requests(BASE)[:1], [0])
    progress = at(3, 8, batch)
    plain = Scored(at=torch.tensor([5]), hidden=torch.ones(1, 4))
    given = Prediction(scored={**fake(batch).scored, 7: plain})
    merged = part.merge(batch, [given] * len(part.views(batch, progress)), progress)
    assert merged.scored[7].logits is None and torch.equal(merged.scored[7].hidden, plain.hidden)


@dataclass(frozen=True, kw_only=True)
class ByMasked:
    """Guidance that needs the batch when it merges: it acts where a row has more than ``least`` masked tokens."""

    least: int

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        return [batch, batch.drop({"prompt"}, NULL)]

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        acting_B = batch.masked.sum(1) > self.least
        first, other = predictions
        merged = {
            kind: torch.where(
                acting_B[progress.row(scored.at)][:, None],
                3 * first.logits(kind) - 2 * other.logits(kind),
                first.logits(kind),
            )
            for kind, scored in first.scored.items()
        }
        return first.with_logits(merged)


def test_merging_sees_the_batch() -> None:
    rows = requests(BASE)
    results = [assert_batch_invariant(dataclasses.replace(BASE, guidance=ByMasked(least=n)), rows) for n in (0, 8, 99)]
    _, plain, _ = run(BASE, rows)
    assert torch.equal(results[2].ids, plain.ids[:, : results[2].ids.shape[1]])
    assert not torch.equal(results[0].ids, results[1].ids) and not torch.equal(results[1].ids, results[2].ids)


def test_stacked_views_equal_views_one_by_one() -> None:
    batch = collate(requests(BASE), range(4))
    views, model = EDIT.views(batch, at(0, 1, batch)), tiny()
    with torch.no_grad():
        together = model(stack(views), predict=batch.masked.repeat(3, 1))
        alone = [model(view, predict=batch.masked) for view in views]
    for kind in (Kind.CODE, Kind.TEXT):
        one_by_one = torch.cat([p.logits(kind) for p in alone])
        torch.testing.assert_close(together.logits(kind), one_by_one, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True, kw_only=True)
class ScoresGiven(SeesAll):
    """Scores the given tokens too."""

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        return batch.valid


def test_scoring_a_token_that_a_view_drops_is_named() -> None:
    """Fault: the source's codes are text in the view without them, so each view got a share of the other's tokens."""
    image, source = ("image", Kind.CODE, 16, True), ("source", Kind.CODE, 16, False)
    rows = [sequence(("prompt", Kind.TEXT, 2, False), source, image)]
    with pytest.raises(ValueError, match="row 0, token 2 is to be scored, but guidance drops it"):
        run(dataclasses.replace(BASE, guidance=GUIDANCES[1], token_sampler=ScoresGiven()), rows)
    _, result, _ = run(dataclasses.replace(BASE, guidance=GUIDANCES[1], token_sampler=SeesAll()), rows)
    assert not result.masked.any()


@pytest.mark.parametrize("change", ["fewer", "others", "none"])
def test_views_that_scored_different_tokens_are_a_named_error(change: str) -> None:
    """Fault: sizes that did not match failed in the arithmetic, and equal numbers of other tokens were merged."""
    batch = collate(requests(BASE)[:1], [0])
    progress = at(3, 8, batch)
    part = guidance.ClassifierFree(scale=1.0, drop=DROP, null_id=NULL)
    one = fake(batch)
    text = one.scored[Kind.TEXT]
    assert text.logits is not None and len(text.at) > 1
    other = {
        "fewer": {Kind.TEXT: Scored(at=text.at[1:], logits=text.logits[1:])},
        "others": {Kind.TEXT: Scored(at=text.at + 1, logits=text.logits)},
        "none": {},
    }[change]
    with pytest.raises(guidance.ViewsDiffer, match=f"of kind {int(Kind.TEXT)}, guidance view 1 scored"):
        part.merge(batch, [one, Prediction(scored=other)], progress)
