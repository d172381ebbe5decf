"""Guidance: several views of each row run stacked in one forward and are merged into one prediction.

Public idea: a guidance is a value with ``views(batch, progress)`` (the first is the row as it is) and ``merge(batch, predictions,
progress)``. Logits of all kinds are merged alike. A guidance of scale 0 makes one view, which is no guidance.

With ``refresh`` above 1 a guidance is approximate: its other views run at every ``refresh``-th step in which it acts, where they score all
masked tokens of the block; between them the logits of the last such step are merged (``protocols.Refreshing``). A token without such
logits, because it was masked again since, is not guided.

Shapes: B rows · N tokens scored · V vocabulary. c full condition · e a part of it · u no condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.rng import sent
from unmask.sequence import Batch
from unmask.step import Prediction, Progress, Scored

Interval = tuple[float, float]


class ViewsDiffer(RuntimeError):
    """The model scored other tokens in one view of guidance than in another, so their logits cannot be merged."""


@dataclass(frozen=True, kw_only=True)
class NoGuidance:
    """The row as it is."""

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        return [batch]

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        return predictions[0]


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """(1 + scale) c - scale u (spec 4.5), where u has the spans named in ``drop`` replaced by the null embedding.

    ``drop``: anything that knows ``name in drop`` · ``null_id``: text id of the null embedding · ``interval``: guidance acts
    at steps int(a * steps) .. int(b * steps), counted from 1 (Kynkäänniemi et al. 2024; spec 4.2) · ``refresh``: u runs at every so many of
    these steps; 1 is exact. ValueError below 1.
    """

    scale: float
    drop: Container[str]
    null_id: int
    interval: Interval = (0.0, 1.0)
    refresh: int = 1

    def __post_init__(self) -> None:
        _check_refresh(self.refresh)

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        if self.scale == 0 or not any(_due(self.interval, self.refresh, progress)):
            return [batch]
        return [batch, _without(batch, lambda name: name in self.drop, self.null_id)]

    def to_score(self, predict: Tensor, block: Tensor) -> Tensor:
        return predict if self.refresh == 1 else block if predict is block else predict | block

    def completed(
        self, views: list[Prediction], kept: list[Prediction], progress: Progress
    ) -> tuple[list[Prediction], list[Prediction]]:
        return (views, []) if self.refresh == 1 else _completed(views, kept, self.interval, self.refresh, progress)

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]

        def blend(c_NV: Tensor, u_NV: Tensor) -> Tensor:
            return (1 + self.scale) * c_NV - self.scale * u_NV

        return blended(predictions, progress, blend, self.interval)


@dataclass(frozen=True, kw_only=True)
class EditGuidance:
    """c' = (1 + image_scale) c - image_scale e, then (1 + scale) c' - scale u (spec 4.5, modes 0 and 3).

    u drops the spans named in ``drop``; e drops the same except those in ``keep``: the source codes (mode 0), or the source
    codes and the picture features (mode 3).
    """

    scale: float
    image_scale: float
    drop: Container[str]
    keep: Container[str]
    null_id: int
    interval: Interval = (0.0, 1.0)
    refresh: int = 1

    def __post_init__(self) -> None:
        _check_refresh(self.refresh)

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        views = [batch]
        if not any(_due(self.interval, self.refresh, progress)):
            return views
        if self.image_scale:
            views.append(_without(batch, lambda name: name in self.drop and name not in self.keep, self.null_id))
        if self.scale:
            views.append(_without(batch, lambda name: name in self.drop, self.null_id))
        return views

    def to_score(self, predict: Tensor, block: Tensor) -> Tensor:
        return predict if self.refresh == 1 else block if predict is block else predict | block

    def completed(
        self, views: list[Prediction], kept: list[Prediction], progress: Progress
    ) -> tuple[list[Prediction], list[Prediction]]:
        return (views, []) if self.refresh == 1 else _completed(views, kept, self.interval, self.refresh, progress)

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]

        def blend(c_NV: Tensor, *others: Tensor) -> Tensor:
            rest = list(others)
            out_NV = (1 + self.image_scale) * c_NV - self.image_scale * rest.pop(0) if self.image_scale else c_NV
            return (1 + self.scale) * out_NV - self.scale * rest.pop(0) if self.scale else out_NV

        return blended(predictions, progress, blend, self.interval)


def _acts(interval: Interval, progress: Progress) -> list[bool]:
    """Whether the step of each row lies in the interval. One that ends at 1 includes the steps after the planned ones."""
    begin, end = interval
    return [
        int(begin * of) <= number + 1 and (end == 1 or number + 1 <= int(end * of)) for number, of in progress.pairs()
    ]


def _due(interval: Interval, refresh: int, progress: Progress) -> list[bool]:
    """Whether each row needs all views at this step: the first step of the interval and every ``refresh``-th after it."""
    acts = _acts(interval, progress)
    if refresh == 1:
        return acts
    firsts = [max(1, int(interval[0] * of)) for _, of in progress.pairs()]
    numbers = [number for number, _ in progress.pairs()]
    return [act and (n + 1 - first) % refresh == 0 for act, n, first in zip(acts, numbers, firsts, strict=True)]


def _check_refresh(refresh: int) -> None:
    if refresh < 1:
        raise ValueError(f"guidance.refresh counts steps, got {refresh}; 1 computes all views at every step")


def _completed(
    views: list[Prediction], kept: list[Prediction], interval: Interval, refresh: int, progress: Progress
) -> tuple[list[Prediction], list[Prediction]]:
    """All views for the tokens of the first one, and what is kept of the others. A row's views are renewed at its own steps alone."""
    first, *others = views
    if others:
        due = _due(interval, refresh, progress)
        due_B = sent(torch.tensor(due), progress.number.device)
        olds = kept if kept and not all(due) else [Prediction(scored={})] * len(others)
        kept = [_renewed(old, new, due_B, progress) for old, new in zip(olds, others, strict=True)]
    return [first, *(_aligned(view, first) for view in kept)], kept


