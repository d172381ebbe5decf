"""The planned memory of a step against the measured one: the most bytes of all tensors that are alive at a time, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.models.attention import fused
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.objectives.masked import Masked
from unmask.recipe import Optim
from unmask.rng import generator
from unmask.sequence import Batch, collate
from unmask.tasks.nominal import Geometry, nominal
from unmask.training.activations import Piece, load_of, loads_of, peak, unit_of
from unmask.training.layers import prepared
from unmask.training.memory import Plan, Way, parts_of
from unmask.training.optim import Masters
from unmask.training.sharded import Sharded

from .peak import Peak

torch.set_num_threads(1)

# 9 M parameters, with the proportions of the published model
SMALL = ElasticConfig(
    vocab_size=1800,
    width=256,
    heads=4,
    layers=6,
    mlp=768,
    gen_width=160,
    gen_mlp=512,
    joint_layers=3,
    rope_theta=500.0,
    codes=512,
    code_rows=514,
    vision=VisionConfig(image=128, patch=16, width=128, layers=3, heads=4, mlp=512),
)
MARGIN = (0.97, 1.15)  # of the measured peak, in which the planned one must be


class Everything:
    """All tokens are masked: the load that is planned for."""

    def __call__(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


MASKED = Masked(corruption=Absorbing(otherwise=Everything()))


def all_of(name: str) -> bool:
    return True


def generating(name: str) -> bool:
    return ".gen." in name or name.startswith("code_")


def batch_of(kind: str, rows: int, config: ElasticConfig = SMALL) -> Batch:
    geometry = Geometry(grid=16, fold=2, vision=config.vision, tiled=False)
    return collate([nominal(kind, geometry)] * rows, range(rows))


def network(attention_is_fused: bool = False, config: ElasticConfig = SMALL) -> Elastic:
    net = Elastic(config, mask_id=1)
    init(net, generator("memory"))
    if attention_is_fused:
        net.attention = fused
    return net


def held(net: Elastic, masters: Masters | Sharded, batch: Batch) -> list[Tensor]:
    """The tensors of a run between two source batches of an update."""
    moments = [t for state in masters.adam.state.values() for t in state.values()]
    sums = [p.grad for p in masters.master if p.grad is not None]
    pixels = [] if batch.pixels is None else [batch.pixels]
    return [*net.parameters(), *masters.master, *masters.average, *moments, *sums, *pixels]


# -- the whole step ---------------------------------------------------------------------------------------------------


CASES = [  # kind of rows, how many, what is trained, whether attention is fused, whether layers are recomputed, type
    ("draw", 4, generating, False, False, torch.bfloat16),
    ("draw", 4, generating, False, True, torch.float32),
    ("draw", 6, all_of, False, True, torch.bfloat16),
    ("draw_open", 4, all_of, True, False, torch.float32),
    ("draw_open", 4, all_of, True, True, torch.bfloat16),
    ("edit", 3, all_of, False, False, torch.bfloat16),
    ("chat", 2, all_of, False, False, torch.float32),
    ("chat", 2, all_of, False, True, torch.bfloat16),
]


@pytest.mark.parametrize(("kind", "rows", "trainable", "quick", "recompute", "dtype"), CASES)
def test_the_planned_peak_is_the_measured_one(
    kind: str, rows: int, trainable: Callable[[str], bool], quick: bool, recompute: bool, dtype: torch.dtype
) -> None:
    """Of the second source batch of an update, and the update after it."""
    net, batch = network(quick), batch_of(kind, rows)
    masters = Masters(net, Optim(ema=0), trainable, dtype=dtype)
    masters.frozen = {}  # the weights as they were given, which on a GPU's machine stay on the CPU

    def compute() -> None:
        with prepared(net, recompute=recompute, compile=False):
            masters.backward(MASKED(net, batch, generator("noise")).total, 3)

    compute()
    masters.step(1e-3, 0)
    compute()
    with Peak(*held(net, masters, batch)) as measured:
        compute()
        masters.step(1e-3, 1)
    plan = Plan(net=net, steps=((load_of(batch),),), size=dtype.itemsize)
    planned = plan.usage(Way(world=1, sharded=False, recompute=recompute)).total
    assert MARGIN[0] <= planned / measured.most <= MARGIN[1], (planned / 2**20, measured.most / 2**20)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_sharded_step_is_planned_too(recompute: bool, tmp_path: Path) -> None:
    """FSDP2 with one process, which holds every shard."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        net, batch = network(), batch_of("draw_open", 4)
        masters = Sharded(net, Optim(ema=0), all_of, dtype=torch.bfloat16, device=torch.device("cpu"))

        def compute() -> None:
            with prepared(net, recompute=recompute, compile=False):
                masters.backward(MASKED(net, batch, generator("noise")).total, 3)

        compute()
        masters.step(1e-3, 0, lambda summed: summed)
        compute()
        shards = [t.to_local() if hasattr(t, "to_local") else t for t in held(net, masters, batch)]
        with Peak(*shards) as measured:
            compute()
            masters.step(1e-3, 1, lambda summed: summed)
    finally:
        dist.destroy_process_group()
    plan = Plan(net=net, steps=((load_of(batch),),), size=2)
    planned = plan.usage(Way(world=1, sharded=True, recompute=recompute)).total
    assert MARGIN[0] <= planned / measured.most <= MARGIN[1], (planned / 2**20, measured.most / 2**20)


