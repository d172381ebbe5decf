"""One Elastic-MoT layer (spec 1.4): two branches of different width that share one attention and its output projection.

The branches travel as two streams, so each computes only its own positions and nothing is scattered. The released model
instead carries one tensor whose upper channels are zero for generation tokens; that is the same arithmetic.

Shapes: B rows · U understanding positions · C code positions · T = C + U · D width · E generation width · H heads · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention
from unmask.models.rope import rotate
from unmask.models.sizes import ElasticConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float, width: int | None = None) -> Tensor:
    """Root-mean-square norm, statistics in float32. ``width``: divide by this many channels (those not stored are zero)."""
    y = x.float()
    scale = torch.rsqrt(y.square().sum(-1, keepdim=True) / (width or x.shape[-1]) + eps)
    return (y * scale).to(x.dtype) * weight


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Branch(nn.Module):
    """One branch's own weights in a layer: norms, q/k/v into the shared head space, SwiGLU."""

    def __init__(self, width: int, inner: int, mlp: int, eps: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(width, eps)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.mlp_norm = RMSNorm(width, eps)
        self.gate = nn.Linear(width, mlp, bias=False)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def heads(self, x_BTW: Tensor, heads: int, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v: each [B, H, T, K]."""
        x = self.attn_norm(x_BTW)
        q, k, v = (p(x).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return rotate(q, table), rotate(k, table), v

    def mlp(self, x_BTW: Tensor) -> Tensor:
        x = self.mlp_norm(x_BTW)
        return self.down(F.silu(self.gate(x)) * self.up(x))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What every layer needs to know of the batch: rotary tables of both streams, and who may attend to whom.

    ``joint`` is [B, 1, T, T] with the codes first, ``und`` [B, 1, U, U], ``gen`` [B, 1, C, C]; None where everything may.
    """

    rope_und: tuple[Tensor, Tensor]
    rope_gen: tuple[Tensor, Tensor]
    joint: Tensor | None
    und: Tensor | None
    gen: Tensor | None


class ElasticBlock(nn.Module):
    """``forward`` takes and returns both streams; an understanding stream of None is no longer wanted."""

    def __init__(self, config: ElasticConfig, *, joint: bool) -> None:
        super().__init__()
        self.heads, self.joint = config.heads, joint
        self.und = Branch(config.width, config.width, config.mlp, config.norm_eps)
        if config.gen_width:
            self.gen = Branch(config.gen_width, config.width, config.gen_mlp, config.norm_eps)
        self.out = nn.Linear(config.width, config.width, bias=False)  # shared: generation keeps its first rows

    def forward(
        self,
        u_BUD: Tensor | None,
        g_BCE: Tensor | None,
        geometry: Geometry,
        attention: Attention,
        *,
        last_und: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """``last_und``: the understanding stream serves this layer's keys and values but is not needed afterwards."""
        if self.joint and u_BUD is not None and g_BCE is not None:
            return self._both(u_BUD, g_BCE, geometry, attention, last_und=last_und)
        u_new = None
        if u_BUD is not None and not last_und:
            q, k, v = self.und.heads(u_BUD, self.heads, geometry.rope_und)
            u_new = self._finish(u_BUD, attention(q, k, v, geometry.und), self.und)
        if g_BCE is not None:
            q, k, v = self.gen.heads(g_BCE, self.heads, geometry.rope_gen)
            g_BCE = self._finish(g_BCE, attention(q, k, v, geometry.gen), self.gen)
        return u_new, g_BCE

    def _both(
        self, u_BUD: Tensor, g_BCE: Tensor, geometry: Geometry, attention: Attention, *, last_und: bool
    ) -> tuple[Tensor | None, Tensor]:
        und = self.und.heads(u_BUD, self.heads, geometry.rope_und)
        gen = self.gen.heads(g_BCE, self.heads, geometry.rope_gen)
        # Codes first: what a batch pads, the understanding positions, then stands behind everything that is read, and sums over
        # keys round alike whatever the padding (docs/notes/0005-engine.md).
        k, v = torch.cat([gen[1], und[1]], dim=2), torch.cat([gen[2], und[2]], dim=2)
        c = g_BCE.shape[1]
        attend = geometry.joint
        if last_und:
            mixed = attention(gen[0], k, v, None if attend is None else attend[:, :, :c])
            return None, self._finish(g_BCE, mixed, self.gen)
        mixed = attention(torch.cat([gen[0], und[0]], dim=2), k, v, attend)
        return self._finish(u_BUD, mixed[:, :, c:], self.und), self._finish(g_BCE, mixed[:, :, :c], self.gen)

    def _finish(self, x_BTW: Tensor, mixed_BHTK: Tensor, branch: Branch) -> Tensor:
        width = x_BTW.shape[-1]
        x = x_BTW + F.linear(mixed_BHTK.transpose(1, 2).flatten(2), self.out.weight[:width])
        return x + branch.mlp(x)
