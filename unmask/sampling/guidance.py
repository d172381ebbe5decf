"""Guidance: several views of each row run stacked in one forward and are merged into one prediction.

Public idea: a guidance is a value with ``views(batch, progress)`` (the first is the row as it is) and ``merge(batch, predictions,
progress)``. Logits of all kinds are merged alike. A guidance of scale 0 makes one view, which is no guidance.

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
from unmask.step import Prediction, Progress

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
    at steps int(a * steps) .. int(b * steps), counted from 1 (Kynkäänniemi et al. 2024; spec 4.2).
    """

    scale: float
    drop: Container[str]
    null_id: int
    interval: Interval = (0.0, 1.0)

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        if self.scale == 0 or not any(_acts(self.interval, progress)):
            return [batch]
        return [batch, _without(batch, lambda name: name in self.drop, self.null_id)]

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]

        def blend(c_NV: Tensor, u_NV: Tensor) -> Tensor:
            return (1 + self.scale) * c_NV - self.scale * u_NV

        return _merge(predictions, progress, self.interval, blend)


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

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        views = [batch]
        if not any(_acts(self.interval, progress)):
            return views
        if self.image_scale:
            views.append(_without(batch, lambda name: name in self.drop and name not in self.keep, self.null_id))
        if self.scale:
            views.append(_without(batch, lambda name: name in self.drop, self.null_id))
        return views

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]

        def blend(c_NV: Tensor, *others: Tensor) -> Tensor:
            rest = list(others)
            out_NV = (1 + self.image_scale) * c_NV - self.image_scale * rest.pop(0) if self.image_scale else c_NV
            return (1 + self.scale) * out_NV - self.scale * rest.pop(0) if self.scale else out_NV

        return _merge(predictions, progress, self.interval, blend)


def _acts(interval: Interval, progress: Progress) -> list[bool]:
    """Whether the step of each row lies in the interval."""
    begin, end = interval
    return [int(begin * of) <= number + 1 <= int(end * of) for number, of in progress.pairs()]


def _without(batch: Batch, gone: Callable[[str], bool], null_id: int) -> Batch:
    names = {span.name for table in batch.span_table for span in table}
    return batch.drop({name for name in names if gone(name)}, null_id)


def _merge(
    predictions: list[Prediction], progress: Progress, interval: Interval, blend: Callable[..., Tensor]
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
