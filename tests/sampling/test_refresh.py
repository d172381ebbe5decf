"""Guidance whose other views run at every k-th step: k = 1 is exact, k = 2 equals a plain loop, and no row depends on the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.instances import (
    BASE,
    DROP,
    EDIT,
    NULL,
    ORDER,
    assert_batch_invariant,
    fake,
    requests,
    run,
    sequence,
    tiny,
)
from unmask.methods.remdm import remdm
from unmask.protocols import Refreshing
from unmask.sampling import blocks, cache, guidance, schedule, selection
from unmask.sampling.guidance import ClassifierFree, NoGuidance
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Reuse

FREE = ClassifierFree(scale=3.0, drop=DROP, null_id=NULL)
SAMPLERS = {
    "confident": BASE,
    "in order": dataclasses.replace(BASE, selection=selection.InOrder(order=ORDER)),
    "blocks": dataclasses.replace(BASE, blocks=blocks.Blocks(length=4)),
    "threshold": dataclasses.replace(BASE, selection=selection.Threshold(value=0.2), schedule=schedule.Equal(steps=1)),
    "remasking": remdm(BASE, eta=0.5),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The reference: guidance inside the model, on dense logits, for one row whose every step is guided.

    ``without``: the row as each other view shows it · ``mix``: blends the dense logits of all views.
    """

    without: tuple[Callable[[Batch], Batch], ...]
    mix: Callable[..., Tensor]
    every: int
    kept: list[dict[int, Tensor]] = field(default_factory=list)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert batch.rows == 1
        if int(batch.clock) % self.every == 0:
            self.kept[:] = [_dense(fake(view(batch), predict=batch.masked), batch) for view in self.without]
        first = fake(batch, predict=predict)
        merged = {
            kind: self.mix(first.logits(kind), *(view[kind][scored.at] for view in self.kept))
            for kind, scored in first.scored.items()
        }
        return first.with_logits(merged)


def _dense(prediction: Prediction, batch: Batch) -> dict[int, Tensor]:
    made = {}
    for kind, scored in prediction.scored.items():
        logits = prediction.logits(kind)
        made[kind] = logits.new_full((batch.ids.numel(), logits.shape[1]), torch.nan)
        made[kind][scored.at] = logits
    return made


def refreshed(part: Any, every: int) -> Any:
    return dataclasses.replace(part, refresh=every)


@every_sampler
@pytest.mark.parametrize("part", [FREE, EDIT], ids=["free", "edit"])
def test_refreshing_at_every_step_is_exact(sampler: Sampler, part: Any) -> None:
    """The bits of a run whose every step computes all views, with a network."""
    model = tiny("refresh")
    exact = dataclasses.replace(sampler, guidance=part)
    _, plain, _ = run(exact, requests(sampler), model)
    _, again, _ = run(dataclasses.replace(exact, guidance=refreshed(part, 1)), requests(sampler), model)
    assert torch.equal(plain.ids, again.ids) and torch.equal(plain.score, again.score)
    kept = dataclasses.replace(exact, guidance=refreshed(part, 10**6))
    _, other, _ = run(kept, requests(sampler), model)
    assert not torch.equal(plain.ids, other.ids), "the test would not notice a refresh that does nothing"


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("name", ["confident", "in order"])
@pytest.mark.parametrize("edits", [False, True])
def test_equals_a_plain_loop(name: str, every: int, edits: bool) -> None:
    sampler = SAMPLERS[name]
    one = requests(SAMPLERS["in order"])[:1] if not edits else [EDITED]
    if edits:
        part: Any = EDIT
        plain = Plain(
            without=(lambda b: b.drop({"prompt"}, NULL), lambda b: b.drop({"prompt", "source"}, NULL)),
            mix=lambda c, e, u: 2.2 * ((1 + 1.4) * c - 1.4 * e) - 1.2 * u,
            every=every,
        )
    else:
        part = FREE
        plain = Plain(without=(lambda b: b.drop({"prompt"}, NULL),), mix=lambda c, u: 4.0 * c - 3.0 * u, every=every)
    _, wanted, _ = run(dataclasses.replace(sampler, guidance=NoGuidance()), one, plain)
    _, found, _ = run(dataclasses.replace(sampler, guidance=refreshed(part, every)), one)
    assert torch.equal(found.ids, wanted.ids)


EDITED = sequence(
    ("prompt", Kind.TEXT, 3, False), ("source", Kind.CODE, 16, False), ("image", Kind.CODE, 16, True), seed=3
)


