"""The absorbing process: every writable token is masked independently with its group's probability (spec 3.1).

The tokens of one kind in one segment of one row form a group, and a group has one time. Text and image of a sample thus have
independent times, as do the questions that share an image. At least one token of every group is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.corruption.schedules import Cosine, Policy
from unmask.sequence import Batch

_LEAST = 1e-3


@dataclass(frozen=True, kw_only=True)
class Absorbing:
    """``policies``: kind -> the policy that draws the time of its groups · ``otherwise``: the policy of all other kinds."""

    policies: Mapping[int, Policy] = field(default_factory=dict)
    otherwise: Policy = Cosine()

    def groups(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Group number of every token, [B, L]: (row, segment, kind); and the kind of every group, [groups]."""
        segments, kinds = int(batch.segment.max()) + 1, int(batch.kind.max()) + 1
        row = torch.arange(batch.rows, device=batch.device)[:, None]
        group = (row * segments + batch.segment) * kinds + batch.kind
        return group, torch.arange(batch.rows * segments * kinds) % kinds

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The time of each token's group, [B, L]. Times are stratified: 0..1 is split into one stratum per group of a kind."""
        group, kind = self.groups(batch)
        live = torch.zeros(len(kind), dtype=torch.bool)
        live[group[batch.writable & batch.valid].cpu()] = True
        time = torch.zeros(len(kind))
        for k in kind[live].unique().tolist():
            of_kind = live & (kind == k)
            n = int(of_kind.sum())
            policy = self.policies.get(k, self.otherwise)
            time[of_kind] = policy((torch.randperm(n, generator=rng) + torch.rand(n, generator=rng)) / n)
        return time.to(batch.device)[group]

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """``time``: [B, L] as from ``times``, or [B]. Returns the batch with ``masked``, ``time`` and ``weight`` set.

        ``weight``: the masking probability of a token; infinite if it was masked only because its group had no masked token.
        """
        time = time[:, None].expand_as(clean.ids) if time.dim() == 1 else time
        open_ = clean.writable & clean.valid
        # 1. Each writable token is masked if its uniform number lies below its probability.
        u = torch.rand(clean.ids.shape, generator=rng).to(clean.device)
        probability = (1 - _LEAST) * time + _LEAST
        masked = (u < probability) & open_
        # 2. If a group drew no mask, its token with the smallest number is masked: every group has a loss.
        group, kind = self.groups(clean)
        least = torch.full((len(kind),), 2.0, device=clean.device)
        least = least.scatter_reduce(0, group.flatten(), u.masked_fill(~open_, 2.0).flatten(), "amin")
        some = torch.zeros(len(kind), dtype=torch.bool, device=clean.device)
        some[group[masked]] = True
        forced = open_ & ~some[group] & (u == least[group])
        return clean.replace(masked=masked | forced, time=time, weight=probability.masked_fill(forced, torch.inf))
