"""The data that flows: spans, sequences, batches, predictions, proposals, moves and losses.

Public idea: text, pixels and image codes are *spans* of one ``Sequence``; a ``Batch`` is several of them, and everything that
generates or learns only ever reads and writes a ``Batch``.

Letters: B rows, L tokens, N tokens asked for, V vocabulary, I images. A *token* is decided, a *position* is read by the
transformer; a folded code span has ``fold * fold`` tokens a position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Kind(IntEnum):
    """What vocabulary a token belongs to."""

    TEXT = 0
    CODE = 1
    PATCH = 2


class Branch(IntEnum):
    """Which weights serve a token."""

    UND = 0
    GEN = 1


@dataclass(frozen=True, kw_only=True)
class Span:
    """A named stretch of tokens ``start..stop`` of one kind.

    ``grid``: (rows, columns) of a CODE span · ``fold``: side of the square of codes that share one position · ``image``: number of
    the picture among the sequence's ``pixels`` that a PATCH span reads · ``segment``: 0 is context that everything reads; a
    span of another segment is read by its own segment alone (so that several questions share one picture).
    """

    name: str
    kind: Kind
    start: int
    stop: int
    grid: tuple[int, int] | None = None
    fold: int = 1
    image: int = 0
    segment: int = 0
    writable: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One request or training sample. ``ids [L]`` in the vocabulary of each token's kind; ``pixels [I, 3, H, W]`` in [0, 1].

    ``masked [L]``: undecided tokens (their ids are the truth in training, and meaningless when sampling) · ``feature [L]``: the row of
    the sequence's picture features that each PATCH token reads; None where a span reads those of its picture in order.
    """

    ids: Tensor
    masked: Tensor
    spans: tuple[Span, ...]
    pixels: Tensor | None = None
    feature: Tensor | None = None
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

    ids, clean, position, segment, feature, seed..: long · masked, writable, valid, leader: bool · weight: float.
    ``leader`` marks the first token of every position. ``feature`` is the row of the picture features that a PATCH token reads.
    ``grid`` and ``fold`` hold for every CODE span of the batch. ``span_table[b]`` are the spans of row b.
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
    feature: Tensor
    seed: Tensor
    clock: Tensor
    span_table: tuple[tuple[Span, ...], ...]
    grid: tuple[int, int] = (0, 0)
    fold: int = 1
    pixels: Tensor | None = None
    clean: Tensor | None = None
    weight: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def replace(self, **changes: object) -> Batch:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        moved = {
            f.name: v.to(device) for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return self.replace(**moved)

    def write(self, move: Move, proposal: Proposal) -> Batch:
        """Apply a move: unmask with the proposed ids, remask, redraw; the clock of every row with something to decide advances."""
        ids = torch.where(move.unmask | move.redraw, proposal.ids, self.ids)
        masked = (self.masked & ~move.unmask) | move.remask
        live = (self.masked & self.writable & self.valid).any(1)
        return self.replace(ids=ids, masked=masked, clock=self.clock + live)

    def drop(self, spans: set[str], null_id: int, *, keep: bool = False) -> Batch:
        """Replace whole spans by the null embedding (text ``null_id``, understanding branch), as guidance wants it.

        ``keep``: the names are those to be kept instead. Writable tokens are never dropped.
        """
        gone = torch.zeros_like(self.masked)
        for row, table in enumerate(self.span_table):
            for span in table:
                if (span.name in spans) != keep and not span.writable:
                    gone[row, span.start : span.stop] = True
        return self.drop_tokens(gone, null_id)

    def drop_tokens(self, gone: Tensor, null_id: int) -> Batch:
        """As ``drop``, for the tokens marked in ``gone [B, L]``."""
        return self.replace(
            ids=self.ids.masked_fill(gone, null_id),
            kind=self.kind.masked_fill(gone, Kind.TEXT),
            branch=self.branch.masked_fill(gone, Branch.UND),
            feature=self.feature.masked_fill(gone, 0),
        )

    def row(self, index: int) -> Batch:
        """One row alone, with the same padding; pixels stay whole, since features are addressed by number."""
        picked = {
            f.name: v[index : index + 1]
            for f in dataclasses.fields(self)
            if f.name != "pixels" and isinstance(v := getattr(self, f.name), Tensor)
        }
        return self.replace(**picked, span_table=(self.span_table[index],))


def stack(views: Items[Batch]) -> Batch:
    """Batches of the same rows seen differently (guidance streams), one under the other; they share their pixels."""
    first = views[0]
    tensors = {
        f.name: torch.cat([getattr(v, f.name) for v in views])
        for f in dataclasses.fields(first)
        if f.name != "pixels" and isinstance(getattr(first, f.name), Tensor)
    }
    return first.replace(**tensors, span_table=tuple(t for v in views for t in v.span_table))


def collate(sequences: Items[Sequence], seeds: Items[int], *, features_per_image: int = 0) -> Batch:
    """Right-pad sequences into a batch with ``clean`` = their ids. ValueError where code grids differ.

    ``features_per_image``: feature rows of one picture, which says where each one's begin.
    """
    rows, length = len(sequences), max(len(s.ids) for s in sequences)
    shapes = {(s.grid, s.fold) for q in sequences for s in q.spans if s.kind == Kind.CODE}
    if len(shapes) > 1:
        raise ValueError(f"code spans of one batch must have one grid and fold, got {sorted(map(str, shapes))}")
    grid, fold = shapes.pop() if shapes else ((0, 0), 1)
    ids = torch.zeros(rows, length, dtype=torch.long)
    masked, valid = torch.zeros(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.bool)
    table = torch.zeros(6, rows, length, dtype=torch.long)  # kind, branch, writable, position, leader, segment
    feature = torch.zeros(rows, length, dtype=torch.long)
    images = 0
    for b, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[b, :n], masked[b, :n], valid[b, :n] = sequence.ids, sequence.masked, True
        table[:, b, :n] = _layout(sequence.spans)
        for span in sequence.spans:
            if span.kind == Kind.PATCH:
                here, first = slice(span.start, span.stop), images * features_per_image
                own = torch.arange(len(span)) + span.image * features_per_image
                feature[b, here] = first + (own if sequence.feature is None else sequence.feature[here])
        images += 0 if sequence.pixels is None else len(sequence.pixels)
    pixels = [s.pixels for s in sequences if s.pixels is not None]
    return Batch(
        ids=ids,
        kind=table[0],
        branch=table[1],
        writable=table[2].bool(),
        valid=valid,
        masked=masked,
        position=table[3],
        leader=table[4].bool(),
        segment=table[5],
        feature=feature,
        seed=torch.tensor(list(seeds), dtype=torch.long),
        clock=torch.zeros(rows, dtype=torch.long),
        span_table=tuple(s.spans for s in sequences),
        grid=grid or (0, 0),
        fold=fold,
        pixels=torch.cat(pixels) if pixels else None,
        clean=ids,
    )


def decided(sequence: Sequence, batch: Batch, row: int) -> Sequence:
    """``sequence`` as a row of a batch has it now, on the CPU."""
    length = len(sequence.ids)
    ids, masked = batch.ids[row, :length].cpu(), batch.masked[row, :length].cpu()
    return dataclasses.replace(sequence, ids=ids, masked=masked)


_layouts: dict[tuple[Span, ...], Tensor] = {}


def _layout(spans: tuple[Span, ...]) -> Tensor:
    """kind, branch, writable, position, leader and segment of every token, [6, L]; a pure function of the spans, remembered."""
    known = _layouts.get(spans)  # other threads may clear what is remembered at any time
    if known is None:
        if len(_layouts) > 4096:
            _layouts.clear()
        known = _layouts[spans] = _lay_out(spans)
    return known


def _lay_out(spans: tuple[Span, ...]) -> Tensor:
    length = spans[-1].stop if spans else 0
    table = torch.zeros(6, length, dtype=torch.long)
    context = 0  # first position after the context: where every other segment begins
    reached: dict[int, int] = {}
    for span in spans:
        start = reached.get(span.segment, context) if span.segment else context
        table[0, span.start : span.stop] = span.kind
        table[1, span.start : span.stop] = Branch.GEN if span.kind == Kind.CODE else Branch.UND
        table[2, span.start : span.stop] = int(span.writable)
        table[5, span.start : span.stop] = span.segment
        if span.kind == Kind.CODE:
            rows, columns = span.grid or (1, len(span))
            r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
            place = (r // span.fold) * (columns // span.fold) + c // span.fold
            first = (r % span.fold == 0) & (c % span.fold == 0)
            table[3, span.start : span.stop] = start + place.flatten()
            table[4, span.start : span.stop] = first.flatten()
            end = start + rows * columns // span.fold**2
        else:
            table[3, span.start : span.stop] = torch.arange(start, start + len(span))
            table[4, span.start : span.stop] = 1
            end = start + len(span)
        if span.segment:
            reached[span.segment] = end
        else:
            context = end
    return table


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a step wants of the model: the logits of the tokens ``ask [B, L]`` of ``batch``, whose rows may be several views of the same."""

    batch: Batch
    ask: Tensor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of the tokens asked for.

    ``text [N_t]``, ``code [N_c]``: flat token numbers (row * L + token), in rising order · ``text_logits [N_t, V]``,
    ``code_logits [N_c, V_c]`` · ``carry``: whatever the model wants handed back at the next step (opaque).
    """

    text: Tensor
    text_logits: Tensor
    code: Tensor
    code_logits: Tensor
    carry: object = None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Candidate ids ``[B, L]`` and how sure each is: ``score [B, L]``, higher is surer, -inf where nothing was asked."""

    ids: Tensor
    score: Tensor


@dataclass(frozen=True, kw_only=True)
class Move:
    """Which tokens change, each [B, L] bool: masked ones take the proposal, decided ones are masked again, or redrawn."""

    unmask: Tensor
    remask: Tensor
    redraw: Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where every row of a sampler run stands. Rows may need different numbers of steps, and an answer never depends on its company.

    ``number [B]``: step of each row in its current window, from 0 · ``of [B]``: how many its schedule planned · ``length``: L.
    """

    number: Tensor
    of: Tensor
    length: int

    @property
    def fraction(self) -> Tensor:
        """[B] float: 0 at the first step, 1 at the last (0 where there is one step alone)."""
        return (self.number / (self.of - 1).clamp(min=1)).clamp(max=1.0).float()

    def row(self, flat_N: Tensor) -> Tensor:
        """The row of each flat token number."""
        return flat_N // self.length


@dataclass(frozen=True, kw_only=True)
class Loss:
    """``total`` to be minimised; ``terms`` by name (scalars, mean a token); ``counts`` by name: tokens each mean is over."""

    total: Tensor
    terms: dict[str, Tensor]
    counts: dict[str, int]
