"""One Elastic-MoT layer (spec 1.4): two branches of different width that share one attention and its output projection.

The branches travel as two streams of packed positions, so each computes only its own and nothing is scattered; attention takes one group of
rows at a time (``layout.py``). The released model instead carries one tensor whose upper channels are zero for generation tokens;
that is the same arithmetic.

Shapes: N packed positions of a branch · G rows of a group · T computed positions of its rows · S positions that they read · D width ·
E generation width · H heads · K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention
from unmask.models.gradients import IN_CACHE, large, normed, wanted, worthwhile
from unmask.models.layout import Group
from unmask.models.linear import Linear, linear, onednn, packed, served_by_onednn, side_by_side
from unmask.models.memory import LayerMemory
from unmask.models.rope import Rotation, rotate, rotate_fused, rotate_into
from unmask.models.sizes import ElasticConfig

_MLP_ROWS = 512  # positions that the feed-forward takes at least where there are many
_FEW_FROM = 2**21  # scores of a row (heads * positions * positions) from which queries that nobody reads are left out


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
    if width is None and _in_one_kernel(x, weight):
        return torch.rms_norm(x, (x.shape[-1],), weight, eps)
    if large(x):
        found, rows = torch.empty_like(x), max(16, IN_CACHE // x.shape[-1])
        for part, into in zip(x.split(rows), found.split(rows), strict=True):
            torch.mul(_unit(part, eps, width), weight, out=into)
        return found
    return _unit(x, eps, width) * weight


def _in_one_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's kernel serves: on a CPU float32 has the same bits there; on CUDA half types are rounded once instead of twice."""
    if x.is_cuda:
        return x.dtype == weight.dtype
    return x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()


