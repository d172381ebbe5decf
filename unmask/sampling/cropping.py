"""A query without the tokens at the end of its rows that nobody reads yet: masked text of later orders costs nothing until its turn.

Public idea: ``cropped(query)``, and ``restored(prediction, query, length)``, which numbers tokens as in rows of ``length`` again;
``settled(query, last)`` has the same tensors as the last query where they are equal.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.derived import derived
from unmask.sequence import CHANGING, SHARED, Span
from unmask.step import Prediction, Query, Reuse, Scored, State


def cropped(query: Query) -> Query:
    """The query up to the last token that is computed or lends what is held. Unchanged where no span has text of several orders."""
    reuse, batch = query.reuse, query.batch
    if reuse is None or not _grows(batch.span_table):
        return query
    held_BL = reuse.compute if reuse.state is None else reuse.compute | reuse.state.held
    length = int(held_BL.any(0).nonzero().max()) + 1
    tensors = {
        f.name: t[:, :length] if f.name in CHANGING else derived(("front", length), partial(_front, t, length), t)
        for f in dataclasses.fields(batch)
        if f.name not in SHARED and isinstance(t := getattr(batch, f.name), Tensor) and t.dim() > 1
    }
    state = reuse.state and State(held=reuse.state.held[:, :length], tensors=reuse.state.tensors)
    return Query(
        batch=batch.replace(**tensors),
        predict=query.predict[:, :length],
        reuse=Reuse(compute=reuse.compute[:, :length], keep=reuse.keep[:, :length], state=state),
    )


def restored(prediction: Prediction, query: Query, length: int) -> Prediction:
    """The prediction of a cropped query for rows of ``length`` tokens."""
    short = query.predict.shape[1]
    if short == length:
        return prediction
    scored = {
        kind: Scored(at=s.at // short * length + s.at % short, logits=s.logits, hidden=s.hidden, head=s.head)
        for kind, s in prediction.scored.items()
    }
    state = prediction.state
    if state is not None:
        state = State(held=F.pad(state.held, (0, length - short)), tensors=state.tensors)
    return Prediction(scored=scored, state=state)


def settled(query: Query, last: Query | None) -> Query:
    """The query with the masks of the last one where they are equal: what a network makes of them is then made once (``derived``)."""
    now, before = query.reuse, last.reuse if last else None
    if now is None or before is None or now.state is None or before.state is None:
        return query
    if not torch.equal(now.compute, before.compute) or not torch.equal(now.state.held, before.state.held):
        return query
    state = State(held=before.state.held, tensors=now.state.tensors)
    return dataclasses.replace(query, reuse=Reuse(compute=before.compute, keep=now.keep, state=state))


def _front(t_BL: Tensor, length: int) -> Tensor:
    return t_BL[:, :length].clone()  # a view would keep the whole tensor, and so what is remembered of it


@functools.lru_cache(maxsize=64)
def _grows(span_table: tuple[tuple[Span, ...], ...]) -> bool:
    return any(0 < span.order_step < len(span) for table in span_table for span in table)
