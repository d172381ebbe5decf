"""The slow twin of the network: the released arithmetic written down from the specification (1.3 to 1.7, 1.9), nothing saved.

One tensor [B, T, D] carries every position, the upper channels of generation positions held at zero. Both branches are
computed for every position of every layer and one is picked; masks are dense; convolutions are convolutions. Positions,
segments and padding are worked out here from the spans, so that nothing of ``Batch`` is taken on trust.

Shapes: B rows · T positions · D width · E generation width · H heads · K head width · L tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.sizes import ElasticConfig
from unmask.sequence import Kind, Sequence, Span

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits of one row by token number: text [V] or codes [V_c] for each token of that kind and branch."""

    text: dict[int, Tensor]
    code: dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One position: ``tokens`` that it stands for (one, or a square), its index for RoPE, who serves it and who reads it."""

    tokens: tuple[int, ...]
    index: int
    gen: bool
    segment: int
    x: Tensor


def twin(
    w: Weights, config: ElasticConfig, mask_id: int, rows: Items[Sequence], dropped: Items[set[str]]
) -> list[Answer]:
    """Every logit of every row. ``dropped``: names of each row's spans that are replaced by the null embedding."""
    laid = [_places(w, config, mask_id, row, gone) for row, gone in zip(rows, dropped, strict=True)]
    longest = max(map(len, laid))
    x = torch.zeros(len(rows), longest, config.width)
    index = torch.zeros(len(rows), longest)
    gen, real = torch.zeros(len(rows), longest, dtype=torch.bool), torch.zeros(len(rows), longest, dtype=torch.bool)
    segment = torch.full((len(rows), longest), -1)
    for b, places in enumerate(laid):
        for t, place in enumerate(places):
            x[b, t, : len(place.x)] = place.x
            index[b, t], gen[b, t], real[b, t], segment[b, t] = place.index, place.gen, True, place.segment
    reads = real[:, None, :] & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    for layer in range(config.layers):
        allowed = reads if layer < config.joint_layers else reads & (gen[:, None, :] == gen[:, :, None])
        x = _layer(w, f"blocks.{layer}", config, x, gen, index, allowed)
    h = _rms(x, w["norm.weight"], config.norm_eps)  # over all D channels, also where the upper ones are zero
    return [_read(w, config, row, gone, laid[b], h[b]) for b, (row, gone) in enumerate(zip(rows, dropped, strict=True))]


# -- in ---------------------------------------------------------------------------------------------------------------


def _places(w: Weights, config: ElasticConfig, mask_id: int, row: Sequence, gone: set[str]) -> list[Place]:
    null = w["embed.weight"][mask_id]
    shared = sum(_positions(s) for s in row.spans if s.segment == 0)
    used: dict[int, int] = {}
    out = []
    for span in row.spans:
        first = used.get(span.segment, shared if span.segment else 0)
        used[span.segment] = first + _positions(span)
        squares = _squares(span)
        lost = span.name in gone
        if lost:
            values = null.expand(len(squares), -1)
        elif span.kind == Kind.TEXT:
            ids = [mask_id if row.masked[t] else int(row.ids[t]) for t in range(span.start, span.stop)]
            values = w["embed.weight"][ids]
        elif span.kind == Kind.FEATURE:
            assert row.pixels is not None
            values = see(w, config, row.pixels[span.image])
        else:
            codes = row.ids[span.start : span.stop].clone()
            codes[row.masked[span.start : span.stop]] = config.codes + 1
            values = embed_codes(w, codes.reshape(span.grid), span.fold)
        for i, tokens in enumerate(squares):
            gen = span.kind == Kind.CODE and not lost
            out.append(Place(tokens=tokens, index=first + i, gen=gen, segment=span.segment, x=values[i]))
    return out


def _positions(span: Span) -> int:
    return len(span) // span.fold**2 if span.kind == Kind.CODE else len(span)


def _squares(span: Span) -> list[tuple[int, ...]]:
    """The tokens of each position, row by row of the folded grid."""
    if span.kind != Kind.CODE:
        return [(t,) for t in range(span.start, span.stop)]
    assert span.grid is not None
    grid = torch.arange(span.start, span.stop).reshape(1, 1, *span.grid).float()
    return [tuple(int(t) for t in square) for square in F.unfold(grid, span.fold, stride=span.fold)[0].T.tolist()]


def embed_codes(w: Weights, codes: Tensor, fold: int) -> Tensor:
    """Spec 1.7, in: codes [h, w] -> [positions, E]."""
    p = "code_embedding."
    e = F.linear(_rms(F.embedding(codes, w[p + "table.weight"]), w[p + "table_norm.weight"], 1e-6), w[p + "mix.weight"])
    if fold == 2:
        e = _rms(e, w[p + "fold_norm.weight"], 1e-6).permute(2, 0, 1)[None]
        e = F.conv2d(F.pad(e, (0, 1, 0, 1)), w[p + "fold.weight"], stride=2)[0].permute(1, 2, 0)
    return F.linear(_rms(e.flatten(0, 1), w[p + "out_norm.weight"], 1e-6), w[p + "out.weight"])


