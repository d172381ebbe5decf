"""One Elastic-MoT layer (spec 1.4): two branches of different width that share one attention and its output projection.

The branches travel as two streams of packed positions, so each computes only its own and nothing is scattered; attention takes one group of
rows at a time (``layout.py``). The released model instead carries one tensor whose upper channels are zero for generation tokens;
that is the same arithmetic.

Shapes: N packed positions of a branch · G rows of a group · T computed positions of its rows · S positions that they read · D width ·
E generation width · H heads · K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention
from unmask.models.gradients import normed, worthwhile
from unmask.models.layout import Group
from unmask.models.linear import Linear, linear, onednn, packed, served_by_onednn, side_by_side
from unmask.models.memory import LayerMemory
from unmask.models.rope import rotate
from unmask.models.sizes import ElasticConfig


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of the packed positions of a branch, not yet rotated: each [N, H, K], where keys and values may have fewer heads (grouped-query
    attention). ``q``: None where nobody reads what the queries would find.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, width: int | None = None) -> Tensor:
    """Root-mean-square norm, statistics in float32. ``width``: divide by this many channels (those not stored are zero)."""
    if worthwhile(x):
        return normed(x, weight, eps, width or x.shape[-1])
    if width is None and x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled():
        return F.rms_norm(x, (x.shape[-1],), weight, eps)  # the same bits in one kernel
    y = x.float()
    scale = y.square().sum(-1, keepdim=True).div_(width or x.shape[-1]).add_(eps).rsqrt_()
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
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = side_by_side(x, (self.gate, self.up))
        return self.down(F.silu(gate) * up)


class SharedOut(Linear):
    """The attention output projection of both branches: a stream of width w takes its first w rows (spec 1.4).

    A module of its own, so that hooks, adapters and calibration reach it like any linear layer.
    """

    def forward(self, x: Tensor, width: int) -> Tensor:  # type: ignore[override]
        if self.packs and served_by_onednn(x, self.weight) and (kept := packed([self], width)) is not None:
            return onednn(x, kept)
        return linear(x, self.weight[:width])


class Branch(nn.Module):
    """One branch's own weights in a layer: norms, q/k/v into the shared head space, and ``mlp``: any module [.., width] -> [.., width]."""

    def __init__(self, config: ElasticConfig, width: int, mlp: int) -> None:
        super().__init__()
        eps, bias, self.head_width = config.norm_eps, config.qkv_bias, config.head_channels
        self.attn_norm = RMSNorm(width, eps)
        self.q = Linear(width, config.query_width, bias=bias)
        self.k = Linear(width, config.key_width, bias=bias)
        self.v = Linear(width, config.key_width, bias=bias)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp: nn.Module = SwiGLU(width, mlp)

    def heads(self, x_NW: Tensor, *, queries: bool = True) -> Heads:
        x = self.attn_norm(x_NW)
        layers = (self.q, self.k, self.v) if queries else (self.k, self.v)
        *q, k, v = (y.unflatten(-1, (-1, self.head_width)) for y in side_by_side(x, layers))
        return Heads(q=q[0] if q else None, k=k, v=v)


@dataclass(frozen=True, kw_only=True)
class Read:
    """Which positions are read after a layer, by branch: [Q] packed positions; None: all of them."""

    und: Tensor | None = None
    gen: Tensor | None = None


