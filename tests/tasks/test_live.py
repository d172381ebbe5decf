"""Changes during a drawing: what is masked again, what stays, and that a drawing without a change is the plain one, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.objectives.likelihood import token_log_probabilities
from unmask.pipeline.model import Model
from unmask.sampling.schedule import Cosine, Equal, Fixed, Rest
from unmask.sequence import collate, writable_tokens
from unmask.tasks.generate import Generate, picture_so_far
from unmask.tasks.live import Live, RunOver, TooManyChanges, covered
from unmask.tasks.running import StepEvent
from unmask.tokens.layouts import layout_of

from ..tiny_model import make

LEFT, RIGHT = ("red apple", (0.0, 0.0, 0.5, 1.0)), ("cat", (0.5, 0.0, 1.0, 1.0))
OPTIONS: dict[str, Any] = {"seed": 4, "plan": False, "steps": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return unmask.load(make(tmp_path_factory.mktemp("tiny")))


def drawn(model: Model, at: int, *changes: dict[str, Any], **options: Any) -> tuple[Any, list[StepEvent], Live]:
    """A drawing with some changes after step ``at``."""
    events: list[StepEvent] = []

    def follow(event: StepEvent) -> None:
        events.append(event)
        if event.number == at and not live.count:
            for change in changes:
                live.change(**change)

    live = Live(on_step=follow, **{k: options.pop(k) for k in ("hold", "least") if k in options})
    return model.generate("a red apple", **{**OPTIONS, **options}, live=live)[0], events, live


def mask_of(event: StepEvent) -> torch.Tensor:
    return picture_so_far(event.sequence, "image")[1]


def same(a: Any, b: Any) -> bool:
    return a.image.tobytes() == b.image.tobytes()


@pytest.mark.parametrize("sampler", [None, "remdm"])
def test_without_a_change_it_is_the_plain_drawing(model: Model, sampler: str | None) -> None:
    if sampler:
        from unmask.methods.remdm import remdm

        model = model.with_sampler(remdm)
    plain = model.generate("a red apple", **OPTIONS)[0]
    live, events, _ = drawn(model, 0)
    assert same(plain, live) and plain.settings == live.settings
    assert {event.patch for event in events} == {0}


@pytest.mark.parametrize("at", [2, 5, 7])
def test_a_change_that_changes_nothing_leaves_the_drawing_as_it_is(model: Model, at: int) -> None:
    """Clock, schedule, noise and time of the rest are those of the whole."""
    found, events, _ = drawn(model, at, {"prompt": "a  red apple"})
    assert same(model.generate("a red apple", **OPTIONS)[0], found)
    assert events[-1].patch == 1 and [e.number for e in events] == list(range(1, 9))


def test_a_painted_region_is_masked_again_and_nothing_else(model: Model) -> None:
    region = Image.new("L", (20, 20))
    region.paste(255, (0, 0, 3, 20))  # touches codes of the first two columns, of eight
    _, events, _ = drawn(model, 5, {"region": region})
    before, after = events[4], next(e for e in events if e.patch)
    assert bool(mask_of(after)[:, :2].all())
    assert not bool((mask_of(after) & ~mask_of(before))[:, 2:].any())
    stays = ~mask_of(after)
    codes = [picture_so_far(e.sequence, "image")[0] for e in (after, events[-1])]
    assert torch.equal(codes[0][stays], codes[1][stays]), "what stays is never written again"
    assert not bool(mask_of(events[-1]).any())


def test_boxes_mask_where_they_were_and_where_they_are(model: Model) -> None:
    old, new = [LEFT, RIGHT], [("red apple", (0.0, 0.0, 0.5, 0.5)), RIGHT]
    found, events, live = drawn(model, 5, {"boxes": new}, plan=layout_of(old))
    after = mask_of(next(e for e in events if e.patch))
    assert bool(after[:, :4].all()), "the old box and the new one"
    assert not bool((after & ~mask_of(events[4]))[:, 4:].any())
    assert found.plan == layout_of(new) == live.task.plan


def test_which_codes_a_box_covers() -> None:
    quarter = layout_of([("a", (0.0, 0.0, 0.25, 0.5))])
    assert covered(None, quarter, 4, 4).int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert not bool(covered(quarter, quarter, 4, 4).any())
    twice = layout_of([("a", (0.0, 0.0, 0.25, 0.5))] * 2)
    assert int(covered(quarter, twice, 4, 4).sum()) == 2, "one more of the same"
    renamed = layout_of([("b", (0.0, 0.0, 0.25, 0.5))])
    assert int(covered(quarter, renamed, 4, 4).sum()) == 2
    thin = layout_of([("a", (0.5, 0.5, 0.51, 0.51))])
    assert covered(thin, None, 4, 4).nonzero().tolist() == [[2, 2]]


@pytest.mark.parametrize("least", [0.0, 0.9, 1.0])
def test_a_new_prompt_masks_what_it_makes_less_probable(model: Model, least: float) -> None:
    _, events, _ = drawn(model, 5, {"prompt": "two blue cars"}, least=least)
    first = next(i for i, e in enumerate(events) if e.patch)
    before = events[first - 1].sequence
    kept = ~mask_of(events[first - 1]).flatten()
    codes = picture_so_far(before, "image")[0].flatten()
    log_p = []
    for prompt in ("a red apple", "two blue cars"):
        row = Generate(prompt=prompt).build(model.parts)
        at, ids = writable_tokens(row), row.ids.clone()
        ids[at[kept]] = codes[kept]
        log_p.append(token_log_probabilities(model.parts.net, collate([replace(row, ids=ids)], [0]))[0, at])
    unfit = kept & (log_p[1] - log_p[0] < (math.log(least) if least else -math.inf))
    assert torch.equal(mask_of(events[first]).flatten(), ~kept | unfit)
    assert bool(unfit.any()) == (least > 0) and not bool((kept & unfit).all())


def test_a_held_drawing_takes_changes_after_its_last_token(model: Model) -> None:
    region = Image.new("L", (8, 8), 255)
    found, events, live = drawn(model, 8, {"region": region}, hold=0.05)
    assert [e.number for e in events] == list(range(1, 17)), "the clock goes on, so the noise is new"
    assert events[-1].patch == 1 and not same(found, model.generate("a red apple", **OPTIONS)[0])
    with pytest.raises(RunOver, match="start another"):
        live.change(prompt="a cat")


def test_changes_are_counted_over_all_runs_of_a_held_drawing(model: Model) -> None:
    region, seen = Image.new("L", (8, 8), 255), list[tuple[int, int]]()

    def follow(event: StepEvent) -> None:
        seen.append((event.number, event.patch))
        if event.number in (4, 8) and live.count < 2:
            live.change(region=region)

    live = Live(on_step=follow, hold=0.05)
    model.generate("a red apple", **{**OPTIONS, "steps": 4}, live=live)
    assert seen[-1] == (12, 2) and [patch for _, patch in seen] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_layout_that_the_model_made_is_dropped_with_its_prompt(model: Model) -> None:
    found, _, live = drawn(model, 3, {"prompt": "two blue cars"}, plan=True)
    assert found.plan is None and found.prompt == "two blue cars" == live.task.prompt
    given, _, _ = drawn(model, 3, {"prompt": "two blue cars"}, plan=layout_of([LEFT]))
    assert given.plan == layout_of([LEFT])


def test_what_is_refused(model: Model) -> None:
    for wrong, words in (
        ({}, "the change is empty"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"boxes": [("", (0, 0, 1, 1))]}, "no phrase"),
        ({"region": Image.new("L", (8, 8))}, "the region is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            drawn(model, 2, wrong)
    with pytest.raises(TooManyChanges, match="send fewer"):
        drawn(model, 2, *[{"boxes": [LEFT]}] * 20)
    with pytest.raises(ValueError, match="one attempt"):
        model.generate("a cat", attempts=2, live=Live())
    with pytest.raises(ValueError, match="one picture"):
        model.generate("a cat", n=2, live=Live())
    live = Live()
    model.generate("a cat", plan=False, live=live)
    with pytest.raises(ValueError, match="one drawing"):
        model.generate("a cat", plan=False, live=live)
    with pytest.raises(ValueError, match="hold must be"):
        Live(hold=1000)


@pytest.mark.parametrize("schedule", [Cosine(steps=8), Equal(steps=5), Fixed(each=7)])
def test_the_rest_of_a_schedule_goes_on_where_it_was(schedule: Any) -> None:
    counts, rest = schedule.counts(64), Rest(schedule=schedule, total=64)
    for taken in range(len(counts)):
        left = 64 - sum(counts[:taken])
        assert rest.counts(left) == counts[taken:] and rest.taken(left) == taken
    for tokens in range(1, 65):
        parts = rest.counts(tokens)
        assert sum(parts) == tokens and min(parts) >= 1 and len(parts) + rest.taken(tokens) == len(counts)
