"""What a comparison of samplers varies: the order of unmasking, the schedule, the cache and the threshold of probability.

Public ideas: ``variants(orders, schedules, caches, thresholds, net) -> [Variant]``, the product of four lists of names;
``variant(preset, span) -> Sampler``; ``named_change(schedule, cache)``, what --schedule and --cache of the commands stand for;
``sampler_change(name, schedule, cache, settings)`` with a method's sampler before them. A name may have arguments: ``equal:steps=8``,
``block:refresh=4``, ``remdm:eta=0.2``.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from unmask.pipeline.catalogue import Changes, find_sampler, for_network
from unmask.pipeline.catalogue import samplers as named_samplers
from unmask.protocols import Denoiser, UnmaskingSchedule
from unmask.sampling.cache import BlockCache, CroppedCache, NoCache, PrefixCache, PromptCache
from unmask.sampling.free_cache import FreeCache, ReleasedFreeCache
from unmask.sampling.orders import halton, stratified
from unmask.sampling.presets import fast_dllm, with_score
from unmask.sampling.prior import AllMasked, PrefixLM
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Curved, Equal, ReverseTime, Shift, logit_normal
from unmask.sampling.selection import Confident, InOrder, RandomOrder
from unmask.sampling.step_causal import ByPosition, SparseCache
from unmask.sampling.token_sampler import LogProbability
from unmask.sequence import Kind, Span

Change = Callable[[Sampler, Span], Sampler]  # (sampler of the model, span that is unmasked) -> Sampler
OWN, NONE = "own", "none"
_MOST_TOKENS = 2**14  # more than any answer or picture has: a schedule has at most as many steps as it gets tokens
REFERENCE = "reference"  # the name of the variant that changes nothing


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One sampler of a comparison: the names of its four parts, and the changes that they stand for.

    The threshold is applied last: it takes the place of order and schedule.
    """

    order: str
    schedule: str
    cache: str
    threshold: str
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        """The parts that differ from the model's own; ``reference`` where none does."""
        given = {"order": self.order, "schedule": self.schedule, "cache": self.cache}
        parts = [f"{axis} {name}" for axis, name in given.items() if name != OWN]
        parts += [f"threshold {self.threshold}"] if self.threshold != NONE else []
        return ", ".join(parts) or REFERENCE

    def __call__(self, base: Sampler, span: Span) -> Sampler:
        """The model's sampler with the changes. ValueError where one does not apply to it."""
        for change in self.changes:
            base = change(base, span)
        return base


def variants(
    orders: Items[str], schedules: Items[str], caches: Items[str], thresholds: Items[str], net: Denoiser
) -> list[Variant]:
    """The product of the four lists, after the model's own sampler, which is always the first. ``net``: of the model.

    ValueError for an unknown name, an argument that it does not have, and a threshold that is not a probability.
    """
    check_names(orders, schedules, caches, thresholds)
    own = (OWN, OWN, OWN, NONE)
    product = itertools.product(orders, schedules, caches, thresholds)
    chosen = dict.fromkeys([own, *product])
    return [_variant(*names, net=net) for names in chosen]


def check_names(orders: Items[str], schedules: Items[str], caches: Items[str], thresholds: Items[str]) -> None:
    """ValueError for the first name that cannot be used. Needs no model."""
    for name in orders:
        _order(name)
    for name in schedules:
        _schedule(name)
    for name in caches:
        _cache(name)
    for name in thresholds:
        _threshold(name)


def every_order() -> tuple[str, ...]:
    """All orders, and all samplers by name that need no folder and no looped model."""
    return (*_ORDERS, *(name for name, entry in named_samplers().items() if entry.served))


def _variant(order: str, schedule: str, cache: str, threshold: str, *, net: Denoiser) -> Variant:
    ordered = _order(order) if order in _ORDERS else partial(_of_network, net=net, order=order)
    changes = (ordered, _schedule(schedule), _cache(cache), _threshold(threshold))
    return Variant(order=order, schedule=schedule, cache=cache, threshold=threshold, changes=changes)


def named_change(schedule: str | None, cache: str | None) -> Callable[[Sampler], Sampler]:
    """The change of a sampler that a schedule and a cache by name stand for; None leaves a part as it is.

    ``shift:shift=0.33`` has as many steps as the sampler's own schedule, ``shift:shift=0.33:steps=8`` has 8. ValueError for an unknown name
    or argument, now, and where the change does not apply to a sampler, later.
    """
    made = [_schedule(schedule)] if schedule is not None else []
    made += [_cache(cache)] if cache is not None else []
    whole = Span(name="", kind=Kind.TEXT, start=0, stop=_MOST_TOKENS)
    return lambda base: functools.reduce(lambda sampler, change: change(sampler, whole), made, base)


