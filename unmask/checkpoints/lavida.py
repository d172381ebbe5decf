"""The layout of LaViDa on disk -> our network without a generation branch (Li et al. 2025, arXiv 2505.16839).

Public idea: ``survey_lavida(folder) -> Checkpoint`` from the safetensors headers. The language model is LLaDA-8B or Dream-7B, with its own
names; the vision tower and projector are those of LaViDa-O, except that a view is reduced after the projector, without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints import dream, llada
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import VisionFields
from unmask.checkpoints.lavida_o import fit, names, plain, vision_names
from unmask.checkpoints.schema import Fields, Pixels, TokenId, fields, read_json, refuse_layers
from unmask.checkpoints.stream import CheckpointError, Stored, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.views import PINPOINTS, AnyRes
from unmask.tokens.vq import VQConfig

_LLADA, _DREAM = "llava_llada", "llava_dream"
_CLASSES = ("LlavaLladaForMaskedDiffusion", "LlavaDreamForMaskedDiffusion")


class OwnFields(Fields):
    """The block ``unmask``: what the released layout does not say."""

    vision: VisionFields | None = None
    infill_id: TokenId | None = None
    fill_id: TokenId | None = None


class LavidaFields(Fields):
    """config.json, without the fields of the language model."""

    mm_projector_type: Literal["mlp2x_gelu"]
    mm_resampler_type: None = None
    mm_patch_merge_type: Literal["spatial_unpad"] = "spatial_unpad"
    image_aspect_ratio: Literal["anyres"] = "anyres"
    mm_spatial_pool_mode: Literal["bilinear", "average", "max"] = "bilinear"
    mask_token_id: TokenId = 126336
    image_grid_pinpoints: Annotated[list[list[Pixels]], Field(min_length=1, max_length=64)] | None = None
    mm_vision_tower: str | None = None
    tokenizer_model_max_length: Annotated[int, Field(ge=1, le=2**24)] = 4096
    unmask: OwnFields = OwnFields()


def is_lavida(raw: Json) -> bool:
    """Whether a config.json is of this family. LLaDA-V shares a model_type, and has other classes and
    Llama's names of the language model.
    """
    classes = raw.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    if raw.get("model_type") not in (_LLADA, _DREAM):
        return False
    if named:
        return any(name in _CLASSES for name in named)
    return "mm_projector_type" in raw and (raw["model_type"] == _DREAM or "hidden_size" not in raw)


def is_on_dream(raw: Json) -> bool:
    """Whether the language model is Dream, not LLaDA."""
    return raw.get("model_type") == _DREAM


def read_lavida(folder: Path) -> tuple[Json, LavidaFields]:
    """config.json whole and its fields. CheckpointError for a missing or wrong one."""
    path = folder / "config.json"
    raw = read_json(path)
    return raw, fields(LavidaFields, raw, path)


def vision_of(found: LavidaFields) -> VisionConfig:
    """The vision tower with the reduction that config.json names."""
    own = found.unmask.vision
    sizes = own.config(Path("config.json"), "unmask.vision") if own else VisionConfig()
    return replace(sizes, reduction=found.mm_spatial_pool_mode)


def views_of(found: LavidaFields) -> AnyRes:
    """How a picture is cut into views: a single one squashed, tiles in the pinpoints of config.json. CheckpointError for wrong ones."""
    vision = vision_of(found)
    unit = AnyRes().size
    released = [[v * vision.image // unit for v in pair] for pair in PINPOINTS]
    try:
        pinpoints = tuple((w, h) for w, h in found.image_grid_pinpoints or released)
        return AnyRes(size=vision.image, pooled=vision.pooled, pinpoints=pinpoints, squashed=True)
    except ValueError as error:
        raise CheckpointError(
            f"config.json: image_grid_pinpoints: {error}; wanted pairs of width and height"
        ) from error


def survey_lavida(folder: Path) -> Checkpoint:
    """Contents of a folder in LaViDa's layout; no weights are read. CheckpointError if something does not fit."""
    raw, wanted = read_lavida(folder)
    stored = {plain(key): one for key, one in tensors_of(folder, "model").items()}
    on_dream = is_on_dream(raw)
    _refuse_other_trunk(folder, on_dream, stored)
    vision = vision_of(wanted)
    if on_dream:
        config, mask_id = dream.read_trunk(raw, folder / "config.json", vision)
        trunk = {ours: plain(theirs) for ours, theirs in dream.trunk_names(config).items()}
        mapping = trunk | vision_names(vision)
        refuse_layers("num_hidden_layers", config.layers, stored, "layers", folder / "config.json")
    else:
        config, mask_id = replace(llada.read_config(raw, folder / "config.json"), vision=vision), wanted.mask_token_id
        mapping = names(config)
        refuse_layers("n_layers", config.layers, stored, "transformer.blocks", folder / "config.json")
    return Checkpoint(
        place=folder,
        config=config,
        vq_config=VQConfig(),
        mask_id=mask_id,
        net=_fitted(config, stored, mapping, folder),
        vq={},
    )


def _fitted(
    config: ElasticConfig, stored: dict[str, Stored], mapping: dict[str, str], folder: Path
) -> dict[str, Stored]:
    with unfilled():
        net = Elastic(config, mask_id=0)
    return fit(net, stored, mapping, folder)


def _refuse_other_trunk(folder: Path, on_dream: bool, stored: Mapping[str, Stored]) -> None:
    """CheckpointError where the tensors are not those of the language model that config.json names, or of another family."""
    if "vision_resampler.pool.weight" in stored:
        raise CheckpointError(
            f"{folder}: config.json is that of LaViDa, and the weights hold vision_resampler.pool, as LaViDa-O has it; "
            "use the config.json that belongs to these weights"
        )
    has_dream = any(name.startswith("layers.") for name in stored)
    if stored and has_dream != on_dream:
        said, found = ("Dream", "LLaDA") if on_dream else ("LLaDA", "Dream")
        raise CheckpointError(
            f"{folder}: config.json is that of LaViDa on {said}, and the weights are those of {found}; "
            "use the config.json that belongs to these weights"
        )
