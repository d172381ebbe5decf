"""Attention of a released trainer that adds its mask to the scores instead of applying it (MMaDA's drawings).

Public idea: ``WeightedPadding()`` as the attention of a network. What may be read gets + 1 and padding 0, so padding is read with a weight
of 1/e. Inference hides it; training may use this to repeat the published losses.

Shapes: B rows · H heads · T queries · S keys · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightedPadding:
    """For rows that end in a token which padding may not read: a query that may not read the last key is padding, and gets 0 everywhere."""

    def __call__(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
        bias = None if attend_B1TS is None else (attend_B1TS & attend_B1TS[..., -1:]).to(q_BHTK.dtype)
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=bias)
