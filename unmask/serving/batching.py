"""Queries of several runs in one forward, and each run's own share of the prediction.

Public idea: ``join(parts)`` stacks queries; ``shares(prediction, parts, joined)`` undoes it. Everything that is added
(columns, positions) lies behind what a row reads, so a row's logits do not depend on the rows beside it. Rows that compute everything
are packed, so they may have any lengths. Beside a row that lends keys and values all rows are padded to the longest, and must be of one
``Shape``.

Shapes: V views (rows of one query) · L tokens · U understanding positions · F feature rows · D width.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.derived import derived
from unmask.sequence import Batch, Branch, Kind, stack
from unmask.step import Prediction, Query, Reuse, Scored, State, widened


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``codes``: code positions of a row · ``text``: whether text is scored (if not, the understanding branch ends early)."""

    codes: int
    text: bool


@dataclass(frozen=True, kw_only=True)
class ShapedQuery:
    """One run's query and its shape. ``und``: computed understanding positions of a row, rounded up to a multiple."""

    query: Query
    shape: Shape
    und: int

    @property
    def rows(self) -> int:
        return self.query.batch.rows

    @property
    def padded(self) -> bool:
        """Whether the rows of its forward are padded to the longest of them."""
        return self.query.reuse is not None

    @property
    def idle(self) -> int:
        """Understanding positions that the last layers compute for nobody where another query of the forward scores text."""
        return 0 if self.shape.text else self.rows * self.und

    @property
    def positions(self) -> int:
        """What the transformer computes of it, in all views."""
        return self.rows * (self.und + self.shape.codes)


def part_of(query: Query, multiple: int) -> ShapedQuery:
    """``multiple``: to which understanding positions are rounded up."""
    batch = query.batch
    text = (query.predict & (batch.kind == Kind.TEXT)).any()
    counts = torch.stack([_most(query, Branch.UND), _most(query, Branch.GEN), text.long()])
    und, codes, wants_text = counts.tolist()
    shape = Shape(codes=codes, text=bool(wants_text))
    return ShapedQuery(query=query, shape=shape, und=-(-und // multiple) * multiple)


def join(parts: Items[ShapedQuery]) -> Query:
    """One query with the rows of all; features of several parts are there once."""
    length = max(part.query.predict.shape[1] for part in parts)
    features: dict[int, Tensor] = {}
    begins, first = {}, 0
    for part in parts:
        own = part.query.batch.features
        if own is not None and id(own) not in features:
            features[id(own)], begins[id(own)] = own, first
            first += len(own)
    rows = [_widened(p.query.batch, length, begins.get(id(p.query.batch.features), 0)) for p in parts]
    batch = stack(rows).replace(features=torch.cat(list(features.values())) if features else None)
    return Query(
        batch=batch,
        predict=torch.cat([_wide(part.query.predict, length) for part in parts]),
        reuse=_joined(parts, length),
    )


def shares(prediction: Prediction, parts: Items[ShapedQuery], joined: Query) -> list[Prediction]:
    """What the prediction of each part would have been alone, tokens numbered as in its own query."""
    length = joined.predict.shape[1]
    rows = [0]
    for part in parts:
        rows.append(rows[-1] + part.rows)
    edges = torch.tensor(rows, device=joined.predict.device) * length
    cuts = {kind: torch.searchsorted(scored.at, edges).tolist() for kind, scored in prediction.scored.items()}
    found = []
    for i, part in enumerate(parts):
        scored = {
            kind: _cut(whole, cuts[kind][i], cuts[kind][i + 1], rows[i], length, part)
            for kind, whole in prediction.scored.items()
        }
        state = None
        if prediction.state is not None and part.query.reuse is not None:
            state = prediction.state.rows(rows[i], rows[i + 1])
            state = State(held=state.held[:, : part.query.predict.shape[1]], tensors=state.tensors)
        found.append(Prediction(scored=scored, state=state))
    return found


def _cut(whole: Scored, first: int, last: int, first_row: int, length: int, part: ShapedQuery) -> Scored:
    at = whole.at[first:last]
    return Scored(
        at=(at // length - first_row) * part.query.predict.shape[1] + at % length,
        logits=None if whole.logits is None else whole.logits[first:last],
        hidden=None if whole.hidden is None else whole.hidden[first:last],
    )


def _joined(parts: Items[ShapedQuery], length: int) -> Reuse | None:
    """What the rows of all need not compute again; a part without reuse computes everything and keeps nothing."""
    given = [part.query.reuse for part in parts]
    if all(reuse is None for reuse in given):
        return None
    reuses = [r or _everything(part.query.batch) for r, part in zip(given, parts, strict=True)]
    computes, states = [reuse.compute for reuse in reuses], [reuse.state for reuse in reuses]
    state = State.stack(states, [part.rows for part in parts], length)
    if state is not None and all(
        s is not None for s in states
    ):  # the same tensors as in the last tick, if nothing has changed
        held = derived(("held", length), lambda: state.held, *(s.held for s in states if s))
        state = State(held=held, tensors=state.tensors)
    return Reuse(
        compute=derived(("compute", length), lambda: torch.cat([_wide(own, length) for own in computes]), *computes),
        keep=torch.cat([_wide(reuse.keep, length) for reuse in reuses]),
        state=state,
    )


def _everything(batch: Batch) -> Reuse:
    return Reuse(compute=batch.valid, keep=torch.zeros_like(batch.valid))


def _most(query: Query, branch: int) -> Tensor:
    """Computed positions of a branch in the row that has most."""
    batch = query.batch
    computed = batch.leader & batch.valid & (batch.branch == branch)
    return (computed if query.reuse is None else computed & query.reuse.compute).sum(1).max()


def _wide(x: Tensor, length: int) -> Tensor:
    return F.pad(x, (0, length - x.shape[1]))


def _widened(batch: Batch, length: int, first_feature: int) -> Batch:
    """Rows of ``length`` tokens, the added ones not valid; features counted from ``first_feature``."""
    wide = widened(batch, length)
    return wide.replace(feature=wide.feature + first_feature) if first_feature else wide
