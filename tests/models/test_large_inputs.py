"""Large inputs on a CPU are worked on in parts, and what follows from weights alone is kept: the results are those of the plain way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models import blocks, codes
from unmask.models.attention import blocked, plain
from unmask.models.blocks import SwiGLU, rms_norm
from unmask.models.codes import CodeEmbedding, CodeHead, init_codes
from unmask.models.elastic import Elastic, init
from unmask.models.gradients import large
from unmask.models.rope import rope_table, rotate, rotate_into
from unmask.rng import generator
from unmask.sequence import Batch, Kind, collate

from .test_packing import CONFIG, codes_of, editing, seen_by, views


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=generator("large", *shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_rotations_in_parts_have_the_same_bits(dtype: torch.dtype) -> None:
    x, weight = noise(2100, 512, dtype=dtype), noise(512, dtype=dtype)
    assert large(x) and not large(x[:1000])
    parts = [rms_norm(x[start : start + 1000], weight, 1e-6, 1024) for start in range(0, 2100, 1000)]
    assert torch.equal(rms_norm(x, weight, 1e-6, 1024), torch.cat(parts))
    table = rope_table(torch.arange(2100)[None], 64, 10_000.0)
    heads = x.unflatten(-1, (8, 64)).transpose(0, 1)[None]
    found = torch.empty_like(heads)
    rotate_into(found, heads, table)
    assert torch.equal(found, rotate(heads, table))


def test_the_feed_forward_takes_parts_of_many_positions() -> None:
    mlp = SwiGLU(192, 64).to(torch.bfloat16)
    x, calls = noise(6000, 192), seen_by(mlp.gate)
    found = mlp(x)
    assert sum(calls) == 6000 and max(calls) < 1024 and min(calls) >= 512
    assert torch.equal(found, mlp._part(x))


def test_blocks_of_queries_leave_gradients_alone() -> None:
    q, k, v = (noise(1, 2, 300, 16, dtype=torch.float32).requires_grad_() for _ in range(3))
    with torch.enable_grad():
        found = blocked(q, k, v, None)
        assert torch.equal(found, plain(q, k, v, None))
        assert torch.autograd.grad(found.sum(), [q, k, v])[2].abs().sum() > 0


def both_kinds() -> Batch:
    """Rows of two lengths, with words and codes to score in some of them."""
    batch = collate([editing(24), editing(24), editing(40)], range(3))
    masked = batch.masked & (batch.masked.long().cumsum(1) % 9 == 1)
    words = torch.zeros_like(masked)
    words[1, 3:7] = True
    return batch.replace(masked=masked | words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [{}, {"joint_layers": CONFIG.layers}, {"kv_heads": 2}])
def test_queries_that_nobody_reads_are_left_out_of_the_last_layer(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, change: dict[str, Any]
) -> None:
    net = Elastic(dataclasses.replace(CONFIG, **change), mask_id=7).eval()
    init(net, generator("few"))
    net.to(dtype)
    asked = seen_by(net.blocks[-1].gen.q)  # type: ignore[union-attr]
    batches = [both_kinds(), views(24, 30), both_kinds().replace(masked=views(24, 24, 40).masked[:3])]
    for batch in batches:
        monkeypatch.setattr(blocks, "_FEW_FROM", 2**62)
        wanted = net(batch)
        monkeypatch.setattr(blocks, "_FEW_FROM", 0)
        found = net(batch)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        for kind in (Kind.TEXT, Kind.CODE):
            close = {"atol": tolerance, "rtol": tolerance}
            torch.testing.assert_close(found.logits(kind), wanted.logits(kind), **close)
    assert asked[0] == 3 * 32 and asked[1] < asked[0]


def test_rows_with_few_queries_are_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Elastic(CONFIG, mask_id=7).eval()
    init(net, generator("few"))
    monkeypatch.setattr(blocks, "_FEW_FROM", 0)
    batch = both_kinds()
    batch = batch.replace(masked=batch.masked & (batch.kind == Kind.CODE))
    alone = torch.cat([codes_of(net(batch.row(i))) for i in range(batch.rows)])
    assert torch.equal(codes_of(net(batch)), alone)


def test_vectors_of_all_codes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, head = CodeEmbedding(CONFIG), CodeHead(CONFIG)
    table = noise(CONFIG.codes, 8, dtype=torch.float32)
    for weights in (embedding.mix, embedding.out):
        weights.weight.copy_(noise(*weights.weight.shape, dtype=torch.float32))
    embedding.fold.weight.copy_(noise(*embedding.fold.weight.shape, dtype=torch.float32))
    init_codes(embedding, head, table, generator("codes"))
    some = torch.arange(2048)[None] % CONFIG.codes
    squares = torch.arange(2048).view(1, 512, 4)

    def each_way() -> list[Tensor]:
        found = []
        for many in (2**62, 1):
            monkeypatch.setattr(codes, "_MANY", many)
            found.append(embedding(some, squares))
        return found

    direct, kept = each_way()
    torch.testing.assert_close(kept, direct, atol=1e-5, rtol=1e-5)
    for weight in (embedding.mix.weight, embedding.table.weight, embedding.table_norm.weight, embedding.fold.weight):
        before = kept
        weight.mul_(1 + 0.1 * noise(*weight.shape, dtype=torch.float32))
        direct, kept = each_way()
        torch.testing.assert_close(kept, direct, atol=1e-5, rtol=1e-5)
        assert not torch.equal(kept, before)
    calls = seen_by(embedding.mix)  # whoever watches the layer sees every code
    each_way()
    assert calls == [2048, 2048]


def test_the_kept_transposed_convolution_follows_its_weight() -> None:
    head, x = CodeHead(CONFIG), noise(32, CONFIG.gen_width, dtype=torch.float32)
    head.unfold.weight.copy_(noise(*head.unfold.weight.shape, dtype=torch.float32))
    before = head.unfold(x)
    head.unfold.weight.mul_(2.0)
    assert torch.equal(head.unfold(x), 2 * before)
