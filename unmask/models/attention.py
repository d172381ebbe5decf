"""Attention, written three ways that are equal up to rounding, and the choice between them.

``plain``: matmul, softmax, matmul · ``blocked``: the same for a block of queries at a time, so that scores stay in the cache ·
``fused``: torch SDPA. ``Fitting`` chooses by what was measured (docs/notes/0013-packed.md).

Shapes: B rows · H heads · T queries · S keys · K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.derived import derived
from unmask.models.gradients import MASKED, attended, softmax, worthwhile

NEVER = 2**62
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def plain(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """[B, H, T, K]. ``attend`` True = this query may read this key; None = every key."""
    if worthwhile(q_BHTK) or worthwhile(k_BHSK):
        return attended(q_BHTK, k_BHSK, v_BHSK, attend_B1TS)
    score_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.transpose(-1, -2)
    if attend_B1TS is not None:
        score_BHTS = score_BHTS.masked_fill(~attend_B1TS, MASKED)
    return softmax(score_BHTS) @ v_BHSK


def blocked(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """As ``plain``, ``BLOCK`` queries of one row at a time, in memory that all blocks share. Scores are scaled before they are rounded."""
    if torch.is_grad_enabled() and (q_BHTK.requires_grad or k_BHSK.requires_grad or v_BHSK.requires_grad):
        return plain(q_BHTK, k_BHSK, v_BHSK, attend_B1TS)
    rows, heads, queries, width = q_BHTK.shape
    block, keys = min(BLOCK, queries), k_BHSK.shape[2]
    kept = [q_BHTK.new_empty(heads * block * keys) for _ in range(2)]
    found_BTHK = q_BHTK.new_empty(rows, queries, heads, width)  # as the output projection reads it
    for b in range(rows):
        # Contiguous once: a strided matrix would be copied for every block.
        k_HKS, v_HSK = k_BHSK[b].contiguous().transpose(1, 2), v_BHSK[b].contiguous()
        for start in range(0, queries, block):
            q_HTK = q_BHTK[b, :, start : start + block]
            size = heads * q_HTK.shape[1] * keys
            score_HTS, weight_HTS = (x[:size].view(heads, -1, keys) for x in kept)
            torch.baddbmm(score_HTS, q_HTK, k_HKS, beta=0, alpha=width**-0.5, out=score_HTS)
            if attend_B1TS is not None:
                attend_TS = attend_B1TS[b if len(attend_B1TS) > 1 else 0, 0, start : start + block]
                score_HTS.masked_fill_(~attend_TS, -1e4)
            torch.softmax(score_HTS, -1, out=weight_HTS)
            found_BTHK[b, start : start + block] = torch.bmm(weight_HTS, v_HSK).transpose(0, 1)
    return found_BTHK.transpose(1, 2)


BLOCK = 256  # queries; 64 and 128 were slower


def fused(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """As ``plain``, through scaled_dot_product_attention."""
    bias = None
    if attend_B1TS is not None:
        bias = derived(("bias", q_BHTK.dtype), lambda: _bias(attend_B1TS, q_BHTK.dtype), attend_B1TS)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=bias)


def _bias(attend_B1TS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may read a key, else ``MASKED``. Rows begin at multiples of 8, or some kernels would copy it in every layer."""
    keys = attend_B1TS.shape[-1]
    wide = torch.zeros(*attend_B1TS.shape[:-1], keys + -keys % 8, dtype=dtype, device=attend_B1TS.device)
    return wide[..., :keys].masked_fill_(~attend_B1TS, MASKED)


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """The fastest of the three for a number of keys, a type and a device. Another device or CPU: measure, and give other bounds.

    On a CPU, ``fused`` serves float32 from ``fused_from`` keys on, and ``blocked`` serves the half types where a row has ``blocked_from``
    scores (heads * keys * keys); below, and where gradients are wanted (backward of ``fused`` was measured 3 to 4 times slower there),
    it is ``plain``. On other devices it is ``fused``. Only a row's own keys count, so other rows never change its attention.
    """

    fused_from: int = 192
    blocked_from: int = 2**18

    def __call__(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
        learns = torch.is_grad_enabled() and (q_BHTK.requires_grad or k_BHSK.requires_grad)
        _, heads, keys, _ = k_BHSK.shape
        chosen = self.choose(heads, keys, q_BHTK.dtype, q_BHTK.device.type, learns=learns)
        return chosen(q_BHTK, k_BHSK, v_BHSK, attend_B1TS)

    def choose(self, heads: int, keys: int, dtype: torch.dtype, device: str, *, learns: bool) -> Attention:
        """``keys``: that a query reads · ``device``: its type, such as "cpu" · ``learns``: whether gradients are wanted."""
        if device != "cpu":
            return fused
        if learns or keys < self.unpadded_from(heads, dtype, device):
            return plain
        return fused if dtype == torch.float32 else blocked

    def unpadded_from(self, heads: int, dtype: torch.dtype, device: str) -> int:
        """Fewest keys from which a row's attention could be another in a padded batch, or round differently there."""
        if device != "cpu":
            return NEVER
        return self.fused_from if dtype == torch.float32 else math.ceil(math.sqrt(self.blocked_from / heads))


FITTING = Fitting()
