"""A trunk of text and codes that reads the time of its batch: layers with shifts, scales and gates that follow from it.

Public idea: ``Timed(trunk)`` is a denoiser over a causal image-token network (``Elastic`` with a shared vocabulary) that reads all tokens
at once. With gates that start at 1 it is the trunk's own function at first (MeDiM, arXiv 2510.06131; see ``methods/medim.py``).

Shapes: B rows · L tokens · D width · N tokens scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.models.attention import plain
from unmask.models.blocks import ElasticBlock
from unmask.models.elastic import Elastic
from unmask.models.rope import Table, rope_table, rotate
from unmask.models.shared_vocabulary import as_text
from unmask.models.sizes import ElasticConfig
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Reuse, Scored

EPS = 1e-3
_FREQUENCIES = 128
Mixer = Callable[[Tensor, Tensor | None], Tensor]  # (h [B, L, D], who reads whom [B, 1, L, L] or None) -> [B, L, D]


def sigma_at(t: Tensor) -> Tensor:
    """-ln(1 - (1 - eps) t), the total noise."""
    return -torch.log1p(-(1 - EPS) * t)


class TimeEmbedding(nn.Module):
    """sigma [B] -> [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma_B: Tensor) -> Tensor:
        return self.mlp(self.waves(sigma_B))

    def waves(self, sigma_B: Tensor) -> Tensor:
        """cos, then sin, of sigma times 10000^(-i / 128), [B, 256]."""
        number = torch.arange(_FREQUENCIES, dtype=torch.float32, device=sigma_B.device)
        angle = sigma_B.float()[:, None] * torch.exp(-math.log(10000) * number / _FREQUENCIES)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Modulation(nn.Module):
    """The shifts, scales and gates of a layer, zero at first. ``gate_at``: what is added to the gates."""

    def __init__(self, width: int, gate_at: float = 1.0) -> None:
        super().__init__()
        self.gate_at, self.linear = gate_at, nn.Linear(width, 6 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, e_BD: Tensor) -> tuple[Tensor, ...]:
        """shift, scale and gate of attention, then of the feed-forward, [B, 1, D] each."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.linear(e_BD)[:, None].chunk(6, dim=-1)
        return shift_1, scale_1, gate_1 + self.gate_at, shift_2, scale_2, gate_2 + self.gate_at


@dataclass(frozen=True, kw_only=True)
class Sublayers:
    """What a layer is made of: norms, attention and feed-forward, each [B, L, D] -> [B, L, D]."""

    attn_norm: Callable[[Tensor], Tensor]
    attention: Mixer
    mlp_norm: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]

    def __call__(self, h: Tensor, modulation: tuple[Tensor, ...] | None, attend: Tensor | None) -> Tensor:
        """``modulation``: as of ``Modulation``; None: the plain layer."""
        if modulation is None:
            h = h + self.attention(self.attn_norm(h), attend)
            return h + self.mlp(self.mlp_norm(h))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        h = h + gate_1 * self.attention(self.attn_norm(h) * (1 + scale_1) + shift_1, attend)
        return h + gate_2 * self.mlp(self.mlp_norm(h) * (1 + scale_2) + shift_2)


class Timed(nn.Module):
    """The trunk of a causal image-token model as a denoiser of text and codes.

    ``trunk``: its understanding branch serves text and codes (``ElasticConfig.first_code``) · ``timed``: whether it reads the time ·
    ``causal``: keep the causal mask, for comparison · ``offset``: of text and of codes. ValueError for a network without shared vocabulary.
    """

    def __init__(
        self,
        trunk: Elastic,
        *,
        timed: bool = True,
        causal: bool = False,
        offset: tuple[int, int] = (-1, -1),
        gate_at: float = 1.0,
    ) -> None:
        super().__init__()
        if not trunk.config.first_code:
            raise ValueError("the trunk has no codes in its text vocabulary; use a model of image_tokens.causal")
        self.trunk, self.causal, self.offset, self.mask_id = trunk, causal, offset, trunk.mask_id
        width = trunk.config.width
        self.time = TimeEmbedding(width) if timed else None
        self.modulations = nn.ModuleList(Modulation(width, gate_at) for _ in trunk.blocks) if timed else None

    @property
    def config(self) -> ElasticConfig:
        return self.trunk.config

    @property
    def embed(self) -> nn.Embedding:
        return self.trunk.embed

    @property
    def vision(self) -> None:
        return None

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        """Logits of the tokens in ``predict [B, L]`` (default: the masked ones), -inf for ids that their modality does not have.

        ValueError for ``reuse``: with all-visible attention nothing can be kept.
        """
        if reuse is not None:
            raise ValueError(
                "this network reads all tokens at every step, so it cannot use a cache; leave the cache out"
            )
        predict = batch.masked if predict is None else predict
        h_BLD = self.hidden(batch)
        scored = {}
        for kind, offset in zip((Kind.TEXT, Kind.CODE), self.offset, strict=True):
            at = (predict & batch.valid & (batch.kind == kind)).flatten().nonzero()[:, 0]
            length = batch.ids.shape[1]
            read = (at % length + offset).clamp(0, length - 1) + at // length * length
            scored[kind] = self._scored(kind, at, h_BLD.flatten(0, 1)[read])
        return Prediction(scored=scored)

    def hidden(self, batch: Batch) -> Tensor:
        """The states after the last norm, [B, L, D]."""
        config, trunk = self.config, self.trunk
        ids = as_text(batch, config.first_code).ids.masked_fill(batch.masked, self.mask_id)
        h = trunk.embed(ids)
        table = rope_table(batch.position, config.head_channels, config.rope_theta)
        attend = visible(batch, causal=self.causal)
        e = None if self.time is None else self.time(sigma_at(_row_time(batch)))
        for i, block in enumerate(trunk.blocks):
            modulation = None if e is None or self.modulations is None else self.modulations[i](e)
            h = _sublayers(block, table)(h, modulation, attend)
        return trunk.norm(h)

    def joint(self, batch: Batch) -> Tensor:
        """Logits of every token over ids of text and codes, [B, L, V], whatever its modality allows."""
        length = batch.ids.shape[1]
        number = torch.arange(length, device=batch.device)
        offset = torch.where(batch.kind == Kind.CODE, self.offset[1], self.offset[0])
        read = (number + offset).clamp(0, length - 1)
        h = self.hidden(batch)
        return self.trunk.text_head(h.gather(1, read[..., None].expand_as(h)))

    def _scored(self, kind: int, at: Tensor, h_ND: Tensor) -> Scored:
        first, codes = self.config.first_code, self.config.codes
        logits = self.trunk.text_head(h_ND)
        if kind == Kind.CODE:
            return Scored(at=at, logits=logits[:, first : first + codes], hidden=h_ND)
        forbidden = torch.arange(logits.shape[1], device=at.device) >= first
        forbidden[self.mask_id] = True
        return Scored(at=at, logits=logits.masked_fill(forbidden, -torch.inf), hidden=h_ND)


def visible(batch: Batch, *, causal: bool = False) -> Tensor:
    """Who reads whom, [B, 1, L, L]: every valid token, or those up to the reader's position."""
    valid = batch.valid[:, None, None, :].expand(-1, 1, batch.ids.shape[1], -1)
    return valid & (batch.position[:, None, None, :] <= batch.position[:, None, :, None]) if causal else valid


def _row_time(batch: Batch) -> Tensor:
    """The time of each row, [B]: that of its batch, or the share of its writable tokens that is masked."""
    if batch.time is not None:
        return torch.where(batch.valid, batch.time, 0.0).amax(1)
    open_BL = batch.writable & batch.valid
    return (batch.masked & open_BL).sum(1) / open_BL.sum(1).clamp(min=1)


def _sublayers(block: nn.Module, table: Table) -> Sublayers:
    """A layer of the trunk, in rows that are padded."""
    assert isinstance(block, ElasticBlock)
    own = block.und

    def attention(x: Tensor, attend: Tensor | None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, own.head_width)).transpose(1, 2) for layer in (own.q, own.k, own.v))
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        return block.out(plain(rotate(q, table), rotate(k, table), v, attend).transpose(1, 2).flatten(2), x.shape[-1])

    return Sublayers(attn_norm=own.attn_norm, attention=attention, mlp_norm=own.mlp_norm, mlp=own.mlp)