def see(w: Weights, config: ElasticConfig, pixels: Tensor) -> Tensor:
    """Spec 1.9: one picture [3, side, side] in 0..1 -> [pooled * (pooled + 1), D], with a newline after every row."""
    assert config.vision is not None
    v = config.vision
    x = F.conv2d(pixels[None] * 2 - 1, w["vision.tower.patch.weight"], w["vision.tower.patch.bias"], stride=v.patch)
    side = x.shape[-1]
    x = x[0].flatten(1).T + w["vision.tower.position.weight"]

    def linear(y: Tensor, name: str) -> Tensor:
        return F.linear(y, w[name + ".weight"], w[name + ".bias"])

    for layer in range(v.layers):
        p = f"vision.tower.layers.{layer}."
        y = F.layer_norm(x, (v.width,), w[p + "norm1.weight"], w[p + "norm1.bias"], v.eps)
        mixed = []
        q, k, val = (linear(y, p + n).split(v.width // v.heads, dim=1) for n in "qkv")
        for head in range(v.heads):
            score = q[head] @ k[head].T / (v.width // v.heads) ** 0.5
            mixed.append(score.softmax(1) @ val[head])
        x = x + linear(torch.cat(mixed, 1), p + "out")
        y = F.layer_norm(x, (v.width,), w[p + "norm2.weight"], w[p + "norm2.bias"], v.eps)
        x = x + linear(F.gelu(linear(y, p + "fc1"), approximate="tanh"), p + "fc2")
    pooled = F.conv2d(x.T.reshape(1, v.width, side, side), w["vision.pool.weight"], w["vision.pool.bias"], stride=2)[0]
    rows = []
    for r in range(pooled.shape[1]):
        rows.append(linear(F.gelu(linear(pooled[:, r].T, "vision.project_in")), "vision.project_out"))
        rows.append(w["vision.newline"][None])
    return torch.cat(rows)


# -- layers -----------------------------------------------------------------------------------------------------------


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _layer(
    w: Weights, name: str, config: ElasticConfig, x: Tensor, gen: Tensor, index: Tensor, allowed: Tensor
) -> Tensor:
    """Spec 1.4, both branches for every position."""
    e, pick = config.gen_width, gen[..., None]

    def both(part: str, und: Tensor, generation: Tensor) -> Tensor:
        a, b = F.linear(und, w[f"{name}.und.{part}.weight"]), F.linear(generation, w[f"{name}.gen.{part}.weight"])
        return torch.where(pick, F.pad(b, (0, a.shape[-1] - b.shape[-1])), a)

    def normed(part: str) -> tuple[Tensor, Tensor]:
        und = _rms(x, w[f"{name}.und.{part}.weight"], config.norm_eps)
        return und, _rms(x[..., :e], w[f"{name}.gen.{part}.weight"], config.norm_eps)

    q, k, v = (both(part, *normed("attn_norm")).unflatten(-1, (config.heads, -1)) for part in "qkv")
    q, k = _turn(q, index, config.rope_theta), _turn(k, index, config.rope_theta)
    score = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    weight = score.masked_fill(~allowed[:, None], -1e30).softmax(-1)
    x = x + F.linear(torch.einsum("bhts,bshk->bthk", weight, v).flatten(2), w[f"{name}.out.weight"])
    keep = torch.ones_like(x)
    keep[..., e:] = (~pick).to(x.dtype)
    x = x * keep

    und, generation = normed("mlp_norm")
    a = F.silu(F.linear(und, w[f"{name}.und.mlp.gate.weight"])) * F.linear(und, w[f"{name}.und.mlp.up.weight"])
    b = F.silu(F.linear(generation, w[f"{name}.gen.mlp.gate.weight"])) * F.linear(
        generation, w[f"{name}.gen.mlp.up.weight"]
    )
    a, b = F.linear(a, w[f"{name}.und.mlp.down.weight"]), F.linear(b, w[f"{name}.gen.mlp.down.weight"])
    return x + torch.where(pick, F.pad(b, (0, config.width - e)), a)


def _turn(x: Tensor, index: Tensor, theta: float) -> Tensor:
    """RoPE as a product of complex numbers: channel i and channel i + K/2 are one of them. [B, T, H, K]"""
    half = x.shape[-1] // 2
    frequency = torch.tensor([theta ** (-2 * i / x.shape[-1]) for i in range(half)])
    angle = (index[..., None] * frequency)[:, :, None]
    z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat([z.real, z.imag], dim=-1)


# -- out --------------------------------------------------------------------------------------------------------------


def _read(w: Weights, config: ElasticConfig, row: Sequence, gone: set[str], places: list[Place], h: Tensor) -> Answer:
    text = {p.tokens[0]: F.linear(h[t], w["text_head.weight"]) for t, p in enumerate(places) if not p.gen}
    code: dict[int, Tensor] = {}
    start = 0
    for span in row.spans:
        stop = start + _positions(span)
        if span.kind == Kind.CODE and span.name not in gone:
            logits = classify(w, h[start:stop, : config.gen_width], span)
            code |= {span.start + i: one for i, one in enumerate(logits)}
        start = stop
    return Answer(text=text, code=code)


def classify(w: Weights, h: Tensor, span: Span) -> Tensor:
    """Spec 1.7, out: hidden states of one span [positions, E] -> logits [tokens, V_c]."""
    p = "code_head."
    assert span.grid is not None
    if span.fold == 2:
        high, wide = span.grid[0] // 2, span.grid[1] // 2
        h = _rms(h, w[p + "unfold_norm.weight"], 1e-6).T.reshape(1, -1, high, wide)
        h = F.conv_transpose2d(h, w[p + "unfold.weight"], stride=2)[0].flatten(1).T
    h = F.linear(_rms(h, w[p + "in_norm.weight"], 1e-6), w[p + "inner.weight"])
    h = _rms(F.linear(h, w[p + "mix.weight"]), w[p + "mix_norm.weight"], 1e-6)
    return F.linear(h, w[p + "classify.weight"])
