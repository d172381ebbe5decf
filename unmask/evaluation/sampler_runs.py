"""Samplers compared on the same requests and seeds: forwards, tokens a forward, seconds, agreement with the reference, quality.

Public idea: ``compare(requests, variants, metric=..) -> [SamplerRow]``. The reference is the model's own sampler, the first variant.

Seconds are CPU seconds on the CPU, which a busy machine moves little, and seconds between two synchronisations on a GPU. The variants take
turns on every request, so that a change of the machine's speed meets all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unmask.evaluation.metrics import Figure, average, share
from unmask.evaluation.sampler_axes import REFERENCE, Variant
from unmask.evaluation.sampler_prompts import Metric
from unmask.evaluation.sampler_requests import Request, Requests
from unmask.json_types import Json
from unmask.sampling.sampler import CachedTokenChanged, NothingPredicted, NothingUnmasked, Sampler
from unmask.sequence import Batch
from unmask.step import Reuse
from unmask.tasks.results import describe

OTHER_SEED = 1_000_003  # added to the seed of a request, for the agreement that two seeds of the reference have
_REFUSALS = (ValueError, NothingUnmasked, NothingPredicted, CachedTokenChanged)


@dataclass(kw_only=True)
class Cost:
    """What the forwards of a request computed: their number, their rows (views of guidance are rows too), ``masks`` of the tokens that
    each computed, and ``computed``, the number of these.
    """

    forwards: int = 0
    rows: int = 0
    masks: list[Tensor] = field(default_factory=list)  # summed when they are asked for: a sum would wait for the device

    @property
    def computed(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One request by one sampler. ``ids``: of the unmasked tokens, those of a text up to its end · ``quality``: None without a metric."""

    ids: tuple[int, ...]
    cost: Cost
    seconds: float
    quality: float | None


@dataclass(frozen=True, kw_only=True)
class SamplerRow:
    """The figures of a variant, means over the requests unless they say otherwise; ``refused``: why it has none, else "".

    ``tokens``: of a result · ``seconds``: median · ``speedup``: median of the reference's seconds over its own, request by request ·
    ``agreement``: share of tokens that equal those of the reference at the same place · ``equal``: share of results that equal it ·
    ``quality``: the figure of the metric with its 95 % interval, and ``gain``: the mean difference to the reference, request by request,
    with its own; None without a metric · ``same_as``: the name of an earlier variant with an equal sampler, whose figures these are ·
    ``settings``: the sampler.
    """

    name: str
    refused: str = ""
    same_as: str = ""
    forwards: float = 0.0
    rows: float = 0.0
    computed: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    speedup: float = 0.0
    agreement: float = 0.0
    equal: float = 0.0
    quality: Figure | None = None
    gain: Figure | None = None
    settings: Json = field(default_factory=dict)

    @property
    def tokens_a_forward(self) -> float:
        return self.tokens / self.forwards if self.forwards else 0.0

    def to_json(self) -> Json:
        """All figures; of a refused variant the reason alone."""
        if self.refused:
            return {"name": self.name, "refused": self.refused}
        figures = {
            "forwards": self.forwards,
            "rows": self.rows,
            "computed": self.computed,
            "tokens": self.tokens,
            "tokens_a_forward": self.tokens_a_forward,
            "seconds": self.seconds,
            "speedup": self.speedup,
            "agreement": self.agreement,
            "equal": self.equal,
            "quality": self.quality,
            "gain": self.gain,
        }
        return {"name": self.name, "same_as": self.same_as or None, **figures, "settings": self.settings}


