"""The names of a comparison of samplers: what each stands for, and which are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask.evaluation.sampler_axes import REFERENCE, Variant, named_change, steps_of, variants
from unmask.sampling.aligned import Aligned
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import BlockCache, NoCache, PrefixCache
from unmask.sampling.orders import halton
from unmask.sampling.prior import PrefixLM, UniformIds
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Equal, Fixed, Shift
from unmask.sampling.selection import Confident, InOrder, RandomOrder, Threshold
from unmask.sampling.step_causal import ByPosition, SparseCache
from unmask.sampling.token_sampler import Entropy, Greedy, LogProbability
from unmask.sequence import Kind, Span

TEXT = Span(name="answer", kind=Kind.TEXT, start=3, stop=11, writable=True)
PICTURE = Span(name="image", kind=Kind.CODE, start=0, stop=16, grid=(4, 4), writable=True)
BASE = Sampler(schedule=Fixed(each=1), token_sampler=Greedy(score=Entropy()), selection=Confident(noise=1.0))


def one(axis: str, name: str) -> Variant:
    """The variant that differs in one part alone."""
    given = {"orders": ["own"], "schedules": ["own"], "caches": ["own"], "thresholds": ["none"]} | {axis: [name]}
    return variants(**given, net=None)[-1]  # type: ignore[arg-type]


def test_the_reference_comes_first_and_changes_nothing() -> None:
    found = variants(["random"], ["own"], ["own"], ["none"], net=None)  # type: ignore[arg-type]
    assert [v.name for v in found] == [REFERENCE, "order random"]
    assert found[0](BASE, TEXT) is BASE


def test_the_product_of_four_lists() -> None:
    found = variants(["own", "random"], ["own", "equal"], ["own", "none"], ["none", "0.9"], net=None)  # type: ignore[arg-type]
    assert len({v.name for v in found}) == len(found) == 16
    assert found[-1].name == "order random, schedule equal, cache none, threshold 0.9"


@pytest.mark.parametrize(
    ("axis", "name", "part", "wanted"),
    [
        ("orders", "random", "selection", RandomOrder()),
        ("orders", "confidence", "selection", Confident()),
        ("orders", "confidence", "token_sampler", Greedy(score=LogProbability())),
        ("orders", "left_to_right", "selection", InOrder(order=tuple(range(8)))),
        ("orders", "entropy:noise=0.5", "selection", Confident(noise=0.5)),
        ("schedules", "equal", "schedule", Equal(steps=8)),
        ("schedules", "equal:steps=0.5", "schedule", Equal(steps=4)),
        ("schedules", "equal:steps=0.1", "schedule", Equal(steps=1)),
        ("schedules", "cosine:steps=3", "schedule", Cosine(steps=3)),
        ("schedules", "equal:steps=1", "schedule", Equal(steps=1)),
        ("schedules", "shift:steps=4:shift=0.5", "schedule", Shift(steps=4, shift=0.5)),
        ("caches", "none", "cache", NoCache()),
        ("caches", "prefix", "cache", PrefixCache()),
        ("caches", "prefix", "prior", PrefixLM()),
        ("caches", "block:refresh=4", "cache", BlockCache(refresh=4)),
        ("thresholds", "0.9", "selection", Threshold(value=0.9)),
    ],
)
def test_a_name_stands_for_a_part(axis: str, name: str, part: str, wanted: object) -> None:
    assert getattr(one(axis, name)(BASE, TEXT), part) == wanted


def test_a_change_by_name_has_the_steps_of_any_sampler() -> None:
    """Those of its own schedule, of a block, of the selection, or one for each token; a part that is not named stays."""
    for base, steps in (
        (replace(BASE, schedule=Equal(steps=16)), 16),
        (replace(BASE, blocks=Blocks(length=8)), 8),
        (replace(BASE, schedule=Fixed(each=2**31), selection=Aligned(steps=5)), 5),
    ):
        changed = named_change("shift:shift=0.5", None)(base)
        assert changed == replace(base, schedule=Shift(steps=steps, shift=0.5))
    assert named_change("shift", None)(BASE).schedule.counts(7) == [1] * 7
    assert named_change("shift:steps=0.5", None)(replace(BASE, schedule=Equal(steps=8))).schedule == Shift(
        steps=4, shift=3.0
    )
    assert named_change(None, "block")(BASE) == replace(BASE, cache=BlockCache())
    assert named_change(None, None)(BASE) is BASE


def test_the_prefix_cache_leaves_another_prior_alone() -> None:
    with pytest.raises(ValueError, match="does not fit the prior UniformIds"):
        named_change(None, "prefix")(replace(BASE, prior=UniformIds(sizes={0: 4})))


def test_orders_of_pictures() -> None:
    assert one("orders", "halton")(BASE, PICTURE).selection == InOrder(order=tuple(halton(4, 4)))
    assert sorted(one("orders", "stratified")(BASE, PICTURE).selection.order) == list(range(16))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="codes of a picture, and the task writes text"):
        one("orders", "halton")(BASE, TEXT)
    with pytest.raises(ValueError, match="square picture, got 2 x 8"):
        one("orders", "stratified")(BASE, replace(PICTURE, grid=(2, 8)))


def test_a_schedule_by_position_stays_one() -> None:
    base = replace(BASE, schedule=ByPosition(schedule=Cosine(steps=4)))
    assert one("schedules", "equal:steps=2")(base, PICTURE).schedule == ByPosition(schedule=Equal(steps=2))


@pytest.mark.parametrize(("axis", "name"), [("orders", "random"), ("caches", "none"), ("thresholds", "0.9")])
def test_a_step_causal_sampler_keeps_its_order_and_cache(axis: str, name: str) -> None:
    with pytest.raises(ValueError, match="vary its schedule alone"):
        one(axis, name)(replace(BASE, cache=SparseCache()), TEXT)


def test_the_steps_of_a_sampler_that_decides_itself() -> None:
    many = replace(BASE, schedule=Fixed(each=2**31), selection=Aligned(steps=5))
    assert (steps_of(BASE, 8), steps_of(many, 8), steps_of(many, 3)) == (8, 5, 3)
    assert steps_of(replace(BASE, blocks=Blocks(length=4)), 8) == 4  # steps are those of a block


@pytest.mark.parametrize(
    ("axis", "name", "said"),
    [
        ("orders", "randon", "did you mean 'random'"),
        ("orders", "random:x=1", "has no argument 'x'; it has none"),
        ("orders", "remdm:etta=1", "did you mean 'eta'"),
        ("orders", "remdm:eta", "not NAME=VALUE"),
        ("orders", "", "there is no order ''"),
        ("schedules", "equal:steps=1.5", "steps is neither a whole number nor a share below 1"),
        ("schedules", "equal:steps=-1", "steps is neither a whole number nor a share below 1"),
        ("schedules", "equal:steps=nan", "steps is not a number"),
        ("schedules", "equal:shift=2", "has no argument 'shift'; it has steps"),
        ("schedules", "shift:shift=0", "a factor above 0"),
        ("schedules", "own:steps=4", "it has none"),
        ("caches", "block:refresh=0.5", "refresh counts steps"),
        ("caches", "block:refresh=-1", "refresh counts steps"),
        ("caches", "prefx", "did you mean 'prefix'"),
        ("thresholds", "0", "is not a probability"),
        ("thresholds", "1.1", "is not a probability"),
        ("thresholds", "high", "is not a probability"),
    ],
)
def test_a_wrong_name_is_an_error_before_any_model(axis: str, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one(axis, name)
