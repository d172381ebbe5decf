"""The autoregressive loss of a model that becomes a masked diffusion model afterwards (stages 1 and 2 of Dimple, arXiv 2505.16990).

Public idea: ``NextToken()(model, clean, rng) -> Loss``: nothing is masked, and every writable token is predicted from those before it. For
a network that predicts a token from the position before it (``ElasticConfig.shifted``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.objectives.masked import Masked, MaskedModel
from unmask.sequence import Batch
from unmask.step import Loss


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """The mean cross-entropy of the writable tokens. A token reads itself and what stands before it, whatever its span says."""

    def __call__(self, model: MaskedModel, clean: Batch, rng: torch.Generator) -> Loss:
        order = torch.arange(clean.ids.shape[1], device=clean.device).expand_as(clean.ids)
        causal = clean.replace(
            order=order,
            masked=torch.zeros_like(clean.masked),
            target=clean.writable & clean.valid,
            weight=torch.ones(clean.ids.shape, device=clean.device),
        )
        return Masked().of(model, causal)
