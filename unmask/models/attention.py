"""Attention, twice: ``plain`` (matmul, softmax, matmul) and ``fused`` (torch SDPA). Both are exact and equal.

``plain`` is what trains on a CPU, where the fused backward was measured 3 to 4 times slower at these lengths; ``fused`` is for
long sequences and GPUs. Shapes: B rows · H heads · T queries · S keys · K head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def plain(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """[B, H, T, K]. ``attend`` True = this query may read this key; None = every key."""
    score_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.transpose(-1, -2)
    if attend_B1TS is not None:
        # A large finite number: a row of padding may read nothing, and must not become NaN.
        score_BHTS = score_BHTS.masked_fill(~attend_B1TS, -1e4)
    return score_BHTS.softmax(-1) @ v_BHSK


def fused(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """As ``plain``, through scaled_dot_product_attention."""
    bias = None
    if attend_B1TS is not None:
        bias = q_BHTK.new_zeros(attend_B1TS.shape).masked_fill(~attend_B1TS, -1e4)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=bias)
