"""The absorbing process: every writable token is masked independently with its group's probability (spec 3.1).

A group is what shares one time: the text, or the codes, of one segment of one row. Text and picture of a sample thus have
independent times, and so have the questions that share a picture. At least one token of every group is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.schedules import Cosine, Policy
from unmask.sequence import Batch, Kind

_LEAST = 1e-3


@dataclass(frozen=True, kw_only=True)
class Absorbing:
    """``text`` and ``code``: the policies from which each group's time is drawn."""

    text: Policy = Cosine()
    code: Policy = Cosine()

    def groups(self, batch: Batch) -> Tensor:
        """Group number of every token, [B, L]: (row, segment, kind of vocabulary)."""
        segments = int(batch.segment.max()) + 1
        row = torch.arange(batch.rows, device=batch.device)[:, None]
        return (row * segments + batch.segment) * 2 + (batch.kind == Kind.CODE).long()

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """A time for every group, as seen by each token: [B, L]. The groups of a kind share 0..1 out in as many strata."""
        group = self.groups(batch)
        count = int(group.max()) + 1
        live = torch.zeros(count, dtype=torch.bool)
        live[group[batch.writable & batch.valid].cpu()] = True
        code = torch.arange(count) % 2 == 1
        time = torch.zeros(count)
        for policy, of_kind in ((self.text, live & ~code), (self.code, live & code)):
            n = int(of_kind.sum())
            time[of_kind] = policy((torch.randperm(n, generator=rng) + torch.rand(n, generator=rng)) / max(n, 1))
        return time.to(batch.device)[group]

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """``time [B, L]`` as ``times`` gives it, or [B]. Returns the batch with ``masked`` and ``weight`` set.

        ``weight`` is the chance with which a token was masked; infinite where it was masked only because its group had none.
        """
        time = time[:, None].expand_as(clean.ids) if time.dim() == 1 else time
        open_ = clean.writable & clean.valid
        u = torch.rand(clean.ids.shape, generator=rng).to(clean.device)
        chance = (1 - _LEAST) * time + _LEAST
        masked = (u < chance) & open_
        # The luckiest token of a group that got none: a group's smallest u.
        group = self.groups(clean)
        count = int(group.max()) + 1
        least = torch.full((count,), 2.0, device=clean.device)
        least = least.scatter_reduce(0, group.flatten(), u.masked_fill(~open_, 2.0).flatten(), "amin")
        some = torch.zeros(count, dtype=torch.bool, device=clean.device)
        some[group[masked]] = True
        forced = open_ & ~some[group] & (u == least[group])
        return clean.replace(masked=masked | forced, weight=chance.masked_fill(forced, torch.inf))

    def prior(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Everything writable undecided."""
        return batch.replace(masked=batch.writable & batch.valid)
