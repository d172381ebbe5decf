"""The trunk of other language models is a configuration: fewer key heads, heads of their own width, biases, shifted logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.sampling.cache import NoCache, PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)

MASK_ID = 40
CONFIG = ElasticConfig(
    vocab_size=41,
    width=24,
    heads=4,
    kv_heads=2,
    head_width=8,
    layers=2,
    mlp=32,
    gen_width=0,
    gen_mlp=0,
    joint_layers=2,
    rope_theta=1000.0,
    codes=0,
    code_rows=0,
    vision=None,
    qkv_bias=True,
)


def make(config: ElasticConfig) -> Elastic:
    net, generator = Elastic(config, mask_id=MASK_ID).eval(), torch.Generator().manual_seed(0)
    init(net, generator)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5, generator=generator)
    return net


def batch_of(lengths: tuple[int, ...], answer: int = 3, order: int = 0) -> Batch:
    rows, generator = [], torch.Generator().manual_seed(1)
    for n in lengths:
        masked = torch.arange(n) >= n - answer
        spans = (
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=n - answer),
            Span(name="answer", kind=Kind.TEXT, start=n - answer, stop=n, writable=True, order=order),
        )
        rows.append(Sequence(ids=torch.randint(0, 40, (n,), generator=generator), masked=masked, spans=spans))
    return collate(rows, range(len(rows)))


def reference(net: Elastic, ids_L: Tensor) -> Tensor:
    """Logits of one row, [L, V], written out head by head."""
    config, w = net.config, dict(net.named_parameters())
    size, x = config.head_channels, w["embed.weight"][ids_L]
    angle = torch.arange(len(x))[:, None] * config.rope_theta ** (-torch.arange(0, size, 2) / size)

    def turn(y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        return y * (y.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weight

    for i in range(config.layers):
        b = f"blocks.{i}."
        h = norm(x, w[b + "und.attn_norm.weight"])
        q, k, v = (F.linear(h, w[f"{b}und.{n}.weight"], w.get(f"{b}und.{n}.bias")) for n in "qkv")
        found = []
        for head in range(config.heads):
            key = head * (config.kv_heads or config.heads) // config.heads
            own, shared = slice(head * size, (head + 1) * size), slice(key * size, (key + 1) * size)
            score = turn(q[:, own]) @ turn(k[:, shared]).T / size**0.5
            found.append(score.softmax(-1) @ v[:, shared])
        x = x + torch.cat(found, -1) @ w[b + "out.weight"].T
        h = norm(x, w[b + "und.mlp_norm.weight"])
        gate, up = h @ w[b + "und.mlp.gate.weight"].T, h @ w[b + "und.mlp.up.weight"].T
        x = x + (F.silu(gate) * up) @ w[b + "und.mlp.down.weight"].T
    return norm(x, w["norm.weight"]) @ w["text_head.weight"].T


@pytest.mark.parametrize(
    "change",
    [{}, {"kv_heads": 1}, {"kv_heads": 0}, {"qkv_bias": False}, {"head_width": 0}],
    ids=["grouped", "one key head", "all key heads", "no bias", "heads of the width"],
)
@torch.no_grad()
def test_logits_equal_those_written_out_head_by_head(change: dict) -> None:
    net, batch = make(replace(CONFIG, **change)), batch_of((9, 5))
    found = net(batch, predict=batch.valid).logits(Kind.TEXT)
    wanted = torch.cat(
        [reference(net, batch.ids.masked_fill(batch.masked, MASK_ID)[b, :n]) for b, n in ((0, 9), (1, 5))]
    )
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_shifted_logits_are_those_of_the_position_before() -> None:
    batch = batch_of((9, 5))
    plain = make(CONFIG)
    shifted = make(replace(CONFIG, shifted=True))
    each = plain(batch, predict=batch.valid).logits(Kind.TEXT).split([9, 5])
    wanted = torch.cat([torch.cat([row[:1], row[:-1]]) for row in each])
    torch.testing.assert_close(shifted(batch, predict=batch.valid).logits(Kind.TEXT), wanted)
    assert not torch.allclose(wanted, torch.cat(each))


@torch.no_grad()
def test_a_few_scored_tokens_have_the_shifted_logits_of_all() -> None:
    net, batch = make(replace(CONFIG, shifted=True)), batch_of((40,), answer=6)
    every = net(batch, predict=batch.valid).logits(Kind.TEXT)
    torch.testing.assert_close(net(batch, predict=batch.masked).logits(Kind.TEXT), every[-6:])


@pytest.mark.parametrize("shifted", [False, True])
def test_a_prefix_cache_changes_no_answer(shifted: bool) -> None:
    net = make(replace(CONFIG, shifted=shifted))
    batch = batch_of((9, 12), answer=4, order=1)
    sampler = Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident(), cache=PrefixCache())
    cached = sampler.sample(net, batch)
    plain = replace(sampler, cache=NoCache()).sample(net, batch)
    assert torch.equal(cached.ids, plain.ids)
    torch.testing.assert_close(cached.score, plain.score)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"kv_heads": 3}, "kv_heads 3"), ({"head_width": 7}, "head_width 7"), ({"kv_heads": -1}, "kv_heads -1")],
)
def test_heads_that_do_not_fit_are_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)