def _unit(x: Tensor, eps: float, width: int | None) -> Tensor:
    y = x.float()
    scale = y.square().sum(-1, keepdim=True).div_(width or x.shape[-1]).add_(eps).rsqrt_()
    return (y * scale).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), [.., width] -> [.., width] (Shazeer 2020, arXiv 2002.05202). ``fuses``: see ``fuse``."""

    fuses = False

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.numel() // x.shape[-1]
        if x.dim() == 2 and positions > 2 * _MLP_ROWS and large(x):
            return torch.cat([self._part(part) for part in x.tensor_split(positions // _MLP_ROWS)])
        return self._part(x)

    def _part(self, x: Tensor) -> Tensor:
        gate, up = side_by_side(x, (self.gate, self.up))
        if self.fuses and not torch.is_grad_enabled():
            return self.down(_compiled_product()(gate, up))
        return self.down(F.silu(gate) * up)


@functools.cache
def _compiled_product() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(lambda gate, up: F.silu(gate) * up, dynamic=True)


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
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_channels, eps)
            self.k_norm = RMSNorm(config.head_channels, eps)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp: nn.Module = SwiGLU(width, mlp)

    def heads(self, x_NW: Tensor, *, queries: bool = True, at: Tensor | None = None) -> Heads:
        """``at [Q]``: the positions whose queries are needed; None for all of them."""
        x = self.attn_norm(x_NW)
        if queries and at is not None:
            few = self.q(x.index_select(0, at)).unflatten(-1, (-1, self.head_width))
            return replace(self._projected(x, queries=False), q=self._normed("q_norm", few))
        return self._projected(x, queries=queries)

    def _projected(self, x: Tensor, *, queries: bool) -> Heads:
        layers = (self.q, self.k, self.v) if queries else (self.k, self.v)
        width = self.head_width
        *q, k, v = (y.view(y.shape[0], y.shape[1] // width, width) for y in side_by_side(x, layers))
        return Heads(q=self._normed("q_norm", q[0]) if q else None, k=self._normed("k_norm", k), v=v)

    def _normed(self, name: str, x_NHK: Tensor) -> Tensor:
        """Queries or keys after the norm over each head, where the branch has one."""
        norm = self._modules.get(name)
        return x_NHK if norm is None else norm(x_NHK)


@dataclass(frozen=True, kw_only=True)
class Read:
    """Which positions are read after a layer, by branch: [Q] packed positions; None: all of them."""

    und: Tensor | None = None
    gen: Tensor | None = None


def fuse(module: nn.Module, on: bool = True) -> None:
    """Let ``torch.compile`` fuse rotations, gated activations and the rounding of inputs to float8 in the layers of a module, for passes
    without gradients on a GPU. Call it again after weights were quantised.

    They are compiled at their first use, which takes seconds and a C compiler. Values are equal up to rounding.
    """
    for part in module.modules():
        if isinstance(part, SwiGLU | ElasticBlock):
            part.fuses = on
    for weight in module.parameters():
        if hasattr(weight, "fuses"):
            weight.fuses = on  # type: ignore[missing-attribute]


class ElasticBlock(nn.Module):
    """``forward`` takes and returns both streams; an understanding stream of None is no longer wanted. ``fuses``: see ``fuse``."""

    fuses = False

    def __init__(self, config: ElasticConfig, *, joint: bool) -> None:
        super().__init__()
        self.heads, self.joint = config.heads, joint
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
        read = read or Read()
        at = {} if memory is not None else self._few(u_ND, g_NE, groups, read)
        heads: dict[str, Heads] = {}
        if g_NE is not None:
            heads["gen"] = self.gen.heads(g_NE, at=at.get("gen"))
        if u_ND is not None and (joint or not last_und):
            heads["und"] = self.und.heads(u_ND, queries=not last_und, at=at.get("und"))
        # 2. In a joint layer both attend to both, the codes first; above, each to its own.
        sets = [tuple(heads)] if joint else [(name,) for name in heads]
        if at:
            mixed = _mixed_few(heads, groups, sets, attention, at)
        else:
            turn = rotate_fused if self.fuses and not torch.is_grad_enabled() else rotate
            mixed = _mixed_all(heads, groups, sets, attention, memory, turn)
        # 3. Output projection, residual, feed-forward, residual.
        und = self._finish(u_ND, mixed.get("und"), "und", read.und)
        return und, self._finish(g_NE, mixed.get("gen"), "gen", read.gen)

    def _few(self, u_ND: Tensor | None, g_NE: Tensor | None, groups: Sequence[Group], read: Read) -> dict[str, Tensor]:
        """The positions whose queries are needed, by branch, where rows are so long that the others are worth leaving out on a CPU."""
        longest = max(sum(part.length for part in group.parts.values()) for group in groups)
        if (read.und is None and read.gen is None) or self.heads * longest**2 < _FEW_FROM:
            return {}
        streams = {"und": (u_ND, read.und), "gen": (g_NE, read.gen)}
        return {
            name: torch.arange(len(x), device=x.device) if some is None else some
            for name, (x, some) in streams.items()
            if x is not None and x.device.type == "cpu"
        }

    def finished(self, x_ND: Tensor, mixed_ND: Tensor) -> Tensor:
        """The understanding stream after output projection and feed-forward; ``mixed``: what attention found."""
        x = x_ND + self.out(mixed_ND, x_ND.shape[-1])
        return x + self.und.mlp(self.und.mlp_norm(x))

    def _finish(
        self, x_NW: Tensor | None, mixed_ND: Tensor | None, branch: str, read_Q: Tensor | None
    ) -> Tensor | None:
        if x_NW is None or mixed_ND is None:
            return None
        if read_Q is not None:
            x_NW = x_NW.index_select(0, read_Q)
            mixed_ND = mixed_ND if len(mixed_ND) == len(read_Q) else mixed_ND.index_select(0, read_Q)
        weights: Branch = getattr(self, branch)
        x = x_NW + self.out(mixed_ND, x_NW.shape[-1])
        return x + weights.mlp(weights.mlp_norm(x))


def _mixed_all(
    heads: dict[str, Heads],
    groups: Sequence[Group],
    sets: Sequence[tuple[str, ...]],
    attention: Attention,
    memory: LayerMemory | None,
    turn: Rotation,
) -> dict[str, Tensor]:
    """What all positions find, by branch: [N, D]."""
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    for group in groups:
        for names in sets:
            for name, mixed_NW in _mixed(heads, group, names, attention, memory, turn).items():
                found[name].append(mixed_NW)
    return {name: torch.cat(some) if len(some) > 1 else some[0] for name, some in found.items() if some}


def _mixed_few(
    heads: dict[str, Heads],
    groups: Sequence[Group],
    sets: Sequence[tuple[str, ...]],
    attention: Attention,
    at: dict[str, Tensor],
) -> dict[str, Tensor]:
    """What the positions ``at`` find, by branch: [Q, D]."""
    mixed = {name: h.q.new_zeros(h.q.flatten(1).shape) for name, h in heads.items() if h.q is not None}
    for group in groups:
        for names in sets:
            for name, mine_R, found_RD in _few_of(heads, group, names, attention, at):
                mixed[name].index_copy_(0, mine_R, found_RD)
    return mixed


def _few_of(
    heads: dict[str, Heads], group: Group, names: tuple[str, ...], attention: Attention, at: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each row of a group and each branch: its queries among ``at`` [R], a multiple of 16, and what they find [R, D]."""
    names = tuple(name for name in names if name in group.parts)
    if not any(heads[name].q is not None for name in names):
        return
    k = _rotated([group.parts[name].of(heads[name].k) for name in names], names, group)
    v = _one([group.parts[name].of(heads[name].v) for name in names])
    k, v = (_for_queries(x, max(h.q.shape[1] for h in heads.values() if h.q is not None)) for x in (k, v))
    mask = group.masks["joint" if len(names) == 2 else names[0]]
    for row in range(len(k)):
        before = 0
        for name in names:
            part, q = group.parts[name], heads[name].q
            place_Q = at[name] - part.start - row * part.length
            mine = ((place_Q >= 0) & (place_Q < part.length)).nonzero()[:, 0]
            if q is not None and len(mine):
                # A product of few rows rounds differently (docs/notes/0005-engine.md).
                mine = torch.cat([mine, mine[:1].expand(-len(mine) % 16)])
                place = place_Q[mine]
                table = (part.rope[0][row : row + 1, :, place], part.rope[1][row : row + 1, :, place])
                q_1HRK = rotate(q[mine].transpose(0, 1)[None], table)
                attend = None if mask is None else mask[row : row + 1, :, before + place]
                found_1HRK = attention(q_1HRK, k[row : row + 1], v[row : row + 1], attend)
                yield name, mine, found_1HRK[0].transpose(0, 1).flatten(1)
            before += part.length


