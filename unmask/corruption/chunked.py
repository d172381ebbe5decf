"""An own noise level for every chunk of a sequence: diffusion forcing (Chen et al. 2024, arXiv 2407.01392), as X-Streamer trains.

Public idea: ``PerChunk(corruption=..)``. Tokens of one order form a chunk (a span's ``order_step``), as in attention: a chunk is read whole
by itself and by later ones. With a past of any noise level a model learns to go on from its own mistakes.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Policy, Uniform
from unmask.protocols import Corruption
from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class PerChunk:
    """``policy``: of the time of a chunk · ``clean``: share of chunks that stay clean, but for the last of each row · ``corruption``: what
    masks at those times.
    """

    policy: Policy = Uniform()
    clean: float = 0.0
    corruption: Corruption = Absorbing()

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise ValueError(f"the share of clean chunks must be in 0..1, got {self.clean}")

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The time of each token's chunk, [B, L]; 0 for tokens that are given."""
        open_ = batch.writable & batch.valid
        orders, chunk = torch.unique(batch.order.cpu(), return_inverse=True)
        time = self.policy(torch.rand(batch.rows, len(orders), generator=rng))
        stays = torch.rand(batch.rows, len(orders), generator=rng) < self.clean
        last = torch.where(open_.cpu(), chunk, -1).amax(1).clamp(min=0)
        stays[torch.arange(batch.rows), last] = False
        time = time.masked_fill(stays, 0.0).gather(1, chunk)
        return time.masked_fill(~open_.cpu(), 0.0).to(batch.device)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """As the wrapped process, at times [B, L] as from ``times``, or [B]."""
        return self.corruption.corrupt(clean, time, rng)