# -- its pieces -------------------------------------------------------------------------------------------------------


def test_the_backward_pass_trades_activations_for_gradients() -> None:
    """Two layers that keep 10 each and whose gradients are 30 and 5: at the last one 20 + 5, at the first one 10 + 35."""
    found = [Piece(units=("a",), kept=10), Piece(units=("b",), kept=10)]
    assert peak(found, {"a": 30, "b": 5}) == 45 and peak(found, {}) == 20
    again = [Piece(units=("a",), kept=1, again=9, passing=4), Piece(units=("b",), kept=1, again=9)]
    assert peak(again, {}) == 14
    twice = [Piece(units=("a",), kept=10), Piece(units=("a",), kept=10)]
    assert peak(twice, {"a": 30}) == 50, "the gradient of shared weights exists once"


def test_loads_count_positions_and_tokens_to_score() -> None:
    """A picture of 16 x 16 codes at four to a position; all of its codes may be masked, and a row of text has 128 to write."""
    drawn, asked = load_of(batch_of("draw", 3)), load_of(batch_of("chat", 2))
    assert (drawn.rows, drawn.und, drawn.gen, drawn.codes, drawn.text, drawn.code, drawn.views) == (
        3, 256, 64, 256, 0, 3 * 256, 0
    )  # fmt: skip
    assert SMALL.vision is not None
    assert (asked.und, asked.gen, asked.text, asked.code, asked.views) == (256 + SMALL.vision.tokens, 0, 256, 0, 2)
    assert asked.of_rows(5).text == 5 * 128 and asked.of_rows(5).views == 5
    assert loads_of({"a": batch_of("draw", 3), "b": batch_of("chat", 2)}) == (drawn, asked)


def test_parameters_belong_to_the_unit_that_makes_their_gradient() -> None:
    assert (
        unit_of("blocks.3.und.mlp.gate.weight") == "blocks.3.und" and unit_of("blocks.3.out.weight") == "blocks.3.out"
    )
    assert unit_of("vision.tower.layers.2.q.bias") == "vision.tower.layers.2"
    assert unit_of("vision.project_in.weight") == "vision" and unit_of("embed.weight") == "embed"


def test_the_most_rows_fit_and_one_more_does_not() -> None:
    plan = Plan(net=network(), steps=((load_of(batch_of("draw", 2)),), (load_of(batch_of("chat", 1)),)), size=2)
    way, limit = Way(world=2, sharded=False, recompute=True), 2**29
    most = plan.most_rows(way, limit)
    assert most > 2 and plan.rows == 2
    assert plan.usage(way, most).total <= limit < plan.usage(way, most + 1).total
    assert plan.most_rows(way, 2**20) == 0


def test_processes_share_what_is_sharded() -> None:
    plan = Plan(net=network(), steps=((load_of(batch_of("draw_open", 2)),),), size=2)
    one, many = (plan.usage(Way(world=world, sharded=True, recompute=True)) for world in (1, 8))
    assert many.optimiser == one.optimiser // 8 and many.activations == one.activations
    alike = [plan.usage(Way(world=world, sharded=False, recompute=True)) for world in (1, 8)]
    assert alike[0].optimiser == alike[1].optimiser and alike[0].exchange < alike[1].exchange


def test_parts_are_counted_by_what_trains() -> None:
    net = network()
    for name, p in net.named_parameters():
        p.requires_grad_(generating(name))
    found = {part.name: (part.trained, part.frozen) for part in parts_of(net)}
    assert found["gen"][1] == found["codes"][1] == 0 and found["und.joint"][0] == found["vision"][0] == 0
    assert sum(sum(counts) for counts in found.values()) == sum(p.numel() for p in net.parameters())
