"""Packed positions: nothing is computed twice, for padding or unread, and answers are bit-identical."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unmask.models import elastic, linear
from unmask.models.attention import Attention, Fitting, blocked, fused, plain
from unmask.models.elastic import Elastic, init
from unmask.models.layout import Packing, groups_of
from unmask.models.linear import alike_from
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.guidance import EditGuidance
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import InOrder
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Branch, Kind, Sequence, Span, collate
from unmask.step import Prediction

torch.set_num_threads(1)
CONFIG = dataclasses.replace(SIZES["mini"], vision=None)
LONG = Fitting(fused_from=64, blocked_from=CONFIG.heads * 64**2)  # so that rows of these tests are long and short ones


@pytest.fixture(scope="module")
def model() -> Elastic:
    model = Elastic(CONFIG, mask_id=7).eval()
    init(model, generator("packing"))
    return model


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def editing(prompt: int, side: int = 8) -> Sequence:
    """A prompt, a source picture and one to draw."""
    codes = side * side
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
        Span(name="source", kind=Kind.CODE, start=prompt, stop=prompt + codes, grid=(side, side), fold=2),
        Span(
            name="image",
            kind=Kind.CODE,
            start=prompt + codes,
            stop=prompt + 2 * codes,
            grid=(side, side),
            fold=2,
            writable=True,
        ),
    )
    ids = torch.randint(8, 1000, (spans[-1].stop,), generator=generator("ids", prompt))
    masked = torch.zeros(len(ids), dtype=torch.bool)
    masked[spans[-1].start :] = True
    return Sequence(ids=ids, masked=masked, spans=spans)


def views(*prompts: int, side: int = 8) -> Batch:
    """Rows of an edit as they are, then the same rows without their source."""
    batch = collate([editing(n, side) for n in prompts], range(len(prompts)))
    gone = batch.drop({"source"}, null_id=7)
    fields = [f.name for f in dataclasses.fields(Batch) if isinstance(getattr(batch, f.name), Tensor)]
    both = {name: torch.cat([getattr(batch, name), getattr(gone, name)]) for name in fields}
    return batch.replace(**both, span_table=batch.span_table * 2)


def codes_of(prediction: Prediction) -> Tensor:
    return prediction.logits(Kind.CODE)


def seen_by(module: nn.Module) -> list[int]:
    """Rows of every call of a linear layer."""
    counts: list[int] = []
    module.register_forward_pre_hook(lambda _, given: counts.append(given[0].numel() // given[0].shape[-1]))
    return counts


def test_linear_layers_see_real_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "GROUP_FLOPS", {"cpu": 0.0, "other": 0.0})
    model, batch = Elastic(CONFIG, mask_id=7).eval(), views(20, 30)
    und, gen = seen_by(model.blocks[0].und.mlp.gate), seen_by(model.blocks[0].gen.mlp.gate)  # type: ignore[union-attr]
    model(batch)
    assert und == [20 + 30 + (20 + 16) + (30 + 16)] and gen == [32 + 32 + 16 + 16]


@pytest.mark.parametrize("group_flops", [0.0, 5e6])
def test_packed_equals_padded_to_the_bit(model: Elastic, monkeypatch: pytest.MonkeyPatch, group_flops: float) -> None:
    found = []
    for flops in (group_flops, 1e18):  # the latter: all rows in one group, padded to the longest
        monkeypatch.setattr(elastic, "GROUP_FLOPS", {"cpu": flops})
        found.append(codes_of(model(views(20, 33, 21))))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_beside_others_are_as_alone(
    model: Elastic, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Each row gets the attention that it would get alone, whatever the lengths beside it."""
    net = Elastic(CONFIG, mask_id=7, attention=LONG).eval()
    net.load_state_dict(model.state_dict())
    net.to(dtype)
    batch = views(20, 33, 40, 90)
    together = codes_of(net(batch))
    alone = torch.cat([codes_of(net(batch.row(i))) for i in range(batch.rows)])
    assert torch.equal(together, alone)


def test_rows_whose_attention_differs_share_no_group() -> None:
    base: dict[str, Any] = {"width": 8, "together": False, "head_width": 4, "theta": 10.0}
    free = Packing(und_flops=10, gen_flops=10, group_flops=1e9, unpadded_from=50, **base)
    lengths = [(10, 30), (8, 30), (30, 30), (9, 30), (30, 30)]
    assert groups_of(lengths, free) == [[0, 1, 3], [2, 4]]
    dear = dataclasses.replace(free, group_flops=0.0)
    assert groups_of(lengths, dear) == [[1], [3], [0], [2, 4]]
    assert sorted(sum(groups_of([(9, 0), (9, 4), (0, 4)], dear), [])) == [0, 1, 2]


def test_codes_are_padded_only_where_nothing_is_behind_them() -> None:
    free = Packing(
        und_flops=1, gen_flops=1, width=8, group_flops=1e9, unpadded_from=50, together=False, head_width=4, theta=10.0
    )
    assert groups_of([(5, 16), (6, 16), (5, 17), (6, 0), (5, 0)], free) == [[3, 4], [0, 1], [2]]
    assert groups_of([(0, 16), (0, 17), (5, 18)], free) == [[0, 1], [2]]