@dataclass(frozen=True, kw_only=True)
class Counting:
    """How many rows each forward had."""

    rows: list[int] = field(default_factory=list)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.rows.append(batch.rows)
        return fake(batch, predict=predict)


def test_the_other_views_run_at_every_kth_step_of_the_interval() -> None:
    sampler = dataclasses.replace(BASE, schedule=schedule.Equal(steps=10))
    one = requests(SAMPLERS["in order"])[:1]

    def rows(part: Any, sampler: Sampler = sampler) -> list[int]:
        counting = Counting()
        run(dataclasses.replace(sampler, guidance=part), one, counting)
        return counting.rows

    assert rows(refreshed(FREE, 3)) == [2, 1, 1, 2, 1, 1, 2, 1, 1, 2]
    assert rows(dataclasses.replace(FREE, refresh=2, interval=(0.4, 0.8))) == [1, 1, 1, 2, 1, 2, 1, 2, 1, 1]
    assert rows(refreshed(EDIT, 4)) == [3, 1, 1, 1, 3, 1, 1, 1, 3, 1]
    halves = dataclasses.replace(sampler, blocks=blocks.Blocks(length=8), schedule=schedule.Equal(steps=4))
    assert rows(refreshed(FREE, 3), halves) == [2, 1, 1, 2] * 2, "every block begins with all views"


def test_guidance_acts_at_steps_beyond_the_planned_ones() -> None:
    """Fault: a selection that takes less than planned, as a threshold does, ran without guidance after the planned steps."""
    one, counting = requests(SAMPLERS["in order"])[:1], Counting()
    beyond = dataclasses.replace(SAMPLERS["threshold"], selection=selection.Threshold(value=1.0), guidance=FREE)
    run(beyond, one, counting)
    assert len(counting.rows) > 2 and set(counting.rows) == {2}
    early = Counting()
    run(dataclasses.replace(beyond, guidance=dataclasses.replace(FREE, interval=(0.0, 0.9))), one, early)
    assert set(early.rows) == {1}, "an interval that ends before 1 keeps to the planned steps"


@every_sampler
@pytest.mark.parametrize("part", [FREE, EDIT], ids=["free", "edit"])
@pytest.mark.parametrize("every", [2, 3])
def test_rows_at_different_steps_do_not_change_each_other(sampler: Sampler, part: Any, every: int) -> None:
    """Rows of different length stand at different steps, so one needs its views while another uses those it has."""
    assert_batch_invariant(dataclasses.replace(sampler, guidance=refreshed(part, every)), requests(sampler))
    inside = dataclasses.replace(refreshed(part, every), interval=(0.3, 0.9))
    assert_batch_invariant(dataclasses.replace(sampler, guidance=inside), requests(sampler))


@pytest.mark.parametrize("policy", [cache.PrefixCache(), cache.BlockCache(refresh=2)])
def test_caches_and_refreshing_work_together(policy: Any) -> None:
    """An exact cache changes nothing; an approximate one stays batch-invariant."""
    model = tiny("refresh")
    sampler = dataclasses.replace(BASE, guidance=refreshed(FREE, 2))
    cached = dataclasses.replace(sampler, cache=policy)
    together = assert_batch_invariant(cached, requests(BASE), model)
    if policy.exact:
        _, plain, _ = run(sampler, requests(BASE), model)
        assert torch.equal(together.ids, plain.ids)


def test_a_token_that_the_last_refresh_did_not_score_is_not_guided() -> None:
    batch, _, _ = run(BASE, requests(BASE)[:1])
    progress = guidance.Progress(number=torch.tensor([1]), of=torch.tensor([8]), length=batch.ids.shape[1])
    part, one = refreshed(FREE, 4), fake(batch)
    text = one.scored[Kind.TEXT]
    assert text.logits is not None
    kept = Prediction(scored={Kind.TEXT: dataclasses.replace(text, at=text.at[1:], logits=text.logits[1:] + 1)})
    views, _ = part.completed([one], [kept], progress)
    merged = part.merge(batch, views, progress)
    assert torch.equal(merged.logits(Kind.TEXT)[:1], text.logits[:1])
    assert torch.equal(merged.logits(Kind.CODE), one.logits(Kind.CODE))
    torch.testing.assert_close(merged.logits(Kind.TEXT)[1:], text.logits[1:] - 3)


@pytest.mark.parametrize("part", [FREE, EDIT], ids=["free", "edit"])
def test_a_refresh_below_one_is_a_named_error(part: Any) -> None:
    assert isinstance(part, Refreshing)
    with pytest.raises(ValueError, match="guidance.refresh counts steps, got 0; 1 computes all views at every step"):
        refreshed(part, 0)
