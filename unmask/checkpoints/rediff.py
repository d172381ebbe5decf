"""The layout of LLaDA-V and ReDiff on disk -> our network without a generation branch (arXiv 2505.16933, 2510.19871).

Public ideas: ``is_rediff(raw)``, and ``survey_rediff(folder) -> Checkpoint`` from the safetensors headers. The language model is LLaDA-8B
under Llama's names, and the vision tower that of LaViDa, whose model_type this layout shares; views are not reduced.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints import dream
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import VisionFields
from unmask.checkpoints.lavida import is_lavida
from unmask.checkpoints.lavida_o import fit, plain, vision_names
from unmask.checkpoints.schema import Fields, TokenId, fields, read_json, refuse_layers
from unmask.checkpoints.stream import CheckpointError, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import VisionConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.views import AnyRes, Shrunk
from unmask.tokens.vq import VQConfig

MASK_ID = 126336
FORBIDDEN = (126081, 126080, 126346, 126347)  # of LLaDA's tokenizer: ends and starts of texts and headers
_PINPOINTS = "(1x1),...,(6x6)"
_RANGE = re.compile(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)")


class OwnFields(Fields):
    """The block ``unmask``: what the released layout does not say."""

    vision: VisionFields | None = None
    forbidden_ids: list[TokenId] = list(FORBIDDEN)


class RediffFields(Fields):
    """config.json, without the fields of the language model."""

    mm_projector_type: Literal["mlp2x_gelu"]
    mm_patch_merge_type: Literal["spatial_unpad"] = "spatial_unpad"
    image_aspect_ratio: Literal["anyres_max_4"] = "anyres_max_4"
    image_grid_pinpoints: str | list[list[int]] = _PINPOINTS
    tokenizer_model_max_length: Annotated[int, Field(ge=1, le=2**24)] = 8192
    unmask: OwnFields = OwnFields()


def is_rediff(raw: Json) -> bool:
    """Whether a config.json is of this family: LaViDa's model_type, with other classes and Llama's fields of the language model."""
    classes = raw.get("architectures")
    named = isinstance(classes, list) and "LlavaLLaDAModelLM" in classes
    return raw.get("model_type") == "llava_llada" and (named or "hidden_size" in raw) and not is_lavida(raw)


def read_rediff(folder: Path) -> tuple[Json, RediffFields]:
    """config.json whole and its fields. CheckpointError for a missing or wrong one."""
    path = folder / "config.json"
    raw = read_json(path)
    return raw, fields(RediffFields, raw, path)


def views_of(found: RediffFields) -> Shrunk:
    """How a picture is cut into views. CheckpointError for wrong pinpoints."""
    vision = _vision_of(found)
    try:
        pinpoints = _pinpoints(found.image_grid_pinpoints, vision.image)
        return Shrunk(views=AnyRes(size=vision.image, pooled=vision.pooled, pinpoints=pinpoints, squashed=True))
    except ValueError as error:
        raise CheckpointError(
            f"config.json: image_grid_pinpoints: {error}; wanted pairs of width and height, or such as {_PINPOINTS}"
        ) from error


def survey_rediff(folder: Path) -> Checkpoint:
    """Contents of a folder in this layout; no weights are read. CheckpointError if something does not fit."""
    raw, wanted = read_rediff(folder)
    vision = _vision_of(wanted)
    config, mask_id = dream.read_trunk({"mask_token_id": MASK_ID, **raw}, folder / "config.json", vision)
    config = replace(config, qkv_bias=False, shifted=False)
    stored = {plain(key): one for key, one in tensors_of(folder, "model").items()}
    trunk = {ours: plain(theirs) for ours, theirs in dream.trunk_names(config).items() if not ours.endswith(".bias")}
    refuse_layers("num_hidden_layers", config.layers, stored, "layers", folder / "config.json")
    with unfilled():
        net = Elastic(config, mask_id=0)
    found = fit(net, stored, trunk | vision_names(vision), folder)
    return Checkpoint(place=folder, config=config, vq_config=VQConfig(), mask_id=mask_id, net=found, vq={})


def _vision_of(found: RediffFields) -> VisionConfig:
    own = found.unmask.vision
    return replace(own.config(Path("config.json"), "unmask.vision") if own else VisionConfig(), reduction="none")


def _pinpoints(given: str | list[list[int]], side: int) -> tuple[tuple[int, int], ...]:
    """Pairs of width and height in pixels: as listed, or all from the first to the last pair of a range, in views."""
    if isinstance(given, str):
        match = _RANGE.fullmatch(given.replace(" ", ""))
        if match is None:
            raise ValueError(f"{given!r} is not a range")
        w1, h1, w2, h2 = map(int, match.groups())
        return tuple((w * side, h * side) for w in range(w1, w2 + 1) for h in range(h1, h2 + 1))
    return tuple((w, h) for w, h in given)
