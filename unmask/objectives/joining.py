"""Rows of several batches in few forward passes.

Public idea: ``joined_losses(model, views)`` gives what ``apart(model, views)`` gives, up to rounding: for every batch and kind, the loss
and the masking probability of each scored token. Rows of all batches that have about as many positions share a pass, however their batches
divide them, because a row reads nothing of the rows beside it. So small batches cost one pass together, and rows are padded to others of
their own length.

Shapes: B rows · L tokens · N tokens scored · G rows of a pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.objectives.cross_entropy import cross_entropy
from unmask.protocols import Denoiser, Headless
from unmask.sequence import SHARED, Batch, Branch, Kind, stack
from unmask.step import Prediction, Scored, widened

OVERHEAD = 512  # a pass of its own costs as much as this many positions (mini on a CPU; docs/log.md)
ROUND = 8  # understanding positions are counted in multiples of this, so that few different sizes are compared

TokenLosses = dict[int, tuple[Tensor, Tensor]]  # kind -> (loss, masking probability) of each scored token, both [N]


def apart(model: Denoiser, views: Items[Batch]) -> list[TokenLosses]:
    """One forward pass for each batch. ValueError for tokens of a kind without logits."""
    found = []
    for noisy in views:
        assert noisy.clean is not None and noisy.weight is not None
        scored = predicted_by(model, noisy, predicted(noisy)).scored
        losses = {kind: token_loss(kind, s, noisy.clean) for kind, s in sorted(scored.items())}
        found.append({k: (loss, noisy.weight.flatten()[scored[k].at]) for k, loss in losses.items()})
    return found


def joined_losses(model: Denoiser, views: Items[Batch]) -> list[TokenLosses]:
    """As ``apart``, with rows of all batches in shared passes. Rows without a token to score are not computed."""
    seen = _with_features(model, views)
    if not seen:
        return apart(model, views)
    predict, whole = stacked(seen)
    owner = torch.cat([torch.full((v.rows,), i) for i, v in enumerate(seen)])
    found: list[dict[int, list[tuple[Tensor, Tensor]]]] = [{} for _ in views]
    for group in groups(whole, predict):
        index = torch.tensor(group.rows)
        batch = rows_of(whole, index, group.tokens)
        assert batch.clean is not None and batch.weight is not None
        scored = predicted_by(model, batch, predict[index.to(predict.device), : group.tokens]).scored
        for kind, part in sorted(scored.items()):
            loss, probability = token_loss(kind, part, batch.clean), batch.weight.flatten()[part.at]
            of_row = owner[index].to(part.at.device)[part.at // group.tokens]
            counts = torch.bincount(of_row, minlength=len(views)).tolist()
            parts = zip(loss.split(counts), probability.split(counts), strict=True)
            for own, pair, count in zip(found, parts, counts, strict=True):
                if count:
                    own.setdefault(kind, []).append(pair)
    return [
        {kind: (torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])) for kind, pairs in own.items()}
        for own in found
    ]


def kind_name(kind: int) -> str:
    """How a loss term is called."""
    return {Kind.TEXT: "text", Kind.CODE: "code"}.get(kind, f"kind{kind}")


def predicted(noisy: Batch) -> Tensor:
    """The tokens that the objective scores, [B, L]."""
    return noisy.masked if noisy.target is None else noisy.target


# -- which rows share a pass ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Group:
    """``rows``: numbers of the rows of a pass, rising · ``tokens``: length of the longest."""

    rows: list[int]
    tokens: int


def groups(batch: Batch, predict: Tensor, overhead: int | None = None) -> list[Group]:
    """The rows that score something, in groups of similar size whose padding costs less than passes of their own, ``overhead`` positions.

    Rows that score text have their own groups: without them, the understanding branch may end before the last layer.
    """
    at = batch.leader & batch.valid
    text = (predict & (batch.kind == Kind.TEXT)).any(1)
    sizes = [(at & (batch.branch == branch)).sum(1) for branch in (Branch.UND, Branch.GEN)]
    ends = (batch.valid * torch.arange(1, batch.ids.shape[1] + 1, device=batch.device)).max(1).values
    counted = torch.stack([predict.any(1), text, *sizes, ends], dim=1).tolist()  # the one read of the device
    found = []
    for wanted in (0, 1):
        rows = [
            (gen, -(-und // ROUND) * ROUND, row)
            for row, (scores, has_text, und, gen, _) in enumerate(counted)
            if scores and has_text == wanted
        ]
        for cut in _cut(sorted(rows), OVERHEAD if overhead is None else overhead):
            numbers = sorted(row for _, _, row in cut)
            found.append(Group(rows=numbers, tokens=max(counted[row][-1] for row in numbers)))
    return found


def _cut(rows: list[tuple[int, int, int]], overhead: int) -> list[list[tuple[int, int, int]]]:
    """(gen, und, row) in rising order, cut where the sum of padded positions and of ``overhead`` a pass is least."""
    starts = [i for i in range(len(rows)) if i == 0 or rows[i][:2] != rows[i - 1][:2]] + [len(rows)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the rows before each start: (cost, where the last group begins)
    for end in range(1, len(starts)):
        most, options = 0, []
        for begin in range(end - 1, -1, -1):
            most = max(most, rows[starts[begin]][1])  # sorted by gen, so und may have its maximum anywhere
            positions = (starts[end] - starts[begin]) * (rows[starts[end] - 1][0] + most)
            options.append((best[begin][0] + positions + overhead, begin))
        best.append(min(options))
    found, end = [], len(starts) - 1
    while end > 0:
        begin = best[end][1]
        found.append(rows[starts[begin] : starts[end]])
        end = begin
    return found[::-1]


# -- rows in one batch ------------------------------------------------------------------------------------------------


def encodes_alike(model: Any) -> bool:
    """Whether a model encodes pictures by itself, all to the same number of features."""
    return hasattr(model, "features") and not getattr(getattr(model, "vision", None), "any_size", False)


def _with_features(model: Any, views: Items[Batch]) -> list[Batch] | None:
    """The batches with features in place of pixels, which one call encodes; None for a model that does not encode them by itself, and
    for one that reads pictures of any size, whose numbers of features differ.
    """
    pictures = {id(v.pixels): v.pixels for v in views if v.pixels is not None}
    if not pictures:
        return list(views)
    if not encodes_alike(model):
        return None
    rows = model.features(torch.cat(list(pictures.values())))
    each = len(rows) // sum(map(len, pictures.values()))
    split = rows.split([each * len(pixels) for pixels in pictures.values()])
    known = dict(zip(pictures, split, strict=True))
    return [_seen(view, known[id(view.pixels)]) if view.pixels is not None else view for view in views]


def _seen(view: Batch, features: Tensor) -> Batch:
    """Rows of pixels come before the features that a batch has already (``Batch.feature``)."""
    own = view.features
    return view.replace(pixels=None, features=features if own is None else torch.cat([features, own]))


def stacked(views: Items[Batch]) -> tuple[Tensor, Batch]:
    """What is scored, and all rows in one batch; features that several batches share are there once."""
    length = max(view.ids.shape[1] for view in views)
    wide = [widened(view, length) for view in views]
    features = {id(v.features): v.features for v in wide if v.features is not None}
    begins, first = {}, 0
    for name, rows in features.items():
        begins[name], first = first, first + len(rows)
    predict = torch.cat([predicted(view) for view in wide])
    rows = [v.replace(feature=v.feature + begins.get(id(v.features), 0), target=None) for v in wide]
    return predict, stack(rows).replace(features=torch.cat(list(features.values())) if features else None)


def rows_of(batch: Batch, index: Tensor, tokens: int) -> Batch:
    """Some rows of a batch, cut to their first ``tokens``."""
    there = index.to(batch.device)
    picked = {
        f.name: value[there] if value.dim() == 1 else value[there, :tokens]
        for f in dataclasses.fields(batch)
        if f.name not in SHARED and isinstance(value := getattr(batch, f.name), Tensor)
    }
    return batch.replace(**picked, span_table=tuple(batch.span_table[i] for i in index.tolist()))


def predicted_by(model: Denoiser, batch: Batch, predict: Tensor) -> Prediction:
    return (model.hidden_states if isinstance(model, Headless) else model)(batch, predict=predict)


def token_loss(kind: int, scored: Scored, clean: Tensor, *, largest: int | None = None) -> Tensor:
    """The loss of each scored token, [N]. ``largest``: as of ``cross_entropy``. ValueError for tokens of a kind without logits."""
    if scored.logits is None and scored.head is None:
        raise ValueError(f"tokens of kind {kind} have no logits, so no cross-entropy; give them an objective")
    return cross_entropy(scored, clean.flatten()[scored.at], largest=largest)
