"""Queries of several runs in one forward, and each run's own share of the prediction.

Public idea: ``join(parts)`` stacks queries; ``shares(prediction, parts, joined)`` undoes it. Everything that is added
(columns, positions) lies behind what a row reads, so a row's logits do not depend on the rows beside it. Rows that compute everything
are packed, so they may have any lengths. Beside a row that lends keys and values all rows are padded to the longest, and must be of one
``Shape``.

Shapes: V views (rows of one query) · L tokens · U understanding positions · F feature rows · D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.derived import counts_told, derived, tell_counts
from unmask.sequence import CHANGING, SHARED, Batch, Branch, Kind, stack
from unmask.step import Prediction, Query, Reuse, Scored, State, padded, widened


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
    computed = [] if query.reuse is None else [query.reuse.compute]
    und, codes = derived("computed", partial(_most, query), batch.branch, batch.leader, batch.valid, *computed)
    shape = Shape(codes=codes, text=_wants_text(query))
    return ShapedQuery(query=query, shape=shape, und=-(-und // multiple) * multiple)


def _wants_text(query: Query) -> bool:
    """Whether text is scored; a batch whose writable tokens are all text, or none of them, says so itself."""
    batch = query.batch

    def found() -> list[bool]:
        return (batch.kind[batch.writable & batch.valid] == Kind.TEXT).unique().tolist()

    ever = derived("text", found, batch.kind, batch.writable, batch.valid)
    return ever[0] if len(ever) == 1 else bool((query.predict & (batch.kind == Kind.TEXT)).any())


def join(parts: Items[ShapedQuery]) -> Query:
    """One query with the rows of all; features of several parts are there once.

    What follows from fields that a run does not change is computed when other parts come together, and not at every step.
    """
    if len(parts) == 1:
        return parts[0].query
    length = max(part.query.predict.shape[1] for part in parts)
    features: dict[int, Tensor] = {}
    begins, first = {}, 0
    for part in parts:
        own = part.query.batch.features
        if own is not None and id(own) not in features:
            features[id(own)], begins[id(own)] = own, first
            first += len(own)
    batches = [part.query.batch for part in parts]
    some = list(features.values())
    known = some[0] if len(some) == 1 else None
    if len(some) > 1:  # remembered with the first part, and gone with it
        known = derived("features", lambda: torch.cat(some), batches[0].feature, *some)
    whole = _stacked(batches, length, tuple(begins.get(id(batch.features), 0) for batch in batches))
    return Query(
        batch=whole.replace(features=known),
        predict=_predicts([part.query.predict for part in parts], length),
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
        compute=derived(("compute", length), lambda: torch.cat([padded(own, length) for own in computes]), *computes),
        keep=torch.cat([padded(reuse.keep, length) for reuse in reuses]),
        state=state,
    )


def _everything(batch: Batch) -> Reuse:
    return Reuse(compute=batch.valid, keep=torch.zeros_like(batch.valid))


def _most(query: Query) -> list[int]:
    """Computed understanding and code positions in the row that has most."""
    batch = query.batch
    computed = batch.leader & batch.valid
    if query.reuse is not None:
        computed = computed & query.reuse.compute
    each = [(computed & (batch.branch == branch)).sum(1).max() for branch in (Branch.UND, Branch.GEN)]
    return torch.stack(each).tolist()


def _predicts(predicts: Items[Tensor], length: int) -> Tensor:
    """The masks one under the other; what was told of all of them is told of the result."""
    stacked, told = torch.cat([padded(predict, length) for predict in predicts]), list(map(counts_told, predicts))
    known = [counts for counts in told if counts is not None]
    return tell_counts(stacked, tuple(n for counts in known for n in counts)) if len(known) == len(told) else stacked


def _stacked(batches: Items[Batch], length: int, first_features: tuple[int, ...]) -> Batch:
    """The rows of all, ``length`` tokens long. The fields that runs do not change are made once for the same runs."""

    def made() -> Batch:
        return stack([_widened(*each) for each in zip(batches, [length] * len(batches), first_features, strict=True)])

    changing = [{n: t for n in CHANGING if isinstance(t := getattr(batch, n), Tensor)} for batch in batches]
    if len({frozenset(some) for some in changing}) > 1:
        return made()  # only some have continuous tokens
    fixed = [t for batch in batches for n in _FIXED if isinstance(t := getattr(batch, n), Tensor)]
    kept = derived(("stacked", length, first_features), lambda: _fixed_of(made()), *fixed)
    now = {n: torch.cat([_wide(some[n], length) for some in changing]) for n in changing[0]}
    return batches[0].replace(**kept, **now)


def _fixed_of(batch: Batch) -> dict[str, object]:
    return {"span_table": batch.span_table} | {n: getattr(batch, n) for n in _FIXED}


_FIXED = tuple(f.name for f in dataclasses.fields(Batch) if f.name not in (*SHARED, *CHANGING, "span_table"))


def _wide(x: Tensor, length: int) -> Tensor:
    """Rows of tokens, or of numbers of whole rows, which stay as they are."""
    return x if x.dim() == 1 else F.pad(x, (0, 0, 0, length - x.shape[1])) if x.dim() == 3 else padded(x, length)


def _widened(batch: Batch, length: int, first_feature: int) -> Batch:
    """Rows of ``length`` tokens, the added ones not valid; features counted from ``first_feature``."""
    wide = widened(batch, length)
    return wide.replace(feature=wide.feature + first_feature) if first_feature else wide
