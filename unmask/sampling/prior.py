"""Where a run starts. Public idea: a prior is a value ``(batch) -> batch``; the run may change whatever was masked before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from unmask.rng import rows
from unmask.sampling.spans import still_masked
from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class AllMasked:
    """The request as it is: absorbing diffusion starts from masked tokens."""

    def __call__(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True, kw_only=True)
class UniformIds:
    """Uniformly random ids, ``sizes`` by kind, and nothing masked: uniform diffusion, whose steps all correct (see ``Correcting``)."""

    sizes: Mapping[int, int]

    def __call__(self, batch: Batch) -> Batch:
        open_BL, ids = still_masked(batch), batch.ids.clone()
        for row, generator in enumerate(rows(batch, "prior")):
            u_L = torch.rand(int(batch.valid[row].sum()), generator=generator)
            for kind, size in sorted(self.sizes.items()):
                here = (open_BL[row] & (batch.kind[row] == kind))[: len(u_L)]
                ids[row, : len(u_L)][here] = (u_L.to(batch.device)[here] * size).long().clamp(max=size - 1)
        known = torch.isin(batch.kind, torch.tensor(sorted(self.sizes), device=batch.device))
        return batch.replace(ids=ids, masked=batch.masked & ~(open_BL & known))
