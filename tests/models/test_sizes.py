"""Golden values of the specification's section 9: parameters of the released size, tokens of a view; what a config refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig
from unmask.tokens.vq import VQ, VQConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def released() -> Elastic:
    with torch.device("meta"):
        return Elastic(SIZES["lavida_o"], mask_id=126336)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def test_layers(released: Elastic) -> None:
    assert len(released.blocks) == 32
    for block in released.blocks:
        assert count(block.und) + count(block.out) == 218_112_000
        assert count(block.gen) == 75_501_568


def test_language_model(released: Elastic) -> None:
    und = [m for b in released.blocks for m in (b.und, b.out)]
    ends = (released.embed, released.norm, released.text_head)
    assert count(*und, *ends) == 8_023_068_672
    assert count(*(b.gen for b in released.blocks)) == 2_416_050_176
    assert count(released.blocks, *ends) == 10_439_118_848


def test_image_heads(released: Elastic) -> None:
    assert count(released.code_embedding, released.code_head) == 84_422_656


def test_vision(released: Elastic) -> None:
    vision = released.vision
    assert vision is not None
    assert len(vision.tower.layers) == 26
    assert count(vision.tower) == 397_747_744  # with the post norm, which is stored and never applied
    assert count(vision.tower.post_norm) == 2 * 1152
    assert count(vision.pool) == 5_309_568
    assert count(vision.project_in, vision.project_out) == 21_504_000
    assert vision.newline.shape == (4096,)


def test_whole(released: Elastic) -> None:
    parts = 10_439_118_848 + 84_422_656 + 397_747_744 + 5_309_568 + 21_504_000 + 4096
    assert count(released) == parts
    assert round((parts + 146_244_675) / 1e9, 2) == 11.09


def test_joint_layers(released: Elastic) -> None:
    """Layers 0 to 16 are joint in the released code, 17 of them, though the paper says 16."""
    assert [b.joint for b in released.blocks] == [True] * 17 + [False] * 15


def test_mask_code() -> None:
    assert SIZES["lavida_o"].mask_code == 8193


def test_image_tokenizer() -> None:
    with torch.device("meta"):
        vq = VQ(VQConfig())
    assert count(vq) == 146_244_675
    assert len(vq.state_dict()) == 277
    assert VQConfig().factor == 16
    assert vq.size == 8192


def test_image_tokenizer_names() -> None:
    """Diffusers' names (spec 7.3), with a shortcut exactly where the width changes."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in VQ(VQConfig()).state_dict().items()}
    shortcuts = {k.rsplit(".", 2)[0] for k in shapes if "shortcut" in k}
    assert shortcuts == {
        *(f"encoder.down_blocks.{i}.resnets.0" for i in (1, 3, 4)),
        *(f"decoder.up_blocks.{i}.resnets.0" for i in (1, 2, 4)),
    }
    assert shapes["quantize.embedding.weight"] == (8192, 64)
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (64, 768, 3, 3)
    assert shapes["decoder.conv_in.weight"] == (768, 64, 3, 3)
    assert shapes["decoder.up_blocks.4.resnets.2.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["encoder.down_blocks.3.downsamplers.0.conv.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up_blocks.3.upsamplers.0.conv.weight"] == (256, 256, 3, 3)
    assert "encoder.down_blocks.4.downsamplers.0.conv.weight" not in shapes
    assert "decoder.up_blocks.4.upsamplers.0.conv.weight" not in shapes


def test_tokens_of_a_view() -> None:
    """384 px and patches of 14: 27 x 27, pooled to 13 x 13 = 169 features; with a newline a row, 182 tokens."""
    view = VisionConfig()
    assert (view.side, view.pooled, view.pooled**2, view.tokens) == (27, 13, 169, 182)


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_tokens_are_what_the_vision_part_gives(name: str) -> None:
    config = SIZES[name]
    assert config.vision is not None
    with torch.device("meta"):
        model = Elastic(config, mask_id=0)
        assert model.vision is not None
        seen = model.vision(torch.zeros(2, 3, config.vision.image, config.vision.image))
    assert seen.shape == (2, config.vision.tokens, config.width)


def test_named_sizes_are_ordered() -> None:
    sizes = []
    for name in ("tiny", "mini", "lavida_o"):
        with torch.device("meta"):
            sizes.append(count(Elastic(SIZES[name], mask_id=0)))
    assert sizes == sorted(sizes)
    assert sizes[0] < 200_000 and 5_000_000 < sizes[1] < 10_000_000


def test_without_vision() -> None:
    config = dataclasses.replace(SIZES["tiny"], vision=None)
    assert Elastic(config, mask_id=0).vision is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("heads", 5, "width 32 must be an even multiple of heads 5"),
        ("heads", 32, "even multiple"),  # head width 1 cannot be rotated
        ("gen_width", 64, "gen_width 64 is larger than width 32"),
        ("code_rows", 65, "no row for the mask code 65"),
    ],
)
def test_a_config_that_cannot_be_built(field: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(SIZES["tiny"], **{field: value})


def test_config_is_frozen_and_its_defaults_are_the_release() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SIZES["tiny"].width = 3  # type: ignore[misc]
    assert SIZES["lavida_o"] == ElasticConfig()
    assert math.isclose(ElasticConfig().rope_theta, 5e5) and ElasticConfig().norm_eps == 1e-5
