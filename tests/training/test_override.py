"""Settings of a recipe by path: ``training.steps=100``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from unmask.data.mixture import Joint
from unmask.objectives.masked import Masked
from unmask.recipe import Recipe, override

from .tiny import STEPS, Numbers, recipe


@pytest.mark.parametrize(
    ("setting", "read", "value"),
    [
        ("training.steps=7", lambda r: r.training.steps, 7),
        ("optim.lr=3e-4", lambda r: r.optim.lr, 3e-4),
        (" optim.lr = 2 ", lambda r: r.optim.lr, 2.0),
        ("training.bf16=false", lambda r: r.training.bf16, False),
        ("training.bf16=yes", lambda r: r.training.bf16, True),
        ("name=mine", lambda r: r.name, "mine"),
        ("source.stop_at=3", lambda r: r.source.stop_at, "3"),  # None says nothing of its type
        ("objective.complementary=1", lambda r: r.objective.complementary, True),
        ("objective.corruption.otherwise.all=0.5", lambda r: r.objective.corruption.otherwise.all, 0.5),
    ],
)
def test_override(setting: str, read: Callable[[Recipe], Any], value: Any) -> None:
    from unmask.corruption.absorbing import Absorbing
    from unmask.corruption.schedules import Cosine, OftenAll

    base = dataclasses.replace(recipe(), objective=Masked(corruption=Absorbing(otherwise=OftenAll(policy=Cosine()))))
    changed = override(base, [setting])
    assert read(changed) == value and type(read(changed)) is type(value)
    assert base.training.steps == STEPS  # nothing is changed in place


def test_later_overrides_win_and_tuples_are_read() -> None:
    @dataclasses.dataclass(frozen=True)
    class Value:
        sizes: tuple[int, ...] = (1,)
        names: tuple[str, ...] = ()

    assert override(Value(), ["sizes=1,2", "sizes=(3, 4)", "names=a,b"]) == Value(sizes=(3, 4), names=("a", "b"))


def test_parts_are_changed_by_name() -> None:
    base = Joint(parts=(("one", Numbers(), 1), ("two", Numbers(), 8)))
    assert override(base, ["parts.two.stop_at=3"]) == Joint(
        parts=(("one", Numbers(), 1), ("two", Numbers(stop_at="3"), 8))
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no field 'twoo'; did you mean 'two'"):
        override(base, ["parts.twoo.stop_at=3"])
    with pytest.raises(ValueError, match="'parts' cannot be changed from the command line"):
        override(base, ["parts=3"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.steps", "must look like name=value"),
        ("training.step=3", "Training has no field 'step'; did you mean 'steps'"),
        ("zzz=3", "Recipe has no field 'zzz'; known: name"),
        ("training.steps=many", "wanted a whole number like 12"),
        ("training.steps=1.5", "wanted a whole number like 12"),
        ("training.bf16=maybe", "wanted true or false"),
        ("training.steps.more=1", "there is nothing below int"),
        ("model=3", "cannot be changed from the command line"),
        ("training.steps=0", "training.steps must be at least 1, got 0"),
        ("training.log_every=0", "training.log_every must be at least 1"),
        ("optim.lr=0", "optim.lr must be above 0"),
        ("optim.lr=nan", "wanted a number like"),
        ("optim.ema=1.5", "optim.ema must be in 0..1"),
        ("optim.beta1=-0.1", "optim.beta1 must be in 0..1"),
    ],
)
def test_a_bad_override_says_what_is_wrong(setting: str, says: str) -> None:
    with pytest.raises(ValueError) as error:
        override(recipe(), [setting])
    assert says in str(error.value)