def _renewed(old: Prediction, new: Prediction, due_B: Tensor, progress: Progress) -> Prediction:
    """The logits of ``new`` in the rows that are due, those of ``old`` in the others."""
    if not old.scored:
        return Prediction(scored=new.scored)
    scored = {}
    for kind in sorted(old.scored.keys() | new.scored.keys()):
        some = [(view.scored.get(kind), taken_B) for view, taken_B in ((old, ~due_B), (new, due_B))]
        parts = [
            (one.at[taken_B[progress.row(one.at)]], one.logits[taken_B[progress.row(one.at)]])
            for one, taken_B in some
            if one is not None and one.logits is not None
        ]
        if parts:
            at_N, order_N = torch.cat([at for at, _ in parts]).sort()
            scored[kind] = Scored(at=at_N, logits=torch.cat([logits for _, logits in parts])[order_N])
    return Prediction(scored=scored)


def _aligned(view: Prediction, first: Prediction) -> Prediction:
    """The logits of ``view`` for the tokens that ``first`` scored; -inf where it has none."""
    scored = {}
    for kind, wanted in first.scored.items():
        if wanted.logits is None:
            continue
        logits_NV, found = torch.full_like(wanted.logits, -torch.inf), view.scored.get(kind)
        if found is not None and found.logits is not None and found.at.numel():
            place_N = torch.searchsorted(found.at, wanted.at).clamp(max=len(found.at) - 1)
            has_N1 = (found.at[place_N] == wanted.at)[:, None]
            logits_NV = torch.where(has_N1, found.logits[place_N], logits_NV)
        scored[kind] = Scored(at=wanted.at, logits=logits_NV)
    return Prediction(scored=scored)


def _without(batch: Batch, gone: Callable[[str], bool], null_id: int) -> Batch:
    names = {span.name for table in batch.span_table for span in table}
    return batch.drop({name for name in names if gone(name)}, null_id)


def blended(
    predictions: list[Prediction],
    progress: Progress,
    blend: Callable[..., Tensor],
    interval: Interval = (0.0, 1.0),
) -> Prediction:
    """Blend every kind in float32, in the rows where guidance acts. What is -inf in any view stays as the first view has it.

    ViewsDiffer if a view scored other tokens than the first.
    """
    acts = _acts(interval, progress)
    acting_B = None if all(acts) else sent(torch.tensor(acts), progress.number.device)
    first, merged = predictions[0], {}
    for kind, scored in first.scored.items():
        if scored.logits is None:
            continue
        for number, other in enumerate(predictions[1:], start=1):
            _check_same(kind, scored.at, other, number)
        c_NV, *others = (p.logits(kind).float() for p in predictions)
        guided_NV = blend(c_NV, *others)
        if acting_B is None and guided_NV.is_cpu and math.isfinite(float(guided_NV.sum())):
            merged[kind] = guided_NV  # all of it is finite
            continue
        taken_NV = guided_NV.abs() < torch.inf  # not so for NaN
        if acting_B is not None:
            taken_NV &= acting_B[progress.row(scored.at)][:, None]
        merged[kind] = torch.where(taken_NV, guided_NV, c_NV)
    return first.with_logits(merged)


def _check_same(kind: int, at_N: Tensor, view: Prediction, number: int) -> None:
    found_N = view.scored[kind].at if kind in view.scored else at_N[:0]
    if found_N is at_N:
        return
    if len(at_N) != len(found_N) or (len(at_N) and not torch.equal(at_N, found_N)):
        raise ViewsDiffer(
            f"of kind {kind}, guidance view {number} scored {len(found_N)} tokens and view 0 scored {len(at_N)}, or not the same ones; "
            "predict no token that a view drops"
        )
