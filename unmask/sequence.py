"""The data that flows: spans, sequences and batches; ``step.py`` has what passes between a batch and a model.

Public idea: text, picture features and image codes are *spans* of one ``Sequence``; a ``Batch`` is several of them, and everything
that generates or learns only ever reads and writes a ``Batch``.

Letters: B rows, L tokens, I images, R feature rows, D width, C channels. A *token* is unmasked, a
*position* is what the transformer reads; a folded code span has ``fold * fold`` tokens a position.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.derived import derived
from unmask.placing import Branch, Kind, span_layout

ON_UNMASK = 2**30  # an order that is set when the token is unmasked


@dataclass(frozen=True, kw_only=True)
class Span:
    """A named stretch of tokens ``start..stop`` of one kind.

    ``grid``: (rows, columns) of a CODE span, or of a FEATURE span whose tokens share one time and have a row and a column (M-RoPE) ·
    ``fold``: side of the square of codes that share one position (1 or 2) · ``image``: the
    picture among the sequence's ``pixels`` that a FEATURE span reads · ``branch``: None for GEN
    weights on codes and UND weights on the rest.

    Who reads whom: a key is read if its ``segment`` is 0 or the query's, and its order is at most the query's. ``order``: of the first
    token · ``order_step``: 0 gives all tokens this order, n adds one every n tokens (1 is causal, n block-causal) · ``order_phase``: tokens
    before the span that its first n are counted with. ``ON_UNMASK``: tokens
    get the order clock + 1 when they are unmasked, so that none of them reads a masked token (``sampling/step_causal.py``).
    ``positions_of``: an earlier span whose positions this one shares · ``position_offset``: added to all its positions.
    """

    name: str
    kind: int
    start: int
    stop: int
    grid: tuple[int, int] | None = None
    fold: int = 1
    image: int = 0
    segment: int = 0
    writable: bool = False
    branch: int | None = None
    order: int = 0
    order_step: int = 0
    order_phase: int = 0
    positions_of: str = ""
    position_offset: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __hash__(self) -> int:
        """Of the fields that tell spans apart: tables of spans are looked up several times a step."""
        return hash((self.name, self.start, self.stop))


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One request or training sample. ``ids [L]`` in the vocabulary of each token's kind.

    ``masked [L]``: masked tokens (their ids are the truth in training, and meaningless when sampling) · ``values [L, C]``: of continuous
    tokens. FEATURE tokens read rows of the sequence's features: ``features [R, D]`` where they are known, or those of ``pixels``
    [I, 3, H, W] in [0, 1], which the model encodes to ``feature_rows`` rows. ``feature [L]``: the row of each such token; None where a
    span reads the rows of its picture in order.
    """

    ids: Tensor
    masked: Tensor
    spans: tuple[Span, ...]
    values: Tensor | None = None
    pixels: Tensor | None = None
    features: Tensor | None = None
    feature: Tensor | None = None
    feature_rows: int = 0
    request: str = ""

    def span(self, name: str) -> Span:
        """The first span of that name. Raises KeyError with the names there are."""
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(f"no span {name!r}; there are {', '.join(s.name for s in self.spans)}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens, right-padded. All methods return new batches; nothing is changed in place.

    All [B, L] long: ids, kind, branch, position, segment, order, stride, feature, clean; bool: masked, writable, valid, leader, target;
    float: time, weight. ``leader``: the first token of every position · ``stride``: columns of the grid of a code whose position
    holds 2 x 2 codes, 0 for a token with a position of its own · ``axes [B, L, 2]``: row and column of every position, where a span gives
    them; ``position`` is then the time · ``feature``: the row of ``features`` (of ``pixels`` first, where there
    are both) that a FEATURE token reads · ``values [B, L, C]``: of continuous tokens · ``seed``, ``clock [B]``: key of each row's random
    numbers · ``span_table[b]``: the spans of row b.

    Set by a corruption in training: ``clean`` the true ids, ``weight`` the probability of being masked, ``target`` what the objective
    scores (None: the masked tokens), ``time`` in 0 clean .. 1 all masked. Set by the sampler: ``time`` the masked share of the row's
    block (in a row that starts with nothing masked, the share of its correcting steps that are left), ``region`` [B, L] bool the tokens of
    that block that the run may change, ``score`` [B, L] float the score with which each token was unmasked (-inf: not by this run).
    """

    ids: Tensor
    kind: Tensor
    branch: Tensor
    writable: Tensor
    valid: Tensor
    masked: Tensor
    position: Tensor
    leader: Tensor
    segment: Tensor
    order: Tensor
    stride: Tensor
    feature: Tensor
    seed: Tensor
    clock: Tensor
    span_table: tuple[tuple[Span, ...], ...]
    pixels: Tensor | None = None
    features: Tensor | None = None
    values: Tensor | None = None
    time: Tensor | None = None
    clean: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    region: Tensor | None = None
    score: Tensor | None = None
    axes: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def stamps(self) -> bool:
        """Whether any token's order is set when it is unmasked."""
        return derived("stamps", lambda: bool((self.order == ON_UNMASK).any()), self.order)

    def replace(self, **changes: object) -> Batch:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        moved = {
            f.name: v.to(device) for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return self.replace(**moved)

    def drop(self, spans: set[str], null_id: int, *, keep: bool = False) -> Batch:
        """Replace whole spans by the null embedding (text ``null_id``, understanding branch), as guidance wants it.

        ``keep``: the names are those to be kept instead. Writable tokens are never dropped.
        """
        gone = _given_spans(self.span_table, frozenset(spans), keep, self.ids.shape[1])
        there = derived(("to", self.device), lambda: gone.to(self.device), gone)
        return self.drop_tokens(there, null_id)

    def drop_tokens(self, gone: Tensor, null_id: int) -> Batch:
        """As ``drop``, for the tokens marked in ``gone [B, L]``."""
        given = {"kind": (self.kind, Kind.TEXT), "branch": (self.branch, Branch.UND), "feature": (self.feature, 0)}
        changed = {
            n: derived(("drop", n), partial(t.masked_fill, gone, value), t, gone) for n, (t, value) in given.items()
        }
        return self.replace(ids=self.ids.masked_fill(gone, null_id), **changed)

    def row(self, index: int) -> Batch:
        """One row alone, with the same padding; pixels and features stay whole, since rows address them by number."""
        picked = {
            f.name: v[index : index + 1]
            for f in dataclasses.fields(self)
            if f.name not in SHARED and isinstance(v := getattr(self, f.name), Tensor)
        }
        return self.replace(**picked, span_table=(self.span_table[index],))


SHARED = ("pixels", "features")  # fields of a batch that its rows address by number
CHANGING = ("ids", "values", "masked", "clock", "time", "region", "score")  # fields that every step of a run changes


@functools.lru_cache(maxsize=64)
def _given_spans(span_table: tuple[tuple[Span, ...], ...], names: frozenset[str], keep: bool, length: int) -> Tensor:
    """Tokens of the spans in ``names`` (``keep``: of all others) that are not writable, [B, L] bool."""
    found = torch.zeros(len(span_table), length, dtype=torch.bool)
    for row, table in enumerate(span_table):
        for span in table:
            if (span.name in names) != keep and not span.writable:
                found[row, span.start : span.stop] = True
    return found


def stack(views: Items[Batch]) -> Batch:
    """Batches one under the other: guidance views of the same rows, or runs that share a forward. They share pixels and features.

    Values are zero where a batch has none; ValueError where only some batches have another field.
    """
    views = _all_with_axes(_all_with_values(views))
    fixed, changing = dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    for name in (f.name for f in dataclasses.fields(Batch) if f.name not in SHARED):
        some = [t for view in views if isinstance(t := getattr(view, name), Tensor)]
        if len(some) not in (0, len(views)):
            raise ValueError(f"only {len(some)} of {len(views)} batches have {name!r}; stack batches that all have it")
        if some:
            (changing if name in CHANGING else fixed)[name] = some
    parts = [t for some in fixed.values() for t in some]
    tensors = derived(("stack", *fixed), lambda: {name: torch.cat(some) for name, some in fixed.items()}, *parts)
    tensors = tensors | {name: torch.cat(some) for name, some in changing.items()}
    return views[0].replace(**tensors, span_table=tuple(t for v in views for t in v.span_table))


def _all_with_values(views: Items[Batch]) -> Items[Batch]:
    known = next((view.values for view in views if view.values is not None), None)
    if known is None:
        return views
    empty = [known.new_zeros(*view.ids.shape, known.shape[-1]) for view in views]
    return [v if v.values is not None else v.replace(values=zero) for v, zero in zip(views, empty, strict=True)]


def _all_with_axes(views: Items[Batch]) -> Items[Batch]:
    if all(view.axes is None for view in views):
        return views
    return [v if v.axes is not None else v.replace(axes=v.position[..., None].expand(-1, -1, 2)) for v in views]


def collate(sequences: Items[Sequence], seeds: Items[int]) -> Batch:
    """Right-pad sequences into a batch with ``clean`` = their ids. ValueError where continuous tokens differ in channels."""
    rows, length = len(sequences), max(len(s.ids) for s in sequences)
    ids = torch.zeros(rows, length, dtype=torch.long)
    masked, valid = torch.zeros(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.bool)
    table = torch.zeros(10, rows, length, dtype=torch.long)
    for b, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[b, :n], masked[b, :n], valid[b, :n] = sequence.ids, sequence.masked, True
        table[:, b, :n] = span_layout(sequence.spans)
    kind, branch, writable, position, leader, segment, order, stride, down, across = table
    placed = any(span.kind == Kind.FEATURE and span.grid for s in sequences for span in s.spans)
    given = (order == ON_UNMASK) & ~masked  # unmasked before the first step
    order = order.masked_fill(given, 0)
    pixels = [s.pixels for s in sequences if s.pixels is not None]
    features = [s.features for s in sequences if s.features is not None]
    return Batch(
        ids=ids,
        kind=kind,
        branch=branch,
        writable=writable.bool(),
        valid=valid,
        masked=masked,
        position=position,
        leader=leader.bool(),
        segment=segment,
        order=order,
        stride=stride,
        feature=_feature_rows(sequences, length),
        seed=torch.tensor(list(seeds), dtype=torch.long),
        clock=torch.zeros(rows, dtype=torch.long),
        span_table=tuple(s.spans for s in sequences),
        pixels=of_one_size(pixels) if pixels else None,
        features=torch.cat(features) if features else None,
        values=_values(sequences, length),
        clean=ids,
        axes=torch.stack([down, across], dim=-1) if placed else None,
    )


def of_one_size(pictures: Items[Tensor]) -> Tensor:
    """Pictures [I, 3, H, W] of several sizes in one tensor; smaller ones are padded on the right and below with NaN, which a tower that
    reads pictures of any size leaves out.
    """
    high, wide = (max(some.shape[side] for some in pictures) for side in (2, 3))
    return torch.cat(
        [
            some
            if some.shape[2:] == (high, wide)
            else F.pad(some.float(), (0, wide - some.shape[3], 0, high - some.shape[2]), value=torch.nan)
            for some in pictures
        ]
    )


def _feature_rows(sequences: Items[Sequence], length: int) -> Tensor:
    """The feature row of every token, [B, L]: rows of all pixels come first, then the features that are known already."""
    feature = torch.zeros(len(sequences), length, dtype=torch.long)
    first = {False: 0, True: sum(s.feature_rows for s in sequences if s.pixels is not None)}  # by: features are known
    for b, sequence in enumerate(sequences):
        known = sequence.features is not None
        for span in sequence.spans:
            if span.kind == Kind.FEATURE:
                here, own = slice(span.start, span.stop), torch.arange(len(span)) + span.image * len(span)
                feature[b, here] = first[known] + (own if sequence.feature is None else sequence.feature[here])
        first[known] += len(sequence.features) if sequence.features is not None else sequence.feature_rows
    return feature


def _values(sequences: Items[Sequence], length: int) -> Tensor | None:
    """Values of continuous tokens, [B, L, C], zero where a sequence has none."""
    channels = {s.values.shape[1] for s in sequences if s.values is not None}
    if not channels:
        return None
    if len(channels) > 1:
        raise ValueError(f"continuous tokens of one batch must have as many channels, got {sorted(channels)}")
    padded = [
        s.ids.new_zeros(length, *channels, dtype=torch.float)
        if s.values is None
        else F.pad(s.values, (0, 0, 0, length - len(s.values)))
        for s in sequences
    ]
    return torch.stack(padded)


def writable_tokens(sequence: Sequence) -> Tensor:
    """The numbers of the tokens of writable spans, in their order."""
    spans = [torch.arange(span.start, span.stop) for span in sequence.spans if span.writable]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.long)


def sequence_at(sequence: Sequence, batch: Batch, row: int) -> Sequence:
    """``sequence`` with the ids, masks and values that a row of a batch has now, on the CPU. Where the batch has values, so has it: a row
    without any of its own gets zeros.
    """
    length = len(sequence.ids)
    ids, masked = batch.ids[row, :length].cpu(), batch.masked[row, :length].cpu()
    values = sequence.values if batch.values is None else batch.values[row, :length].cpu()
    return dataclasses.replace(sequence, ids=ids, masked=masked, values=values)
