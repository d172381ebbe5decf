"""A slow twin of the network that does the published amount of work: the honest baseline for those who lack the official code.

Public idea: ``Published(net)`` is a denoiser with the weights of ``net`` and the same logits, in the way that the published model is run
(Lavida-O, arXiv 2509.19244): one tensor [B, T, D] carries all positions, generation positions use its first E channels; both branches go
through all layers; the text head reads every position and the code head every code; every step computes every position, except that a
prompt which does not read the answer is computed once and its keys and values are kept (the published prefix cache).

Shapes: B rows · L tokens · T positions · S positions that are read · D width · E generation width · H heads · K head width · M rows of
one branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.sequence import Batch, Branch, Kind
from unmask.step import Prediction, Reuse, Scored


@dataclass(frozen=True, kw_only=True)
class Places:
    """Positions in the order of their tokens. ``token [B, T]``: the first token of each · ``real``: not padding · ``gen``: of the
    generation branch · ``index``: for rotary positions · ``segment``, ``order``: as of ``Batch``.
    """

    token: Tensor
    real: Tensor
    gen: Tensor
    index: Tensor
    segment: Tensor
    order: Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt that was computed: its places, and keys and values of every layer, [B, H, S, K]."""

    key: tuple[object, ...]
    places: Places
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Published:
    """``cache``: keep the keys and values of a prompt that does not read the answer."""

    def __init__(self, net: Elastic, *, cache: bool = True) -> None:
        self.net, self.cache = net, cache
        self.prompt: Prompt | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        predict = batch.masked if predict is None else predict
        kept = batch.leader & batch.valid
        prompt_BL = kept & (batch.segment == 0) & (batch.order == 0)
        read = None
        if self.cache and bool(prompt_BL.any()) and not bool((prompt_BL & batch.writable).any()):
            read = self._prompt(batch, prompt_BL)
            kept = kept & ~prompt_BL
        places = _places(batch, kept)
        x = self._layers(self._embedded(batch, places), places, read, None)
        return self._scored(batch, predict, places, x)

    def _prompt(self, batch: Batch, prompt_BL: Tensor) -> Prompt:
        shown = [batch.ids.masked_fill(~prompt_BL, 0), batch.kind, batch.branch]
        features = None if batch.features is None else float(batch.features.double().sum())
        key = (*(tuple(t.flatten().tolist()) for t in shown), features)
        if self.prompt is None or self.prompt.key != key:
            made = Prompt(key=key, places=_places(batch, prompt_BL))
            self._layers(self._embedded(batch, made.places), made.places, None, made)
            self.prompt = made
        return self.prompt

    def _embedded(self, batch: Batch, places: Places) -> Tensor:
        net, config = self.net, self.net.config
        kind = batch.kind.gather(1, places.token)
        ids = batch.ids.masked_fill(batch.masked | (batch.kind != Kind.TEXT), net.mask_id).gather(1, places.token)
        x = net.embed(ids)
        seen = [net.features(batch.pixels)] if batch.pixels is not None else []
        if seen or batch.features is not None:
            rows = torch.cat([*seen, *([batch.features] if batch.features is not None else [])])
            look = kind == Kind.FEATURE
            x = torch.where(look[..., None], rows[batch.feature.gather(1, places.token) * look].to(x.dtype), x)
        if config.gen_width and bool(places.gen.any()):
            codes = batch.ids.masked_fill(batch.masked, config.mask_code)
            x = torch.where(places.gen[..., None], self._codes_in(codes, batch, places), x)
        return x

    def _codes_in(self, codes_BL: Tensor, batch: Batch, places: Places) -> Tensor:
        """One vector for each position, with zeros up to the full width; those of other positions are not used."""
        e, embedding = self.net.config.gen_width, self.net.code_embedding
        squares, alone = _squares(batch, places)
        valid = codes_BL.masked_fill((batch.branch != Branch.GEN) | ~batch.valid, self.net.config.mask_code)
        one = embedding.mix(embedding.table_norm(embedding.table(valid.gather(1, squares.flatten(1)))))
        four = one.unflatten(1, (-1, 4))
        folded = embedding.fold(embedding.fold_norm(four))
        x = embedding.out(embedding.out_norm(torch.where(alone[..., None], four[:, :, 0], folded)))
        return F.pad(x, (0, self.net.config.width - e))

    def _layers(self, x: Tensor, places: Places, read: Prompt | None, keep: Prompt | None) -> Tensor:
        config = self.net.config
        table = _rotary(places.index, config.width // config.heads, config.rope_theta)
        others = [places] if read is None else [read.places, places]
        key = {n: torch.cat([getattr(p, n) for p in others], 1) for n in ("real", "gen", "segment", "order")}
        allowed = key["real"][:, None] & (
            (key["segment"] == 0)[:, None] | (key["segment"][:, None] == places.segment[..., None])
        )
        allowed = allowed & (key["order"][:, None] <= places.order[..., None])
        split = allowed & (key["gen"][:, None] == places.gen[..., None])
        both = [None if bool(a.all()) else a[:, None] for a in (allowed, split)]
        for number, block in enumerate(self.net.blocks):
            before = None if read is None else read.layers[number]
            x = self._layer(block, x, places, table, both[int(number >= config.joint_layers)], before, keep)
        return x

    def _layer(self, block, x, places, table, allowed, before, keep) -> Tensor:  # noqa: ANN001
        """Spec 1.4: each branch over its own positions, one attention, the understanding branch's output matrix for all."""
        config, und, gen = self.net.config, places.real & ~places.gen, places.real & places.gen
        q, k, v = (x.new_zeros(*x.shape[:2], config.width) for _ in range(3))
        for here, branch, width in self._branches(block, und, gen):
            h_MD = branch.attn_norm(x[here][:, :width])
            q[here], k[here], v[here] = branch.q(h_MD), branch.k(h_MD), branch.v(h_MD)
        q, k, v = (y.unflatten(-1, (config.heads, -1)).transpose(1, 2) for y in (q, k, v))
        q, k = _turned(q, table), _turned(k, table)
        if keep is not None:
            keep.layers.append((k, v))
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + F.linear(mixed.nan_to_num().transpose(1, 2).flatten(2), block.out.weight)
        x = x.masked_fill(
            places.gen[..., None] & (torch.arange(config.width, device=x.device) >= config.gen_width), 0.0
        )
        out = torch.zeros_like(x)
        for here, branch, width in self._branches(block, und, gen):
            out[here] = F.pad(branch.mlp(branch.mlp_norm(x[here][:, :width])), (0, config.width - width))
        return x + out

    def _branches(self, block, und: Tensor, gen: Tensor):  # noqa: ANN001, ANN202
        config = self.net.config
        found = [(und, block.und, config.width)]
        return [*found, (gen, block.gen, config.gen_width)] if config.gen_width else found

    def _scored(self, batch: Batch, predict: Tensor, places: Places, x: Tensor) -> Prediction:
        net, config = self.net, self.net.config
        h = net.norm(x)  # over all channels, also where the upper ones are zero
        text = net.text_head(h)  # every position, as published
        at = places.token + torch.arange(batch.rows, device=x.device)[:, None] * batch.ids.shape[1]
        wanted = places.real & ~places.gen & (predict & (batch.kind == Kind.TEXT)).gather(1, places.token)
        scored = {Kind.TEXT: Scored(at=at[wanted], logits=text[wanted])}
        if config.gen_width and bool((places.real & places.gen).any()):
            squares, alone = _squares(batch, places)
            here = places.real & places.gen
            own = h[here][:, : config.gen_width]
            codes = torch.where(alone[here][:, None, None], own[:, None], net.code_head.unfolded(own))
            logits = net.code_head(codes.flatten(0, 1))  # every code, as published
            flat = (squares + torch.arange(batch.rows, device=x.device)[:, None, None] * batch.ids.shape[1])[here]
            first = torch.ones_like(flat, dtype=torch.bool)
            first[:, 1:] = ~alone[here][:, None]
            chosen = (first & (predict & (batch.kind == Kind.CODE)).flatten()[flat]).flatten()
            found, order = flat.flatten()[chosen].sort()
            scored[Kind.CODE] = Scored(at=found, logits=logits[chosen][order])
        return Prediction(scored=scored)


def _places(batch: Batch, kept_BL: Tensor) -> Places:
    most = max(1, int(kept_BL.sum(1).max()))
    token = (~kept_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    real = kept_BL.gather(1, token)
    fields = {name: getattr(batch, name).gather(1, token) for name in ("segment", "order")}
    gen = (batch.branch.gather(1, token) == Branch.GEN) & real
    return Places(token=token, real=real, gen=gen, index=batch.position.gather(1, token), **fields)


def _squares(batch: Batch, places: Places) -> tuple[Tensor, Tensor]:
    """The four codes of each position, [B, T, 4], and which positions have one code alone (named four times)."""
    stride = batch.stride.gather(1, places.token) * places.gen
    corner = torch.stack([torch.zeros_like(stride), torch.ones_like(stride), stride, stride + 1], dim=-1)
    return places.token[..., None] + torch.where(stride[..., None] > 0, corner, 0), stride == 0


def _rotary(index_BT: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    half = torch.arange(head_width // 2, device=index_BT.device)
    angle = index_BT[:, None, :, None] * theta ** (-2 * half / head_width)
    return angle.cos(), angle.sin()


def _turned(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (a, b) = table, x_BHTK.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHTK.dtype)