def sampler_change(
    name: str | None,
    schedule: str | None,
    cache: str | None,
    settings: Items[str] = (),
    *,
    served: bool = False,
) -> tuple[Callable[[Sampler], Sampler] | None, list[str]]:
    """The change that a method's sampler, then a schedule and a cache stand for, and the settings that are not arguments of that sampler.

    None without any of them. ``served``: as of ``find_sampler``. ValueError for an unknown name or argument.
    """
    change, rest = find_sampler(name, settings, served=served) if name is not None else (None, list(settings))
    if schedule is None and cache is None:
        return change, rest
    more = named_change(schedule, cache)
    return Changes(parts=(change, more) if change else (more,)), rest


# -- order ------------------------------------------------------------------------------------------------------------


def _own(base: Sampler, span: Span) -> Sampler:
    return base


def _most_probable(base: Sampler, span: Span) -> Sampler:
    scored = with_score(_dense(base).token_sampler, LogProbability())
    return replace(base, token_sampler=scored, selection=Confident())


def _random(base: Sampler, span: Span) -> Sampler:
    return replace(_dense(base), selection=RandomOrder())


def _left_to_right(base: Sampler, span: Span) -> Sampler:
    return replace(_dense(base), selection=InOrder(order=tuple(range(len(span)))))


def _halton(base: Sampler, span: Span) -> Sampler:
    return replace(_dense(base), selection=InOrder(order=tuple(halton(*_grid(span)))))


def _stratified(base: Sampler, span: Span) -> Sampler:
    rows, columns = _grid(span)
    if rows != columns:
        raise ValueError(f"the stratified order needs a square picture, got {rows} x {columns} codes; use halton")
    return replace(_dense(base), selection=InOrder(order=tuple(stratified(rows))))


def _grid(span: Span) -> tuple[int, int]:
    if span.grid is None:
        raise ValueError("this order is of the codes of a picture, and the task writes text; use another order")
    return span.grid


def _of_network(base: Sampler, span: Span, *, net: Denoiser, order: str) -> Sampler:
    name, given = _parsed(order)
    change, _ = find_sampler(name, given)
    return for_network(change, net)(base)


_ORDERS: Mapping[str, Change] = {
    OWN: _own,
    "confidence": _most_probable,
    "random": _random,
    "left_to_right": _left_to_right,
    "halton": _halton,
    "stratified": _stratified,
}
ORDERS = tuple(_ORDERS)


def _order(text: str) -> Change:
    """An order of this file, or a sampler with a name (``unmask methods``)."""
    name, given = _parsed(text)
    if name in _ORDERS:
        _numbers("order", text, ())
        return _ORDERS[name]
    _known("order", name, [*_ORDERS, *named_samplers()])
    find_sampler(name, given)
    return _own  # ``_variant`` makes it with the network


# -- schedule ---------------------------------------------------------------------------------------------------------


_SCHEDULES: Mapping[str, Callable[..., UnmaskingSchedule]] = {
    "equal": Equal,
    "cosine": Cosine,
    "shift": partial(Shift, shift=3.0),
    "half_cosine": Curved,
    "logit_normal": partial(Curved, curve=logit_normal),
    "reverse_time": ReverseTime,
}
SCHEDULES = (OWN, *_SCHEDULES)


def _schedule(text: str) -> Change:
    """``steps``: a number of steps, or below 1 a share of those that the model's own schedule takes (the default is as many)."""
    name, _ = _parsed(text)
    _known("schedule", name, SCHEDULES)
    given = _numbers("schedule", text, () if name == OWN else ("steps", "shift") if name == "shift" else ("steps",))
    if name == OWN:
        return _own
    steps, make = given.pop("steps", None), partial(_SCHEDULES[name], **given)
    if steps is not None and (steps <= 0 or (steps >= 1 and steps != int(steps))):
        raise ValueError(
            f"schedule {text!r}: steps is neither a whole number nor a share below 1; for example {name}:steps=8"
        )
    if steps is not None and steps > _MOST_TOKENS:
        raise ValueError(f"schedule {text!r}: steps is above {_MOST_TOKENS}; for example {name}:steps=8")
    make(steps=4).counts(4)  # a value that it does not take is an error before any model is opened
    return partial(_scheduled, make=make, steps=steps)