def _mixed(
    heads: dict[str, Heads],
    group: Group,
    names: tuple[str, ...],
    attention: Attention,
    memory: LayerMemory | None,
    turn: Rotation,
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
    if any(map(large, asked)):
        q, k = _rotated(asked, asking, group), _rotated(read, names, group)
    elif wanted(read[0]) or asked[0].shape[1] != read[0].shape[1]:  # gradients would be copied once more
        q, k = turn(_one(asked), group.rope(asking)), turn(_one(read), group.rope(names))
    else:
        turned = turn(torch.cat([*asked, *read], dim=2), group.rope(asking + names))
        q, k = turned[:, :, :queries], turned[:, :, queries:]
    v = _one([parts[name].of(heads[name].v) for name in names])
    if memory is not None:
        sizes = [parts[name].length for name in names]
        k, v = (
            _one([memory.merge(f"{name}.{what}", x) for name, x in zip(names, whole.split(sizes, dim=2), strict=True)])
            for what, whole in (("k", k), ("v", v))
        )
    k, v = _for_queries(k, q.shape[1]), _for_queries(v, q.shape[1])
    attend = group.masks["joint" if len(names) == 2 else names[0]]
    if attend is not None and attend.shape[2] != queries:
        attend = attend[:, :, :queries]
    mixed_GTHK = attention(q, k, v, attend).transpose(1, 2)
    each = mixed_GTHK.split([parts[name].length for name in asking], dim=1)
    return {name: own_GTHK.flatten(2).flatten(0, 1) for name, own_GTHK in zip(asking, each, strict=True)}


def _rotated(parts: Sequence[Tensor], names: Sequence[str], group: Group) -> Tensor:
    """The rotated queries or keys of some branches, one after the other, [G, H, T, K]."""
    rows, heads, _, width = parts[0].shape
    found, start = parts[0].new_empty(rows, heads, sum(x.shape[2] for x in parts), width), 0
    for name, x in zip(names, parts, strict=True):
        rotate_into(found[:, :, start : start + x.shape[2]], x, group.parts[name].rope)
        start += x.shape[2]
    return found


def _for_queries(x_GHSK: Tensor, heads: int) -> Tensor:
    """Keys or values for as many heads as there are queries (grouped-query attention: each serves several)."""
    shared = heads // x_GHSK.shape[1]
    return x_GHSK.repeat_interleave(shared, dim=1) if shared > 1 else x_GHSK


def _one(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2) if len(parts) > 1 else parts[0]