class ElasticBlock(nn.Module):
    """``forward`` takes and returns both streams; an understanding stream of None is no longer wanted."""

    def __init__(self, config: ElasticConfig, *, joint: bool) -> None:
        super().__init__()
        self.joint = joint
        self.und = Branch(config, config.width, config.mlp)
        if config.gen_width:
            self.gen = Branch(config, config.gen_width, config.gen_mlp)
        self.out = SharedOut(config.query_width, config.width, bias=False)

    def forward(
        self,
        u_ND: Tensor | None,
        g_NE: Tensor | None,
        groups: Sequence[Group],
        attention: Attention,
        *,
        last_und: bool = False,
        memory: LayerMemory | None = None,
        read: Read | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """``last_und``: the understanding stream serves this layer's keys and values but is not needed afterwards.

        ``memory``: adds keys and values of positions that are not computed, and keeps those of the computed ones; there is one group
        then · ``read``: only these positions are returned.
        """
        # 1. Each branch projects its own positions into the shared head space.
        joint = self.joint and u_ND is not None and g_NE is not None
        heads: dict[str, Heads] = {}
        if g_NE is not None:
            heads["gen"] = self.gen.heads(g_NE)
        if u_ND is not None and (joint or not last_und):
            heads["und"] = self.und.heads(u_ND, queries=not last_und)
        # 2. In a joint layer both attend to both, the codes first; above, each to its own.
        sets = [tuple(heads)] if joint else [(name,) for name in heads]
        found: dict[str, list[Tensor]] = {name: [] for name in heads}
        for group in groups:
            for names in sets:
                for name, mixed_NW in _mixed(heads, group, names, attention, memory).items():
                    found[name].append(mixed_NW)
        mixed = {name: torch.cat(some) if len(some) > 1 else some[0] for name, some in found.items() if some}
        # 3. Output projection, residual, feed-forward, residual.
        read = read or Read()
        return self._finish(u_ND, mixed.get("und"), "und", read.und), self._finish(
            g_NE, mixed.get("gen"), "gen", read.gen
        )

    def _finish(
        self, x_NW: Tensor | None, mixed_ND: Tensor | None, branch: str, read_Q: Tensor | None
    ) -> Tensor | None:
        if x_NW is None or mixed_ND is None:
            return None
        if read_Q is not None:
            x_NW, mixed_ND = x_NW.index_select(0, read_Q), mixed_ND.index_select(0, read_Q)
        weights: Branch = getattr(self, branch)
        x = x_NW + self.out(mixed_ND, x_NW.shape[-1])
        return x + weights.mlp(weights.mlp_norm(x))


def _mixed(
    heads: dict[str, Heads], group: Group, names: tuple[str, ...], attention: Attention, memory: LayerMemory | None
) -> dict[str, Tensor]:
    """What the positions of a group find in those of some branches, by branch, [G * length, D]; a branch without queries is left out.

    Codes come before understanding positions: what a group pads, the understanding positions, then stands behind everything that is
    read, and sums over keys round alike whatever the padding (docs/notes/0005-engine.md).
    """
    names = tuple(name for name in names if name in group.parts)
    parts, asking = group.parts, tuple(name for name in names if heads[name].q is not None)
    if not asking:
        return {}
    asked = [parts[name].of(heads[name].q) for name in asking]  # type: ignore[arg-type]
    read = [parts[name].of(heads[name].k) for name in names]
    queries = sum(parts[name].length for name in asking)
    if worthwhile(read[0]) or asked[0].shape[1] != read[0].shape[1]:  # gradients would be copied once more
        q, k = rotate(_one(asked), group.rope(asking)), rotate(_one(read), group.rope(names))
    else:
        turned = rotate(torch.cat([*asked, *read], dim=2), group.rope(asking + names))
        q, k = turned[:, :, :queries], turned[:, :, queries:]
    v = _one([parts[name].of(heads[name].v) for name in names])
    if memory is not None:
        sizes = [parts[name].length for name in names]
        k, v = (
            _one([memory.merge(f"{name}.{what}", x) for name, x in zip(names, whole.split(sizes, dim=2), strict=True)])
            for what, whole in (("k", k), ("v", v))
        )
    if (shared := q.shape[1] // k.shape[1]) > 1:  # grouped-query attention: each key serves several queries
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    attend = group.masks["joint" if len(names) == 2 else names[0]]
    mixed_GTHK = attention(q, k, v, None if attend is None else attend[:, :, :queries]).transpose(1, 2)
    each = mixed_GTHK.split([parts[name].length for name in asking], dim=1)
    return {name: own_GTHK.flatten(2).flatten(0, 1) for name, own_GTHK in zip(asking, each, strict=True)}


def _one(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2) if len(parts) > 1 else parts[0]
