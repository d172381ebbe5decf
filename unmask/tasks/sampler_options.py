"""Sampler options by the names that other libraries use: steps, guidance scale, temperature, top-p.

Public idea: ``with_options(sampler, settings, steps, guidance_scale, temperature, top_p) -> Sampler``. ``OPTIONS`` is the table of which
field of a sampler each option sets. Every other field is a setting by its path, for example ``"schedule.shift=3"``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from unmask.recipe import override
from unmask.sampling.sampler import Sampler

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Option:
    """``flag``: its name at the command line · ``paths``: the fields it may set; the first that the sampler has is taken ·
    ``lowest``, ``highest``: bounds of its value; ``above``: the lowest value itself is out of bounds.
    """

    flag: str
    paths: tuple[str, ...]
    lowest: float
    highest: float = math.inf
    above: bool = False

    def bounds(self) -> str:
        """The permitted values, as an error message has them."""
        if math.isinf(self.lowest):
            return "a finite number"
        if math.isinf(self.highest):
            return f"at least {self.lowest}"
        return f"{'above' if self.above else 'at least'} {self.lowest} and at most {self.highest}"

    def allows(self, value: float) -> bool:
        inside = self.lowest <= value <= self.highest
        return math.isfinite(value) and inside and not (self.above and value == self.lowest)


OPTIONS = {
    "steps": Option(flag="--steps", paths=("schedule.steps", "selection.steps"), lowest=1),
    "guidance_scale": Option(flag="--guidance", paths=("guidance.scale",), lowest=-math.inf),
    "temperature": Option(
        flag="--temperature",
        paths=("token_sampler.temperature", "token_sampler.token_sampler.temperature"),
        lowest=0,
    ),
    "top_p": Option(
        flag="--top-p",
        paths=("token_sampler.top_p", "token_sampler.token_sampler.top_p"),
        lowest=0,
        highest=1,
        above=True,
    ),
}


def with_options(
    sampler: Sampler,
    settings: Sequence[str] = (),
    steps: int | None = None,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
) -> Sampler:
    """The sampler with these options (None: as it is) and settings.

    ``steps``: of the unmasking schedule; where the sampler decodes in blocks, per block · ``guidance_scale``: 0 turns guidance off ·
    ``temperature``: 0 is greedy · ``top_p``: sample from the smallest set of tokens with this probability; 1 is all of them. ValueError
    where the sampler has no such field, for a value out of range, and where an option and a setting change the same field.
    """
    given = {"steps": steps, "guidance_scale": guidance_scale, "temperature": temperature, "top_p": top_p}
    for name, value in given.items():
        if value is not None:
            sampler = _with(sampler, name, value, settings)
    return override(sampler, [_where_it_is(sampler, setting) for setting in settings])


def _with(sampler: Sampler, name: str, value: float, settings: Sequence[str]) -> Sampler:
    option = OPTIONS[name]
    for setting in settings:
        if setting.partition("=")[0].strip() in option.paths:
            raise ValueError(f"{option.flag} {value} and -o {setting} change the same field; give one of them")
    if not option.allows(value):
        raise ValueError(f"{name} ({option.flag}) must be {option.bounds()}, got {value}")
    for path in option.paths:
        if _has(sampler, path.split(".")):
            return _replace(sampler, path.split("."), value)
    raise ValueError(_not_there(sampler, option))


def _not_there(sampler: Sampler, option: Option) -> str:
    part, field = option.paths[0].split(".")
    value = getattr(sampler, part)
    numbers = [f.name for f in dataclasses.fields(value) if isinstance(getattr(value, f.name), int | float)]
    hint = f"use {' or '.join(f'-o {part}.{n}=…' for n in numbers)}" if numbers else f"leave out {option.flag}"
    return (
        f"{option.flag} does not apply: the {part} of this task is {type(value).__name__}, which has no {field}; {hint}"
    )


def _where_it_is(sampler: Sampler, setting: str) -> str:
    """``schedule.steps=8`` as ``selection.steps=8`` where the sampler has its steps there; other settings as they are."""
    path, equals, value = setting.partition("=")
    for option in OPTIONS.values():
        first, *others = option.paths
        if path.strip() == first and not _has(sampler, first.split(".")):
            return next((f"{p}{equals}{value}" for p in others if _has(sampler, p.split("."))), setting)
    return setting


def _has(value: object, path: Sequence[str]) -> bool:
    for name in path:
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def _replace(value: D, path: Sequence[str], new: float) -> D:
    """A dataclass with the field at ``path`` replaced."""
    inner = new if len(path) == 1 else _replace(getattr(value, path[0]), path[1:], new)
    return dataclasses.replace(value, **{path[0]: inner})
