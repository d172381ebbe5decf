"""A generation branch made of the understanding branch, and networks without the parts that a stage does not use."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unmask.checkpoints.growing import grow, pruned
from unmask.checkpoints.loading import load_everything
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.pipeline.loading import read_spec
from unmask.rng import generator

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_model

DRAW = frozenset({"und.joint", "gen"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


def test_the_generation_branch_begins_as_a_truncated_copy(tiny: Path) -> None:
    checkpoint = read_spec(tiny).checkpoint
    net, vq = load_everything(checkpoint)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    grow(net, checkpoint, vq.quantize.embedding.weight, generator("a"))
    g, m = net.config.gen_width, net.config.gen_mlp
    for block in net.blocks:
        und, gen = block.und, block.gen
        for a, b in ((und.attn_norm, gen.attn_norm), (und.mlp_norm, gen.mlp_norm)):
            assert torch.equal(b.weight, a.weight[:g])
        for name in ("q", "k", "v"):
            assert torch.equal(getattr(gen, name).weight, getattr(und, name).weight[:, :g])
        assert torch.equal(gen.mlp.gate.weight, und.mlp.gate.weight[:m, :g])
        assert torch.equal(gen.mlp.up.weight, und.mlp.up.weight[:m, :g])
        assert torch.equal(gen.mlp.down.weight, und.mlp.down.weight[:g, :m])
    changed = {name for name, p in net.state_dict().items() if not torch.equal(p, before[name])}
    assert all(".gen." in name or name.startswith("code_") for name in changed)
    assert not torch.equal(net.code_head.classify.weight, before["code_head.classify.weight"])


def test_it_is_a_function_of_its_key(tiny: Path) -> None:
    checkpoint = read_spec(tiny).checkpoint
    made = []
    for key in ("a", "a", "b"):
        net, vq = load_everything(checkpoint)
        grow(net, checkpoint, vq.quantize.embedding.weight, generator(key))
        made.append(net.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["code_head.mix.weight"], made[2]["code_head.mix.weight"])


def test_a_wider_generation_branch_is_random_where_nothing_can_be_copied(tiny: Path) -> None:
    """As ``mini`` has it: an MLP that is wider than that of the understanding branch."""
    checkpoint = read_spec(tiny).checkpoint
    _, vq = load_everything(checkpoint)
    wide = replace(checkpoint.config, gen_mlp=64)
    net = Elastic(wide, mask_id=0)
    grow(net, checkpoint, vq.quantize.embedding.weight, generator("a"))
    und, _ = load_everything(checkpoint)
    gate, inner = net.blocks[0].gen.mlp.gate.weight, wide.mlp
    assert torch.equal(gate[:inner], und.blocks[0].und.mlp.gate.weight[:, : wide.gen_width])
    assert gate[inner:].std() > 0.1 and bool(gate.isfinite().all())


def test_pruning_leaves_what_a_picture_needs() -> None:
    """Spec 1.10, less what the last joint layer does not use; 2.5 B belong to the generation branch and the code path."""
    with torch.device("meta"):
        net = pruned(Elastic(SIZES["lavida_o"], mask_id=0), DRAW)
    count = {name: p.numel() for name, p in net.named_parameters()}
    generating = sum(n for name, n in count.items() if ".gen." in name or name.startswith("code_"))
    assert generating == 2_416_050_176 + 84_422_656
    assert sum(count.values()) == 6_696_562_688
    assert not any(name.startswith(("vision", "text_head", "blocks.17.und")) for name in count)
    assert count["blocks.31.out.weight"] == 2048 * 4096 and count["blocks.0.out.weight"] == 4096 * 4096
    assert net.state_dict().keys() == count.keys()
