"""Which positions of a batch are computed, and which of them read which others.

Public idea: ``stream(chosen, reuse) -> Stream`` packs the positions of a branch, ``attend(batch, streams, ..)`` says who reads whom.

Shapes: B rows · L tokens · C computed positions · S positions that are read (S = C where nothing is reused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sequence import Batch
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
