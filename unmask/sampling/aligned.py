"""Dimple's sampler (arXiv 2505.16990): the time grid is entered where the share of masked tokens says, and sure tokens come at once.

Public idea: ``Aligned(steps=.., threshold=..)``, a selection whose every step takes at least one token; ``Leftmost`` is its order
"autoregressive".

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.protocols import Selection
from unmask.sampling.reverse_time import Uniforms
from unmask.sampling.schedule import check_time
from unmask.sampling.selection import Confident, first, move
from unmask.sequence import Batch
from unmask.step import Move, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class Leftmost:
    """The leftmost masked token of the block, whatever its count."""

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return move(first(torch.zeros_like(proposal.score), block, counts.clamp(max=1)))


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """At step i, with m of n tokens masked: all candidates scored above ``threshold`` (0: off; at the last step all tokens). Where there
    are none, ``selection`` takes int(m * (1 - t_j * n / m)) tokens for the first time t_j of the grid after t_i and below m / n with which
    that is at least one.

    ``uniforms``: each token with that probability instead (Dimple's "origin-ratio") · ``unwritten``: as of ``OnGrid``.
    """

    steps: int
    eps: float = 1e-3
    threshold: float = 0.0
    selection: Selection = Confident()
    uniforms: Uniforms | None = None
    unwritten: int = -1

    def __post_init__(self) -> None:
        check_time(self.steps, self.eps)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not a probability; 0 is off")

    def extra_steps(self, tokens: int, planned: int) -> int:
        return max(0, self.steps - planned) + 1  # what a schedule left over comes last

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        if batch.region is None or batch.score is None:
            raise ValueError("the batch has no region and score; Aligned works inside a Sampler")
        masked_B = block.sum(1)
        all_B = masked_B + (batch.region & (batch.score > -torch.inf)).sum(1)
        last_B = progress.number + 1 >= progress.of.clamp(min=self.steps)
        number = progress.number.clamp(max=self.steps - 1).tolist()
        pairs = zip(number, masked_B.tolist(), all_B.tolist(), strict=True)
        shares = [self._share(i, m, n) if m else 0.0 for i, m, n in pairs]
        share_B = torch.tensor(shares, device=block.device)
        wanted_B = torch.where(last_B, masked_B, (masked_B.float() * share_B).long())
        sure_BL = block & (last_B[:, None] | (proposal.score > self.threshold)) if self.threshold else block & False
        sure_B = sure_BL.any(1)
        taken_BL = sure_BL
        if not bool((sure_B | (masked_B == 0)).all()):
            other_BL = self._others(batch, proposal, block, torch.minimum(wanted_B, counts), share_B, last_B, progress)
            taken_BL = torch.where(sure_B[:, None], sure_BL, other_BL)
        stays_BL = (proposal.ids == self.unwritten) & ~last_B[:, None]
        return move(first(proposal.score, taken_BL & ~stays_BL, counts))

    def _others(
        self,
        batch: Batch,
        proposal: Proposal,
        block: Tensor,
        wanted: Tensor,
        share: Tensor,
        last: Tensor,
        progress: Progress,
    ) -> Tensor:
        if self.uniforms is None:
            return self.selection(batch, proposal, block, wanted, progress).unmask
        return block & ((self.uniforms(batch, block) < share[:, None]) | last[:, None])

    def _share(self, number: int, masked: int, of: int) -> float:
        """The share of the masked tokens to take: that of the first time of the grid that takes at least one."""
        t, ratio = torch.linspace(1, self.eps, self.steps + 1), masked / of
        below = (t < ratio).nonzero().flatten().tolist()
        for j in range(max(below[0] if below else self.steps, number + 1), self.steps):
            share = 1 - t[j] / ratio
            if int(masked * share) >= 1:
                return float(share)
        return 1.0
