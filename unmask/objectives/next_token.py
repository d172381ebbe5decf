"""The autoregressive loss of a model that becomes a masked diffusion model afterwards (stages 1 and 2 of Dimple, arXiv 2505.16990).

Public idea: ``NextToken()(model, clean, rng) -> Loss``: nothing is masked, and every writable token is predicted from those before it. For
a network that predicts a token from the position before it (``ElasticConfig.shifted``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.objectives.masked import Dropout, Masked, MaskedModel
from unmask.sequence import Batch
from unmask.step import Loss


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """The mean cross-entropy of the writable tokens. A token reads itself and what stands before it, whatever its span says.

    ``dropouts``: spans that some rows lose, for guidance; what is dropped is not scored.
    """

    dropouts: tuple[Dropout, ...] = ()

    def __call__(self, model: MaskedModel, clean: Batch, rng: torch.Generator) -> Loss:
        for dropout in self.dropouts:
            clean = dropout(clean, model.mask_id, rng)
        order = torch.arange(clean.ids.shape[1], device=clean.device).expand_as(clean.ids)
        causal = clean.replace(
            order=order,
            masked=torch.zeros_like(clean.masked),
            target=clean.writable & clean.valid if not self.dropouts else _kept(clean),
            weight=torch.ones(clean.ids.shape, device=clean.device),
        )
        return Masked().of(model, causal)


def _kept(batch: Batch) -> torch.Tensor:
    """The writable tokens that still have their true ids, [B, L]."""
    kept = batch.writable & batch.valid
    return kept if batch.clean is None else kept & (batch.ids == batch.clean)