def _scheduled(base: Sampler, span: Span, *, make: Callable[..., UnmaskingSchedule], steps: float | None) -> Sampler:
    own, share = base.schedule, 1.0 if steps is None else steps
    whole = steps is not None and steps >= 1
    made = make(steps=int(share) if whole else max(1, math.ceil(share * steps_of(base, len(span)))))
    return replace(base, schedule=replace(own, schedule=made) if isinstance(own, ByPosition) else made)


def steps_of(sampler: Sampler, tokens: int) -> int:
    """The steps that a sampler plans for a block of a text, or for the whole of ``tokens`` where it has no blocks."""
    block = min(tokens, getattr(sampler.blocks, "length", tokens))
    planned = len(sampler.schedule.counts(block))
    return min(block, getattr(sampler.selection, "steps", planned)) if planned == 1 else planned


# -- cache and threshold ----------------------------------------------------------------------------------------------


def _free(refresh: int = 1) -> FreeCache | ReleasedFreeCache:
    return FreeCache() if refresh else ReleasedFreeCache()


_CACHES: Mapping[str, Callable[..., Any]] = {
    NONE: NoCache,
    "prefix": PrefixCache,
    "cropped": CroppedCache,
    "block": BlockCache,
    "prompt": PromptCache,
    "free": _free,
}
CACHES = (OWN, *_CACHES)


def _cache(text: str) -> Change:
    name, _ = _parsed(text)
    _known("cache", name, CACHES)
    given = _numbers("cache", text, ("refresh",) if name in ("block", "free") else ())
    if name == OWN:
        return _own
    if wrong := [value for value in given.values() if value != int(value)]:
        raise ValueError(f"cache {text!r}: refresh counts steps, got {wrong[0]:g}; for example block:refresh=4")
    if name == "free" and any(value not in (0, 1) for value in given.values()):
        raise ValueError(f"cache {text!r}: refresh is 0 or 1, for example free:refresh=0")
    made = _CACHES[name](**{key: int(value) for key, value in given.items()})
    return partial(_with_cache, cache=made)


def _with_cache(base: Sampler, span: Span, *, cache: Any) -> Sampler:
    """The sampler with a cache; for the prefix cache, a prompt that attends to everything no longer attends to the answer."""
    cached = replace(_dense(base), cache=cache)
    if not isinstance(cache, PrefixCache):
        return cached
    if not isinstance(base.prior, AllMasked | PrefixLM):
        raise ValueError(
            f"the prefix cache does not fit the prior {type(base.prior).__name__} of this sampler; use none"
        )
    return replace(cached, prior=PrefixLM())


def _threshold(text: str) -> Change:
    if text == NONE:
        return _own
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"threshold {text!r} is not a probability above 0 and at most 1; for example 0.9, or none")
    return lambda base, span: fast_dllm(_dense(base), threshold=value)


def _dense(base: Sampler) -> Sampler:
    """The sampler itself. ValueError for a step-causal one, whose order and cache belong together."""
    if isinstance(base.cache, SparseCache):
        raise ValueError("this model decodes step by step in one order (docs/sparse.md); vary its schedule alone")
    return base


# -- names ------------------------------------------------------------------------------------------------------------


def _parsed(text: str) -> tuple[str, list[str]]:
    """``("remdm", ["eta=0.2"])`` of ``remdm:eta=0.2``. ValueError for an argument that is not NAME=VALUE."""
    name, *given = (part.strip() for part in text.split(":"))
    if wrong := [one for one in given if "=" not in one]:
        raise ValueError(f"{text!r} has an argument {wrong[0]!r}, which is not NAME=VALUE; for example equal:steps=8")
    return name, given


def _numbers(axis: str, text: str, allowed: Items[str]) -> dict[str, float]:
    """The arguments of a name. ValueError for one that it does not have and for a value that is not a finite number."""
    name, words = _parsed(text)
    found = {}
    for key, _, value in (word.partition("=") for word in words):
        if key not in allowed:
            has = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"the {axis} {name!r} has no argument {key!r}; {has}")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = math.nan
        if not math.isfinite(found[key]):
            raise ValueError(f"{axis} {text!r}: {key} is not a number; for example {key}=4")
    return found


def _known(axis: str, name: str, names: Items[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
        raise ValueError(f"there is no {axis} {name[:50]!r}; {hint}")
