"""One Elastic-MoT layer (spec 1.4): two branches of different width that share one attention and its output projection.

The branches travel as two streams, so each computes only its own positions and nothing is scattered. The released model
instead carries one tensor whose upper channels are zero for generation tokens; that is the same arithmetic.

Shapes: B rows · U understanding positions · C code positions · T = C + U computed positions · S positions that are read · D width ·
E generation width · H heads · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention
from unmask.models.gradients import normed, worthwhile
from unmask.models.memory import LayerMemory
from unmask.models.rope import rotate
from unmask.models.sizes import ElasticConfig

Heads = tuple[Tensor, Tensor, Tensor]  # q [B, H, T, K], k and v [B, H, S, K]


def rms_norm(x: Tensor, weight: Tensor, eps: float, width: int | None = None) -> Tensor:
    """Root-mean-square norm, statistics in float32. ``width``: divide by this many channels (those not stored are zero)."""
    if worthwhile(x):
        return normed(x, weight, eps, width or x.shape[-1])
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


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), [.., width] -> [.., width] (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SharedOut(nn.Linear):
    """The attention output projection of both branches: a stream of width w takes its first w rows (spec 1.4).

    A module of its own, so that hooks, adapters and calibration reach it like any linear layer.
    """

    def forward(self, x: Tensor, width: int) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight[:width])


class Branch(nn.Module):
    """One branch's own weights in a layer: norms, q/k/v into the shared head space, and ``mlp``: any module [.., width] -> [.., width]."""

    def __init__(self, width: int, inner: int, mlp: int, eps: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(width, eps)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp: nn.Module = SwiGLU(width, mlp)

    def heads(self, x_BTW: Tensor, heads: int, table: tuple[Tensor, Tensor]) -> Heads:
        """Rotated q and k, and v: each [B, H, T, K]."""
        x = self.attn_norm(x_BTW)
        q, k, v = (p(x).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return rotate(q, table), rotate(k, table), v


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What every layer needs to know of the batch: rotary tables of both streams, and who may attend to whom.

    ``joint`` is [B, 1, T, S] with the codes first, ``und`` and ``gen`` those of one stream alone; None where everything may.
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
        self.out = SharedOut(config.width, config.width, bias=False)

    def forward(
        self,
        u_BUD: Tensor | None,
        g_BCE: Tensor | None,
        geometry: Geometry,
        attention: Attention,
        *,
        last_und: bool = False,
        memory: LayerMemory | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """``last_und``: the understanding stream serves this layer's keys and values but is not needed afterwards.

        ``memory``: adds keys and values of positions that are not computed, and keeps those of the computed ones.
        """
        # 1. Each branch projects its own positions into the shared head space.
        joint = self.joint and u_BUD is not None and g_BCE is not None
        und = gen = None
        if u_BUD is not None and (joint or not last_und):
            und = _merged(self.und.heads(u_BUD, self.heads, geometry.rope_und), memory, "und")
        if g_BCE is not None:
            gen = _merged(self.gen.heads(g_BCE, self.heads, geometry.rope_gen), memory, "gen")
        # 2. In a joint layer both attend to both; above, each to its own.
        if und is not None and gen is not None and joint:
            mixed_u, mixed_g = self._both(und, gen, geometry, attention, last_und=last_und)
        else:
            mixed_u = None if und is None else attention(*und, geometry.und)
            mixed_g = None if gen is None else attention(*gen, geometry.gen)
        # 3. Output projection, residual, feed-forward, residual.
        return self._finish(u_BUD, mixed_u, "und"), self._finish(g_BCE, mixed_g, "gen")

    def _both(
        self, und: Heads, gen: Heads, geometry: Geometry, attention: Attention, *, last_und: bool
    ) -> tuple[Tensor | None, Tensor]:
        # Codes first: what a batch pads, the understanding positions, then stands behind everything that is read, and sums over
        # keys round alike whatever the padding (docs/notes/0005-engine.md).
        k, v = torch.cat([gen[1], und[1]], dim=2), torch.cat([gen[2], und[2]], dim=2)
        c = gen[0].shape[2]
        attend = geometry.joint
        if last_und:
            return None, attention(gen[0], k, v, None if attend is None else attend[:, :, :c])
        mixed = attention(torch.cat([gen[0], und[0]], dim=2), k, v, attend)
        return mixed[:, :, c:], mixed[:, :, :c]

    def _finish(self, x_BTW: Tensor | None, mixed_BHTK: Tensor | None, branch: str) -> Tensor | None:
        if x_BTW is None or mixed_BHTK is None:
            return None
        weights: Branch = getattr(self, branch)
        x = x_BTW + self.out(mixed_BHTK.transpose(1, 2).flatten(2), x_BTW.shape[-1])
        return x + weights.mlp(weights.mlp_norm(x))


def _merged(heads: Heads, memory: LayerMemory | None, branch: str) -> Heads:
    if memory is None:
        return heads
    q, k, v = heads
    return q, memory.merge(f"{branch}.k", k), memory.merge(f"{branch}.v", v)