def compare(
    requests: Requests,
    variants: Items[Variant],
    *,
    metric: Metric | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[SamplerRow]:
    """A row for every variant in their order, and after the first, the reference, one for the reference at other seeds.

    A variant that the model or the task does not allow has the reason in its row. ``progress``: runs done, and runs in all.
    """
    groups, others = _groups(requests, variants), list[Taken]()
    first, runs = requests.items[0], len(requests.items) * (len(groups) + 1)
    take(requests, first, groups[0].sampler(first), first.seed)  # not counted: the first run allocates memory
    for number, request in enumerate(requests.items):
        for place, group in enumerate(groups):
            progress(number * (len(groups) + 1) + place, runs)
            group.run(requests, request, metric)
        other = groups[0].sampler(request)
        others.append(take(requests, request, other, request.seed + OTHER_SEED, metric))
    progress(runs, runs)
    reference = groups[0].taken
    rows = {name: group.row(name, reference) for group in groups for name in group.names}
    found = [rows[variant.name] for variant in variants]
    return [found[0], _row("reference, other seeds", others, reference, groups[0].settings), *found[1:]]


@dataclass(kw_only=True)
class _Group:
    """Variants with equal samplers for every request, which run once."""

    names: list[str]
    variant: Variant
    base: Sampler
    settings: Json = field(default_factory=dict)
    refused: str = ""
    taken: list[Taken] = field(default_factory=list)

    def sampler(self, request: Request) -> Sampler:
        return self.variant(self.base, request.span)

    def run(self, requests: Requests, request: Request, metric: Metric | None) -> None:
        """One request more. What the sampler does not allow is the reason of the refusal, except for the reference."""
        if self.refused:
            return
        try:
            self.taken.append(take(requests, request, self.sampler(request), request.seed, metric))
        except _REFUSALS as error:
            if self.names[0] == REFERENCE:
                raise
            self.refused = str(error)

    def row(self, name: str, reference: Items[Taken]) -> SamplerRow:
        if self.refused:
            return SamplerRow(name=name, refused=self.refused)
        same_as = "" if name == self.names[0] else self.names[0]
        return _row(name, self.taken, reference, self.settings, same_as)


def _groups(requests: Requests, variants: Items[Variant]) -> list[_Group]:
    groups: list[_Group] = []
    samplers: list[list[Sampler]] = []
    for variant in variants:
        group = _Group(names=[variant.name], variant=variant, base=requests.sampler)
        try:
            own = [group.sampler(request) for request in requests.items]
        except ValueError as error:
            group.refused, own = str(error), []
        if own and own in samplers:
            groups[samplers.index(own)].names.append(variant.name)
            continue
        group.settings = describe(own[0]) if own else {}
        groups.append(group)
        samplers.append(own)
    return groups


def take(requests: Requests, request: Request, sampler: Sampler, seed: int, metric: Metric | None = None) -> Taken:
    """One request, with its seconds and its cost. What the metric costs is not measured."""
    with counted(requests.net) as cost:
        began = _now(requests.device)
        row = requests.run(request.built, seed, sampler)
        seconds = _now(requests.device) - began
    quality = metric(request.prompt, requests.read(row)) if metric else None
    return Taken(ids=requests.ids(row), cost=cost, seconds=seconds, quality=quality)


@contextmanager
def counted(net: nn.Module) -> Iterator[Cost]:
    """Counts the forwards of a network inside."""
    cost = Cost()

    def count(module: nn.Module, given: tuple[Batch, ...], named: dict[str, object]) -> None:
        batch, reuse = given[0], named.get("reuse")
        computed: Tensor = reuse.compute if isinstance(reuse, Reuse) else batch.valid
        cost.forwards += 1
        cost.rows += batch.rows
        cost.masks.append(computed)

    hook = net.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield cost
    finally:
        hook.remove()


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _row(name: str, taken: Items[Taken], reference: Items[Taken], settings: Json, same_as: str = "") -> SamplerRow:
    pairs = list(zip(taken, reference, strict=True))
    return SamplerRow(
        name=name,
        same_as=same_as,
        forwards=statistics.mean(one.cost.forwards for one in taken),
        rows=statistics.mean(one.cost.rows for one in taken),
        computed=statistics.mean(one.cost.computed for one in taken),
        tokens=statistics.mean(len(one.ids) for one in taken),
        seconds=statistics.median(one.seconds for one in taken),
        speedup=statistics.median(of.seconds / max(one.seconds, 1e-9) for one, of in pairs),
        agreement=statistics.mean(agreement(one.ids, of.ids) for one, of in pairs),
        equal=statistics.mean(one.ids == of.ids for one, of in pairs),
        quality=quality([one.quality for one in taken if one.quality is not None]),
        gain=_gain([(a.quality, b.quality) for a, b in pairs if a.quality is not None and b.quality is not None]),
        settings=settings,
    )


def quality(scores: Items[float]) -> Figure | None:
    """The mean of the scores with its 95 % interval, Wilson's where all are 0 or 1; None for no scores."""
    if not scores:
        return None
    return share(score == 1 for score in scores) if set(scores) <= {0.0, 1.0} else average(scores)


def _gain(pairs: Items[tuple[float, float]]) -> Figure | None:
    return average([own - reference for own, reference in pairs]) if pairs else None


def agreement(ids: Items[int], reference: Items[int]) -> float:
    """The share of places at which two lists have the same id; the longer one counts. Two empty lists agree."""
    same = sum(a == b for a, b in zip(ids, reference, strict=False))
    return same / max(len(ids), len(reference)) if ids or reference else 1.0
