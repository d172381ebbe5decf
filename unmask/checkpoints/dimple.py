"""The layout of Dimple-7B on disk -> our network (Yu et al. 2025, arXiv 2505.16990).

Public idea: ``survey_dimple(folder) -> Checkpoint`` from the safetensors headers. The language model is Dream with positions in three
axes; the vision tower is that of Qwen2.5-VL with a projector of two layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints.dream import read_trunk, trunk_names
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import fit
from unmask.checkpoints.schema import (
    Fields,
    Heads,
    Layers,
    Pixels,
    TokenId,
    Width,
    fields,
    read_fields,
    read_json,
    refuse_layers,
)
from unmask.checkpoints.stream import CheckpointError, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import QwenVisionConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.vq import VQConfig
from unmask.tokens.whole_blocks import WholeBlocks

PREPROCESSOR = "preprocessor_config.json"
_Small = Annotated[int, Field(ge=1, le=64)]
_Area = Annotated[int, Field(ge=1, le=2**28)]
_Share = Annotated[float, Field(ge=0, le=1)]
_LAYER = {
    "norm1.weight": "norm1.weight",
    "norm2.weight": "norm2.weight",
    **{
        f"{a}.{kind}": f"{b}.{kind}"
        for a, b in (("qkv", "attn.qkv"), ("out", "attn.proj"))
        for kind in ("weight", "bias")
    },
    **{f"{a}.{kind}": f"mlp.{a}_proj.{kind}" for a in ("gate", "up", "down") for kind in ("weight", "bias")},
}


class TowerFields(Fields):
    """``vision_config`` of config.json."""

    depth: Layers
    hidden_size: Width
    intermediate_size: Width
    num_heads: Heads
    patch_size: Pixels
    spatial_merge_size: _Small
    temporal_patch_size: _Small
    window_size: Pixels
    out_hidden_size: Width
    fullatt_block_indexes: list[Annotated[int, Field(ge=0, le=1024)]]
    in_channels: Literal[3] = 3
    hidden_act: Literal["silu"] = "silu"


class DimpleFields(Fields):
    """config.json, without the fields of the language model."""

    vision_config: TowerFields
    mrope_section: Annotated[list[Width], Field(min_length=1)]
    image_token_id: TokenId = 151655
    full_attn_mask: Literal[True] = True


class PictureFields(Fields):
    """preprocessor_config.json, with the defaults of its class."""

    patch_size: Pixels = 14
    merge_size: _Small = 2
    temporal_patch_size: _Small = 2
    min_pixels: _Area = 56**2
    max_pixels: _Area = 28**2 * 1280
    image_mean: list[_Share] = [0.48145466, 0.4578275, 0.40821073]
    image_std: list[_Share] = [0.26862954, 0.26130258, 0.27577711]
    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    resample: Literal[3] = 3


def is_dimple(raw: Json) -> bool:
    """Whether a config.json is of this family."""
    return raw.get("model_type") == "dimple"


def read_pictures(folder: Path) -> PictureFields:
    """How pictures are resized. CheckpointError for a wrong file; the defaults of its class where there is none."""
    path = folder / PREPROCESSOR
    found = read_fields(path, PictureFields) if path.exists() else PictureFields()
    if len(found.image_mean) != 3 or len(found.image_std) != 3 or min(found.image_std) == 0:
        raise CheckpointError(
            f"{path}: image_mean and image_std must have three numbers, the second above 0; download it again"
        )
    if found.min_pixels > found.max_pixels:
        raise CheckpointError(
            f"{path}: min_pixels {found.min_pixels} is above max_pixels {found.max_pixels}; download it again"
        )
    return found


def blocks_of(found: PictureFields) -> WholeBlocks:
    """How pictures are resized, as a value."""
    return WholeBlocks(block=found.patch_size * found.merge_size, least=found.min_pixels, most=found.max_pixels)


def read_dimple(raw: Json, folder: Path) -> DimpleFields:
    """The fields of config.json. CheckpointError for a missing or wrong one."""
    return fields(DimpleFields, raw, folder / "config.json")


def tower_of(found: TowerFields, pictures: PictureFields, folder: Path) -> QwenVisionConfig:
    """The vision tower. CheckpointError where config.json and preprocessor_config.json do not fit each other."""
    sizes = (found.patch_size, found.spatial_merge_size, found.temporal_patch_size)
    if sizes != (pictures.patch_size, pictures.merge_size, pictures.temporal_patch_size):
        raise CheckpointError(
            f"{folder}: patch, merge and temporal size are {sizes} in config.json and "
            f"{(pictures.patch_size, pictures.merge_size, pictures.temporal_patch_size)} in {PREPROCESSOR}; use files of one model"
        )
    r, g, b = pictures.image_mean
    u, v, w = pictures.image_std
    try:
        return QwenVisionConfig(
            width=found.hidden_size,
            layers=found.depth,
            heads=found.num_heads,
            mlp=found.intermediate_size,
            patch=found.patch_size,
            temporal=found.temporal_patch_size,
            merge=found.spatial_merge_size,
            window=found.window_size,
            full=tuple(found.fullatt_block_indexes),
            out=found.out_hidden_size,
            mean=(r, g, b),
            std=(u, v, w),
        )
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: vision_config: {error}; download it again") from error


def vision_names(config: QwenVisionConfig) -> dict[str, str]:
    """Our parameter name -> that of the released files, for the tower and the projector."""
    out = {
        "vision.tower.patch": "visual.patch_embed.proj.weight",
        "vision.tower.norm.weight": "visual.merger.ln_q.weight",
    }
    pairs = {
        "vision.tower.merge_in": "visual.merger.mlp.0",
        "vision.tower.merge_out": "visual.merger.mlp.2",
        "vision.project_in": "img_projector.linear_1",
        "vision.project_out": "img_projector.linear_2",
    }
    out |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs.items() for kind in ("weight", "bias")}
    for i in range(config.layers):
        out |= {f"vision.tower.layers.{i}.{a}": f"visual.blocks.{i}.{b}" for a, b in _LAYER.items()}
    return out


def survey_dimple(folder: Path) -> Checkpoint:
    """Contents of a folder in Dimple's layout; no weights are read. CheckpointError if something does not fit."""
    path = folder / "config.json"
    raw = read_json(path)
    found, stored = read_dimple(raw, folder), tensors_of(folder, "model")
    tower = tower_of(found.vision_config, read_pictures(folder), folder)
    config, mask_id = read_trunk(raw, path, tower=tower, rope_sections=tuple(found.mrope_section))
    refuse_layers("num_hidden_layers", config.layers, stored, "model.layers", path)
    refuse_layers("vision_config.depth", tower.layers, stored, "visual.blocks", path)
    with unfilled():
        net = Elastic(config, mask_id=0)
    net_stored = fit(net, stored, trunk_names(config) | vision_names(tower), folder)
    return Checkpoint(place=folder, config=config, vq_config=VQConfig(), mask_id=mask_id, net=net_stored, vq={})
