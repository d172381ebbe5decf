"""How a batch lies in the layers: the computed positions of each branch one after the other, in groups of rows that are attended together.

Public idea: ``lay_out(batch, reuse, packing) -> Layout``. It depends on the fields that a sampler run does not change, so it is made once a
run. Rows of different lengths are not padded to the longest: linear layers see real positions alone, and attention takes one group at a
time. Rows share a group where they have the same lengths, or where padding costs less than one more group.

Shapes: B rows · L tokens · N packed positions · G rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.models.rope import Table, rope_table, section_table
from unmask.models.streams import Stream, attend, pack, stream
from unmask.sequence import Batch, Branch, Kind
from unmask.step import Reuse

Lengths = tuple[int, int]  # understanding and generation positions of a row


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What a layout depends on besides the batch.

    ``und_flops``, ``gen_flops``: of one position in the matrices of a layer · ``width``: of attention · ``group_flops``: what could be
    computed while one more group is launched · ``unpadded_from``: rows with so many positions are not padded, since padding could change
    which attention they get · ``together``: all rows in one group, so that gradients are summed in one order.
    """

    und_flops: float
    gen_flops: float
    width: int
    group_flops: float
    unpadded_from: int
    together: bool
    head_width: int
    theta: float
    sections: tuple[int, ...] = ()

    def flops(self, lengths: Lengths) -> float:
        """Of one row in a joint layer."""
        und, gen = lengths
        return und * self.und_flops + gen * self.gen_flops + 4 * self.width * (und + gen) ** 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """The positions of a group in one branch: ``rows * length`` of the packed ones from ``start`` on. ``rope``: see ``rope_table``."""

    start: int
    rows: int
    length: int
    rope: Table

    def of(self, x_NHK: Tensor) -> Tensor:
        """[G, H, length, K]."""
        count = self.rows * self.length
        own = x_NHK if count == x_NHK.shape[0] else x_NHK[self.start : self.start + count]
        return own.view(self.rows, self.length, *own.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are attended together. ``parts``: by branch, those without positions left out · ``masks``: by branch, and "joint" for both
    with the codes first: who may read whom, [G, 1, T, S]; None where everything may.
    """

    parts: dict[str, Part]
    masks: dict[str, Tensor | None]
    tables: dict[tuple[str, ...], Table] = field(default_factory=dict)

    def rope(self, names: tuple[str, ...]) -> Table:
        """Rotary tables of the positions of some branches, one after the other."""
        if names not in self.tables:
            cos, sin = zip(*(self.parts[name].rope for name in names), strict=True)
            self.tables[names] = torch.cat(cos, dim=2), torch.cat(sin, dim=2)
        return self.tables[names]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The computed positions of a branch.

    ``token [N]``: flat number (row * L + token) of the first token of each · ``pad [N]``: positions that only fill up a group; None where
    there are none · ``scorable [B, L]``: tokens that its head can score · ``place [B * L]``: the position of each of them; where there are
    squares, 4 * position + corner.
    """

    token: Tensor
    pad: Tensor | None
    scorable: Tensor
    place: Tensor


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Inputs of the understanding branch that are not text: ``other [N]`` positions without an id (features and padding), ``feature [N]``
    those that read ``row [N]`` of the features. None where there are none.
    """

    other: Tensor | None
    feature: Tensor | None
    row: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Squares:
    """``codes [N, 4]``: flat numbers of the four codes of each position, row by row; a position of one code names it four times and is
    marked in ``alone [N]`` (None where there are none) · ``token [M]``: flat numbers of all codes in their order, in which gradients are
    summed; ``pad [M]``: those that only fill up a row, None where there are none · ``places [N, 4]``: of ``codes`` in ``token``.
    """

    codes: Tensor
    alone: Tensor | None
    token: Tensor
    pad: Tensor | None
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``und``, ``gen``: None for a branch without positions · ``squares``: None where every code has a position of its own ·
    ``streams``: of all rows, by branch · ``scores``: the branch whose head scores all writable tokens; None where neither does.
    """

    groups: tuple[Group, ...]
    und: Packed | None
    gen: Packed | None
    reads: Reads
    squares: Squares | None
    streams: dict[str, Stream]
    scores: str | None


def lay_out(batch: Batch, reuse: Reuse | None, packing: Packing) -> Layout:
    """The layout of a batch; ``reuse``: as of the model."""
    kept_BL = batch.leader & batch.valid
    chosen = {"und": kept_BL & (batch.branch == Branch.UND), "gen": kept_BL & (batch.branch == Branch.GEN)}
    streams = {name: found for name, of in chosen.items() if (found := stream(of, reuse)) is not None}
    grouped = bool((kept_BL & ((batch.segment > 0) | (batch.order != 0))).any())
    if reuse is not None or packing.together or batch.rows == 1:
        rows, parts = [list(range(batch.rows))], [streams]
    else:
        lengths = torch.stack([chosen["und"].sum(1), chosen["gen"].sum(1)], dim=1).tolist()
        rows = groups_of([(und, gen) for und, gen in lengths], packing)
        parts = [_rows_of(streams, some, lengths) for some in rows]
    groups, starts = [], {"und": 0, "gen": 0}
    for some, own in zip(rows, parts, strict=True):
        groups.append(_group(batch, some, own, starts, grouped, packing))
        starts = {name: start + (own[name].index.numel() if name in own else 0) for name, start in starts.items()}
    und, gen = (_packed(batch, rows, parts, name) for name in ("und", "gen"))
    squares = _squares(batch, gen, reuse, packing.together) if gen is not None else None
    found = {
        "und": _scored(batch, und, None, reuse, Kind.TEXT, Branch.UND),
        "gen": _scored(batch, gen, squares, reuse, Kind.CODE, Branch.GEN),
    }
    return Layout(
        groups=tuple(groups),
        und=found["und"],
        gen=found["gen"],
        reads=_reads(batch, und),
        squares=squares,
        streams=streams,
        scores=_scores(batch, found),
    )


def groups_of(lengths: Sequence[Lengths], packing: Packing) -> list[list[int]]:
    """Row numbers of each group, so that padding costs less than the groups that it saves.

    Padding is added only behind what a row reads: keys between others would change how sums round (docs/notes/0005-engine.md).
    """
    rows: dict[Lengths, list[int]] = {}
    for row, own in enumerate(lengths):
        rows.setdefault(own, []).append(row)
    groups: list[tuple[Lengths, list[int]]] = []
    for own in sorted(rows, key=lambda pair: (pair[1], pair[0])):
        if groups:
            before, already = groups[-1]
            both = (max(before[0], own[0]), max(before[1], own[1]))
            wasted = len(already) * (packing.flops(both) - packing.flops(before))
            wasted += len(rows[own]) * (packing.flops(both) - packing.flops(own))
            behind = before[1] == own[1] or both[0] == 0  # padded codes would stand before understanding positions
            if behind and wasted <= packing.group_flops and sum(both) < packing.unpadded_from:
                groups[-1] = (both, already + rows[own])
                continue
        groups.append((own, rows[own]))
    return [sorted(some) for _, some in groups]


def _rows_of(streams: dict[str, Stream], rows: list[int], lengths: list[list[int]]) -> dict[str, Stream]:
    """The streams of some rows, as long as the longest of them."""
    found = {}
    for place, name in enumerate(("und", "gen")):
        length = max(lengths[row][place] for row in rows)
        if length:
            whole = streams[name]
            index, valid = (t[rows, :length].contiguous() for t in (whole.index, whole.valid))
            found[name] = Stream(index=index, valid=valid, key_index=index, key_valid=valid)
    return found


def _group(
    batch: Batch,
    rows: list[int],
    streams: dict[str, Stream],
    starts: dict[str, int],
    grouped: bool,
    packing: Packing,
) -> Group:
    own = batch.replace(segment=batch.segment[rows], order=batch.order[rows])
    position_GL = batch.position[rows]
    parts, masks = {}, {}
    for name, s in streams.items():
        rope = rope_table(position_GL.gather(1, s.index), packing.head_width, packing.theta)
        if batch.axes is not None and packing.sections:
            places_3GT = torch.stack([p[rows].gather(1, s.index) for p in (batch.position, *batch.axes.unbind(2))])
            rope = section_table(places_3GT, packing.sections, packing.theta)
        parts[name] = Part(start=starts[name], rows=len(rows), length=s.index.shape[1], rope=rope)
        masks[name] = attend(own, [s], grouped)
    both = [streams[name] for name in ("gen", "und") if name in streams]
    masks["joint"] = attend(own, both, grouped) if len(both) == 2 else None
    return Group(parts=parts, masks=masks)


def _scores(batch: Batch, found: dict[str, Packed | None]) -> str | None:
    """The branch whose head scores all writable tokens."""
    open_BL = batch.writable & batch.valid
    names = [name for name, packed in found.items() if packed is not None]
    missed = [(open_BL & ~packed.scorable).any() for packed in found.values() if packed is not None]
    every = torch.stack(missed).tolist() if missed else []
    return next((name for name, some in zip(names, every, strict=True) if not some), None)


_Flat = tuple[Tensor, Tensor]  # flat numbers of the first tokens [N], and which of them are real positions


def _packed(batch: Batch, rows: list[list[int]], parts: list[dict[str, Stream]], name: str) -> _Flat | None:
    length, device = batch.ids.shape[1], batch.device
    token, valid = [], []
    for some, streams in zip(rows, parts, strict=True):
        if name in streams:
            token.append((streams[name].index + torch.tensor(some, device=device)[:, None] * length).flatten())
            valid.append(streams[name].valid.flatten())
    return (torch.cat(token), torch.cat(valid)) if token else None


def _scored(
    batch: Batch, flat: _Flat | None, squares: Squares | None, reuse: Reuse | None, kind: int, branch: int
) -> Packed | None:
    if flat is None:
        return None
    token_N, valid_N = flat
    number_N = torch.arange(len(token_N), device=token_N.device)
    place = torch.zeros(batch.ids.numel(), dtype=torch.long, device=token_N.device)
    computed_BL = batch.valid if reuse is None else batch.valid & reuse.compute
    scorable_BL = computed_BL & (batch.kind == kind) & (batch.branch == branch)
    if squares is None:
        place[token_N[valid_N]] = number_N[valid_N]
        scorable_BL = scorable_BL & batch.leader
    else:
        for corner in (3, 2, 1, 0):  # the first corner last: it is what a position of one code keeps
            place[squares.codes[valid_N, corner]] = 4 * number_N[valid_N] + corner
    full = bool(valid_N.all())
    return Packed(token=token_N, pad=None if full else ~valid_N, scorable=scorable_BL, place=place)


def _squares(batch: Batch, flat: _Flat, reuse: Reuse | None, together: bool) -> Squares | None:
    token_N, valid_N = flat
    stride_N = batch.stride.flatten()[token_N].masked_fill(~valid_N, 0)
    folded_N = stride_N > 0
    if not bool(folded_N.any()):
        return None
    corner = torch.stack([torch.zeros_like(stride_N), torch.ones_like(stride_N), stride_N, stride_N + 1], dim=-1)
    codes = token_N[:, None] + torch.where(folded_N[:, None], corner, 0)
    alone_N = ~folded_N & valid_N
    chosen_BL = batch.valid & (batch.branch == Branch.GEN)
    if reuse is not None:
        chosen_BL = chosen_BL & reuse.compute
    token, real = chosen_BL.flatten().nonzero()[:, 0], None
    if together and (found := pack(chosen_BL)) is not None:  # padded like the rows
        token = (found[0] + torch.arange(batch.rows, device=token.device)[:, None] * batch.ids.shape[1]).flatten()
        real = found[1].flatten()
    number = torch.arange(len(token), device=token.device)
    places = torch.zeros(batch.valid.numel(), dtype=torch.long, device=token.device)
    places[token if real is None else token[real]] = number if real is None else number[real]
    return Squares(
        codes=codes,
        alone=alone_N if bool(alone_N.any()) else None,
        token=token,
        pad=None if real is None or bool(real.all()) else ~real,
        places=places[codes],
    )


def _reads(batch: Batch, flat: _Flat | None) -> Reads:
    if flat is None:
        return Reads(other=None, feature=None, row=None)
    token_N, valid_N = flat
    kind_N = batch.kind.flatten()[token_N]
    other_N, feature_N = (kind_N != Kind.TEXT) | ~valid_N, kind_N == Kind.FEATURE
    return Reads(
        other=other_N if bool(other_N.any()) else None,
        feature=feature_N if bool(feature_N.any()) else None,
        row=batch.feature.flatten()[token_N],
    )