@pytest.mark.parametrize("attention", [fused, blocked, Fitting(), LONG])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("some", [False, True])
def test_every_attention_equals_plain(attention: Attention, dtype: torch.dtype, some: bool) -> None:
    rng = generator("attention")
    q, k, v = (torch.randn(2, 3, n, 16, generator=rng).to(dtype) for n in (600, 700, 700))
    mask = torch.rand(2, 1, 600, 700, generator=rng) < 0.5 if some else None
    got, wanted = attention(q, k, v, mask), plain(*(x.float() for x in (q, k, v)), mask)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), wanted, atol=tolerance, rtol=tolerance)


def test_the_choice_of_attention() -> None:
    fitting = Fitting(fused_from=100, blocked_from=2 * 200**2)
    choices = {
        ("cpu", torch.float32, 99, False): plain,
        ("cpu", torch.float32, 100, False): fused,
        ("cpu", torch.bfloat16, 199, False): plain,
        ("cpu", torch.bfloat16, 200, False): blocked,
        ("cpu", torch.float32, 5000, True): plain,
        ("cuda", torch.bfloat16, 10, True): fused,
    }
    for (device, dtype, keys, learns), wanted in choices.items():
        assert fitting.choose(2, keys, dtype, device, learns=learns) is wanted


def test_gradients_take_plain_attention() -> None:
    q = torch.randn(1, 1, 70, 8, generator=generator("q"))
    assert torch.equal(LONG(q, q, q, None), fused(q, q, q, None))
    with torch.enable_grad():
        wants = q.clone().requires_grad_()
        assert torch.equal(LONG(wants, wants, wants, None), plain(q, q, q, None))


# -- nothing for nobody -----------------------------------------------------------------------------------------------


def test_the_last_layer_returns_what_is_read(model: Elastic) -> None:
    net = Elastic(CONFIG, mask_id=7).eval()
    net.load_state_dict(model.state_dict())
    last = seen_by(net.blocks[-1].gen.mlp.gate)  # type: ignore[union-attr]
    unfolded = seen_by(net.code_head.unfold)
    batch = views(20, side=16)
    some = batch.masked & (batch.masked.long().cumsum(1) % 60 == 1)
    found = codes_of(net(batch, predict=some))
    everything = codes_of(net(batch))
    rows = batch.masked.flatten().long().cumsum(0)[some.flatten()] - 1
    assert torch.equal(found, everything[rows])
    positions = 2 * 5  # 1, 61, 121, 181 and 241 of 256 codes lie on positions of their own
    assert last[0] == unfolded[0] == positions + -positions % alike_from(net.embed.weight)
    assert last[1] == unfolded[1] == 2 * 64  # of 64 + 64 and 64 positions: those of the source are not read


def test_queries_that_nobody_reads_are_not_computed() -> None:
    net = Elastic(CONFIG, mask_id=7).eval()
    queries = [seen_by(block.und.q) for block in net.blocks]  # type: ignore[union-attr]
    net(views(20))
    assert [len(calls) for calls in queries] == [1] * (CONFIG.joint_layers - 1) + [0] * 3


def edit_sampler(side: int = 8, steps: int = 4) -> Sampler:
    return Sampler(
        schedule=Equal(steps=steps),
        token_sampler=Greedy(),
        selection=InOrder(order=tuple(stratified(side))),
        guidance=EditGuidance(scale=2.0, image_scale=1.0, drop={"prompt", "source"}, keep={"source"}, null_id=7),
    )


def test_a_run_makes_its_layout_once(model: Elastic, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = elastic.lay_out

    def counted(batch: Batch, *rest: Any) -> Any:
        made.append(batch.rows)
        return whole(batch, *rest)

    monkeypatch.setattr(elastic, "lay_out", counted)
    for _ in range(2):  # another request has a layout of its own
        edit_sampler().sample(model, collate([editing(20)], [0]))
    assert made == [3, 3]


def necessary(batch: Batch, asked: int) -> float:
    """FLOPs of a forward that computes every position once and nothing that is not read; matrix products alone."""
    c, total = CONFIG, 0.0
    for row in range(batch.rows):
        here = (batch.leader & batch.valid)[row]
        u, g = (int((here & (batch.branch[row] == b)).sum()) for b in (Branch.UND, Branch.GEN))
        read = asked // 4  # whole squares
        for layer in range(c.layers):
            joint, last = layer < c.joint_layers, layer == c.layers - 1
            keys = g + u if joint else g
            total += g * c.gen_width * c.width * 3 + g * keys * c.width * 2
            total += (read if last else g) * (c.width * c.gen_width + 3 * c.gen_width * c.gen_mlp)
            if joint:
                total += u * c.width * c.width * 2
                if layer < c.joint_layers - 1:
                    total += u * c.width * c.width * 2 + u * keys * c.width * 2 + u * 3 * c.width * c.mlp
        codes = int((batch.branch[row] == Branch.GEN).sum())
        total += codes * c.gen_width**2 + g * (4 * c.gen_width**2 + c.gen_width**2)
        total += read * 4 * c.gen_width**2 + asked * (2 * c.gen_width**2 + c.gen_width * c.codes)
    return 2 * total


@pytest.mark.parametrize("wide", [True, False])
def test_operations_done_are_those_that_are_necessary(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    """Editing: 1.41 times the necessary before positions were packed."""
    net = Elastic(CONFIG, mask_id=7, attention=plain).eval()
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)  # the counter knows neither it nor fused attention
    side = 32 if wide else 16
    batch = views(24, side=side)
    asked = side * side // 4
    few = batch.masked & (batch.masked.long().cumsum(1) <= asked)
    with FlopCounterMode(display=False) as counter:
        net(batch, predict=few)
    assert 1.0 <= counter.get_total_flops() / necessary(batch, asked) <= 1.03
