"""The positions of a batch as the layers see them: one stream for each branch, and which codes share a position.

Public idea: ``stream(chosen, reuse) -> Stream`` packs the positions of a branch, ``attend(batch, streams, ..)`` says who reads whom.

Shapes: B rows · L tokens · C computed positions · S positions that are read (S = C where nothing is reused) · T code tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sequence import Batch, Branch
from unmask.step import Reuse


@dataclass(frozen=True, kw_only=True)
class Stream:
    """``index [B, C]``: token numbers of the computed positions, packed to the front; ``valid [B, C]``: those that are real.

    ``key_index``, ``key_valid [B, S]``: the same of all positions that may be read; ``slot [B, C]``: where the computed ones stand among
    them, None where they are the same.
    """

    index: Tensor
    valid: Tensor
    key_index: Tensor
    key_valid: Tensor
    slot: Tensor | None = None


def stream(chosen_BL: Tensor, reuse: Reuse | None) -> Stream | None:
    """The positions marked in ``chosen`` by their first tokens; None where there are none."""
    packed = pack(chosen_BL)
    if packed is None:
        return None
    index, valid = packed
    if reuse is None:
        return Stream(index=index, valid=valid, key_index=index, key_valid=valid)
    present = reuse.compute if reuse.state is None else reuse.compute | reuse.state.held
    computed = chosen_BL & reuse.compute
    own, own_valid = pack(computed) or (index[:, :0], valid[:, :0])
    rank = chosen_BL.long().cumsum(1) - 1
    slot = rank.gather(1, own).masked_fill(~own_valid, index.shape[1])  # padding goes to a place of its own
    return Stream(index=own, valid=own_valid, key_index=index, key_valid=valid & present.gather(1, index), slot=slot)


def pack(chosen_BL: Tensor) -> tuple[Tensor, Tensor] | None:
    """Chosen tokens of each row moved to the front: (token number [B, n], whether it is one [B, n]); None where there are none."""
    counts = chosen_BL.sum(1)
    most = int(counts.max())
    if most == 0:
        return None
    index = (~chosen_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return index, torch.arange(most, device=counts.device) < counts[:, None]


def attend(batch: Batch, streams: Sequence[Stream], grouped: bool) -> Tensor | None:
    """Which computed position (row) may read which position (column) of some streams, [B, 1, C, S]; None where everything may.

    A key is read if it is present, its segment is 0 or the query's, and its order is at most the query's. ``grouped``: whether
    there is any segment or order at all.
    """
    if not streams:
        return None
    keys = torch.cat([s.key_valid for s in streams], 1)
    queries = sum(s.index.shape[1] for s in streams)
    if not grouped:
        return None if bool(keys.all()) else keys[:, None, None, :].expand(-1, 1, queries, -1)
    key, query = torch.cat([s.key_index for s in streams], 1), torch.cat([s.index for s in streams], 1)
    segment, order = batch.segment.gather(1, key)[:, None], batch.order.gather(1, key)[:, None]
    mine = (segment == 0) | (segment == batch.segment.gather(1, query)[..., None])
    return (mine & (order <= batch.order.gather(1, query)[..., None]) & keys[:, None])[:, None]


@dataclass(frozen=True, kw_only=True)
class Squares:
    """The code tokens of a stream, and how they share positions.

    ``index``, ``valid [B, T]``: token numbers, packed · ``square [B, C, 4]``: the places in ``index`` of each position's codes, row by
    row; None where every code has a position of its own · ``alone [B, C]``: positions of one code; None where there are none ·
    ``place [B, T]``: 4 * position + corner of each code.
    """

    index: Tensor
    valid: Tensor
    square: Tensor | None = None
    alone: Tensor | None = None
    place: Tensor | None = None

    def codes_of(self, h_BCE: Tensor, unfolded: Callable[[Tensor], Tensor], wanted_BT: Tensor) -> Tensor:
        """One vector for each code in ``wanted``, [N, E]; ``unfolded`` makes four of a position's one."""
        if self.place is None:
            return h_BCE[wanted_BT]
        row = torch.arange(len(h_BCE), device=h_BCE.device)[:, None].expand_as(wanted_BT)[wanted_BT]
        place = self.place[wanted_BT]
        found = unfolded(h_BCE).flatten(1, 2)[row, place]
        if self.alone is None:
            return found
        own = h_BCE[row, place // 4]
        return torch.where(self.alone[row, place // 4][:, None], own, found)


def squares_of(batch: Batch, gen: Stream, reuse: Reuse | None) -> Squares:
    """The codes of a stream; where they are folded, the squares they form."""
    chosen = batch.valid & (batch.branch == Branch.GEN)
    if reuse is not None:
        chosen = chosen & reuse.compute
    index, valid = pack(chosen) or (gen.index, gen.valid)
    stride = batch.stride.gather(1, gen.index)
    folded = (stride > 0) & gen.valid
    if not bool(folded.any()):
        return Squares(index=index, valid=valid)
    length = batch.ids.shape[1]
    corner = torch.stack([torch.zeros_like(stride), torch.ones_like(stride), stride, stride + 1], dim=-1)
    # Token numbers of each square; padding points to a column behind the last token, a position of one code to it four times.
    token = gen.index[..., None] + torch.where(stride[..., None] > 0, corner, 0)
    token = token.masked_fill(~gen.valid[..., None], length)
    rank = torch.cat([chosen.long().cumsum(1) - 1, chosen.new_zeros(len(chosen), 1, dtype=torch.long)], 1)
    square = rank.gather(1, token.flatten(1)).view_as(token)
    alone = (stride == 0) & gen.valid
    some_alone = bool(alone.any())
    numbers = torch.arange(4 * stride.shape[1], device=rank.device).view(-1, 4).expand_as(token)
    place = torch.zeros_like(rank)
    if some_alone:
        for c in (3, 2, 1, 0):  # the first corner last: it is what a position of one code keeps
            place = place.scatter(1, token[..., c], numbers[..., c])
    else:
        place = place.scatter(1, token.flatten(1), numbers.flatten(1))
    return Squares(
        index=index,
        valid=valid,
        square=square,
        alone=alone if some_alone else None,
        place=place[:, :length].gather(1, index),
    )


def flat_tokens(index_BC: Tensor, length: int) -> Tensor:
    """Flat token numbers (row * length + token) of packed token numbers."""
    return index_BC + torch.arange(len(index_BC), device=index_BC.device)[:, None] * length
