"""Queries of several runs in one forward, and each run's own share of what the model says.

Public idea: ``join(parts)`` stacks queries of one ``Shape``; ``shares(prediction, parts, joined)`` undoes it. Everything
that is added (columns, positions) lies behind what a row reads, so no row can tell whether it was alone.

Shapes: V views (rows of one query) · L tokens · U understanding positions · F feature rows · D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.sequence import Batch, Branch, Kind, Prediction, Query, stack

_ASIDE = 2**31 - 1  # a segment that nothing else has, so nothing reads it


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What queries must have in common to share a forward.

    ``codes``: code tokens of a row, in spans of ``grid`` and ``fold`` · ``text``: whether text is asked for (if not, the understanding
    branch ends early).
    """

    codes: int
    grid: tuple[int, int]
    fold: int
    text: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run's query, its shape, and the features of its pictures (``look [F, D]``; None: it has none).

    ``und``: understanding positions of a row, rounded up to a multiple.
    """

    query: Query
    shape: Shape
    und: int
    look: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.query.batch.rows

    @property
    def positions(self) -> int:
        """What the transformer reads of it, in all views."""
        return self.rows * (self.und + self.shape.codes // self.shape.fold**2)


def part_of(query: Query, look: Tensor | None, multiple: int) -> Part:
    """``multiple``: to which understanding positions are rounded up."""
    batch = query.batch
    codes = (batch.valid & (batch.branch == Branch.GEN)).sum(1).max()
    text = (query.ask & (batch.kind == Kind.TEXT)).any()
    und, most_codes, wants_text = torch.stack([_understanding(batch), codes, text.long()]).tolist()
    shape = Shape(
        codes=most_codes,
        grid=batch.grid if most_codes else (0, 0),
        fold=batch.fold if most_codes else 1,
        text=bool(wants_text),
    )
    return Part(query=query, shape=shape, und=-(-und // multiple) * multiple, look=look)


def join(parts: Items[Part]) -> tuple[Query, Tensor | None]:
    """One query with the rows of all, which have one shape, and the features of all their pictures, each picture's once."""
    length = max(part.query.ask.shape[1] for part in parts)
    looks: dict[int, Tensor] = {id(part.look): part.look for part in parts if part.look is not None}
    first, begins = 0, {}
    for key, look in looks.items():
        begins[key] = first
        first += len(look)
    rows = [_widened(part.query.batch, length, begins.get(id(part.look), 0)) for part in parts]
    batch, ask = (
        stack(rows),
        torch.cat([F.pad(part.query.ask, (0, length - part.query.ask.shape[1])) for part in parts]),
    )
    missing = max(part.und for part in parts) - int(_understanding(batch))
    if missing:
        batch, ask = _filled(batch, missing), F.pad(ask, (0, missing))
    return Query(batch=batch, ask=ask), torch.cat(list(looks.values())) if looks else None


def shares(prediction: Prediction, parts: Items[Part], joined: Query) -> list[Prediction]:
    """What each part would have been told alone, tokens numbered as in its own query."""
    length = joined.ask.shape[1]
    rows = [0]
    for part in parts:
        rows.append(rows[-1] + part.rows)
    edges = torch.tensor(rows, device=joined.ask.device) * length
    texts, codes = (torch.searchsorted(flat, edges).tolist() for flat in (prediction.text, prediction.code))
    return [
        dataclasses.replace(
            prediction,
            text=_renumbered(prediction.text[texts[i] : texts[i + 1]], rows[i], length, part),
            text_logits=prediction.text_logits[texts[i] : texts[i + 1]],
            code=_renumbered(prediction.code[codes[i] : codes[i + 1]], rows[i], length, part),
            code_logits=prediction.code_logits[codes[i] : codes[i + 1]],
            carry=None,
        )
        for i, part in enumerate(parts)
    ]


def _understanding(batch: Batch) -> Tensor:
    """Understanding positions of the fullest row."""
    return (batch.leader & batch.valid & (batch.branch == Branch.UND)).sum(1).max()


def _widened(batch: Batch, length: int, first_feature: int) -> Batch:
    """Rows of ``length`` tokens, the added ones not valid; features counted from ``first_feature``."""
    if length == batch.ids.shape[1] and not first_feature:
        return batch
    tensors = {
        f.name: F.pad(t, (0, length - t.shape[1]))
        for f in dataclasses.fields(batch)
        if f.name != "pixels" and isinstance(t := getattr(batch, f.name), Tensor) and t.dim() == 2
    }
    wide = batch.replace(**tensors)
    return wide.replace(feature=wide.feature + first_feature)


def _filled(batch: Batch, missing: int) -> Batch:
    """``missing`` more understanding positions in every row, in a segment of their own: computed, and never read."""
    own = batch.ids.shape[1]
    wide = _widened(batch, own + missing, 0)
    added = torch.arange(own + missing, device=batch.device) >= own
    return wide.replace(
        valid=wide.valid | added,
        leader=wide.leader | added,
        segment=wide.segment.masked_fill(added, _ASIDE),
    )


def _renumbered(flat_N: Tensor, first_row: int, length: int, part: Part) -> Tensor:
    return (flat_N // length - first_row) * part.query.ask.shape[1] + flat_N % length
