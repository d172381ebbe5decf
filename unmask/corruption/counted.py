"""An exact number of masked tokens: a ratio of every group, at random places, as MMaDA and Lumina-DiMOO train.

Public idea: ``Counted(policy=Cosine())``. The writable tokens of a row in spans of one name form a group: all lines of a picture, an
answer, its filler. Each group has its own ratio, and at least one masked token.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.schedules import Cosine, Policy
from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class Counted:
    """``policy``: of the ratio · ``whole``: rounds ratio times tokens · ``short``: groups of at most so many tokens are masked whole ·
    ``scored``: names of writable spans that are never masked, but scored too (the tokens around MMaDA's pictures).
    """

    policy: Policy = Cosine()
    whole: Callable[[Tensor], Tensor] = torch.floor
    short: int = 0
    scored: frozenset[str] = frozenset()

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The ratio of each token's group, [B, L]; 0 where nothing is masked."""
        time_BL = torch.zeros(batch.ids.shape)
        for row, places in self._groups(batch):
            ratio = self.policy(torch.rand(1, generator=rng))
            time_BL[row, places] = 1.0 if len(places) <= self.short else ratio
        return time_BL.to(batch.device)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """``time``: [B, L] as from ``times``, or [B]. ``weight``: the share of a token's group that is masked."""
        time = time[:, None].expand_as(clean.ids) if time.dim() == 1 else time
        ratio_BL = time.float().cpu()
        masked, weight = torch.zeros(clean.ids.shape, dtype=torch.bool), torch.ones(clean.ids.shape)
        for row, places in self._groups(clean):
            count = int(self.whole(ratio_BL[row, places[0]] * len(places)).clamp(1, len(places)))
            masked[row, places[torch.randperm(len(places), generator=rng)[:count]]] = True
            weight[row, places] = count / len(places)
        masked = masked.to(clean.device)
        target = masked | self._also_scored(clean) if self.scored else None
        return clean.replace(masked=masked, time=time, weight=weight.to(clean.device), target=target)

    def _groups(self, batch: Batch) -> list[tuple[int, Tensor]]:
        """The row and the places of every group."""
        found: dict[tuple[int, str], list[Tensor]] = {}
        for row, name, places in _open_spans(batch):
            if name not in self.scored:
                found.setdefault((row, name), []).append(places)
        return [(row, torch.cat(places)) for (row, _), places in found.items()]

    def _also_scored(self, batch: Batch) -> Tensor:
        scored = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for row, name, places in _open_spans(batch):
            scored[row, places] |= name in self.scored
        return scored.to(batch.device)


def _open_spans(batch: Batch) -> Iterator[tuple[int, str, Tensor]]:
    """Row, name and places of every span with writable tokens."""
    open_BL = (batch.writable & batch.valid).cpu()
    for row, table in enumerate(batch.span_table):
        for span in table:
            if span.writable and len(places := open_BL[row, span.start : span.stop].nonzero()[:, 0]):
                yield row, span.name, places + span.start
