"""Fast mode: changes of a sampler that make it cheaper and its results approximate.

Public idea: ``FAST.draw(sampler) -> Sampler``. ``Fast`` holds one change for each kind of task. Each field of ``FastPictures`` and
``FastText`` is one part; None leaves it out, ``EXACT`` has none and ``EVERY`` all. ``acting(change, exact, final)`` names the parts that a
sampler has.
docs/fast.md has the measured cost of each part in quality.

A part that does not fit a sampler leaves it as it is: no guidance, no blocks, a step-causal cache.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.sampling.cache import BlockCache, NoCache
from unmask.sampling.guidance import ClassifierFree, EditGuidance, Interval
from unmask.sampling.presets import fast_dllm
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Shift
from unmask.sampling.selection import Confident
from unmask.sampling.step_causal import ByPosition, SparseCache


@dataclass(frozen=True, kw_only=True)
class FastPictures:
    """What makes pictures cheaper.

    ``interval``: guidance acts in this part of the steps only (Kynkäänniemi et al. 2024) · ``refresh``: the views of guidance other than
    the first run at every so many steps, and their logits are used again in between; not in step-causal decoding, where scoring all masked
    tokens costs more than it saves · ``steps``: this fraction of the steps · ``shift``: time-shifted steps (``schedule.Shift``) in place of
    any other schedule; above 1 the first steps unmask little, which loses less when steps are few. ValueError for a value out of range.
    """

    interval: Interval | None = None
    refresh: int | None = None
    steps: float | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"speed: interval must be two rising numbers in 0..1, got {self.interval}; for example 0.2:0.8"
            )
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"speed: refresh counts steps, got {self.refresh}; 1 runs all views at every step")
        if self.steps is not None and not 0 < self.steps <= 1:
            raise ValueError(
                f"speed: steps must be a fraction above 0 and at most 1, got {self.steps}; 0.5 is half the steps"
            )
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise ValueError(f"speed: shift must be a factor above 0, got {self.shift}; 3 unmasks little at first")

    def __call__(self, sampler: Sampler) -> Sampler:
        guidance, sparse = sampler.guidance, isinstance(sampler.cache, SparseCache)
        if isinstance(guidance, ClassifierFree | EditGuidance):
            interval = guidance.interval if self.interval is None else self.interval
            refresh = guidance.refresh if self.refresh is None or sparse else self.refresh
            sampler = replace(sampler, guidance=replace(guidance, interval=interval, refresh=refresh))
        return replace(sampler, schedule=_paced(sampler.schedule, self.steps or 1, self.shift))


@dataclass(frozen=True, kw_only=True)
class FastText:
    """What makes answers, layouts and critiques cheaper.

    ``threshold``: a step unmasks every candidate at least so probable, and one at least (Fast-dLLM, arXiv 2505.22618), in place of a fixed
    number · ``cache``: all tokens are computed at the first step of a block and at every so many steps, in between only the block
    (``cache.BlockCache``); only where nothing is cached already. ValueError for a value out of range.
    """

    threshold: float | None = None
    cache: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"speed: threshold must be a probability above 0 and at most 1, got {self.threshold}")
        if self.cache is not None and self.cache < 0:
            raise ValueError(
                f"speed: cache counts steps, got {self.cache}; 1 is every step, 0 only the first of a block"
            )

    def __call__(self, sampler: Sampler) -> Sampler:
        if self.threshold is not None and isinstance(sampler.selection, Confident):
            sampler = fast_dllm(sampler, threshold=self.threshold)
        cached = self.cache is None or not isinstance(sampler.cache, NoCache)
        return sampler if cached else replace(sampler, cache=BlockCache(refresh=self.cache or 0))


@dataclass(frozen=True, kw_only=True)
class Fast:
    """The changes of each kind of task: ``draw``: pictures from a prompt and inpainting · ``edit``: edits · ``text``: text of all kinds."""

    draw: FastPictures = field(default_factory=FastPictures)
    edit: FastPictures = field(default_factory=FastPictures)
    text: FastText = field(default_factory=FastText)


EXACT = Fast()
# Every part at its usual value. Fast mode takes those that lost at most one point on validation (bench/pareto.py, docs/fast.md).
EVERY = Fast(
    draw=FastPictures(interval=(0.0, 0.5), refresh=4, steps=0.5, shift=3.0),
    edit=FastPictures(interval=(0.0, 0.5), refresh=4, steps=0.5, shift=3.0),
    text=FastText(threshold=0.9, cache=4),
)
FAST = Fast(
    draw=FastPictures(refresh=EVERY.draw.refresh),
    edit=FastPictures(refresh=EVERY.edit.refresh),
    text=EVERY.text,
)


def acting(change: FastPictures | FastText, exact: Sampler, final: Sampler) -> tuple[str, ...]:
    """The parts of ``change`` that ``final`` has and ``exact`` has not, as ``steps=0.5``.

    An option that a user set in ``final`` afterwards takes the place of a part, which then does not act.
    """
    found, known, now = [], _leaves(exact), _leaves(final)
    for part in dataclasses.fields(change):
        value = getattr(change, part.name)
        if value is None:
            continue
        alone = _leaves(type(change)(**{part.name: value})(exact))
        changed = [path for path in alone if path not in known or _differ(alone[path], known[path])]
        if not _guides(final):
            changed = [path for path in changed if not path.startswith("guidance.")]
        if any(path in now and not _differ(now[path], alone[path]) for path in changed):
            found.append(f"{part.name}={_shown(value)}")
    return tuple(found)


def _shown(value: object) -> str:
    return ":".join(f"{edge:g}" for edge in value) if isinstance(value, tuple) else f"{value:g}"


def _guides(sampler: Sampler) -> bool:
    """Whether guidance has more than one view at any step."""
    return any(getattr(sampler.guidance, name, 0) for name in ("scale", "image_scale"))


def _paced(schedule: Any, part: float, shift: float | None) -> Any:
    """A schedule of ``part`` of the steps, at least one, shifted if it is not already; unchanged if it has no number of steps."""
    if isinstance(schedule, ByPosition):
        return replace(schedule, schedule=_paced(schedule.schedule, part, shift))
    if not isinstance(steps := getattr(schedule, "steps", None), int):
        return schedule
    fewer = math.ceil(part * steps)
    shifted = shift is not None and not isinstance(schedule, Shift)
    return Shift(steps=fewer, shift=shift or 1) if shifted else replace(schedule, steps=fewer)


def _leaves(value: object, path: str = "") -> Mapping[str, object]:
    """The type of each part inside a sampler and the value of each other field, by path."""
    found: dict[str, object] = {path: type(value)}
    for entry in dataclasses.fields(value):  # type: ignore[arg-type]
        inner, below = getattr(value, entry.name), f"{path}.{entry.name}".lstrip(".")
        nested = dataclasses.is_dataclass(inner) and not isinstance(inner, type)
        found |= _leaves(inner, below) if nested else {below: inner}
    return found


def _differ(one: object, other: object) -> bool:
    return one is not other and bool(one != other)
