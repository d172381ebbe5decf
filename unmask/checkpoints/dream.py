"""The layout of Dream-7B on disk -> our network (Ye et al. 2025, arXiv 2508.15487).

Public idea: ``survey_dream(folder) -> Checkpoint`` from the safetensors headers. Dream is Qwen2.5-7B read in both directions: its tensor
names, grouped keys, biases of q, k and v, and logits that the position before a token predicts. LaViDa-Dream and Dimple have the same
language model, so ``read_trunk`` and ``trunk_names`` serve them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import fit
from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Rows,
    Theta,
    TokenId,
    Width,
    fields,
    read_json,
    refuse_layers,
)
from unmask.checkpoints.stream import CheckpointError, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, QwenVisionConfig, VisionConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.vq import VQConfig

MASK_ID = 151666
_LAYER = {
    "out.weight": "self_attn.o_proj.weight",
    "und.attn_norm.weight": "input_layernorm.weight",
    "und.mlp_norm.weight": "post_attention_layernorm.weight",
    **{f"und.{a}.{kind}": f"self_attn.{a}_proj.{kind}" for a in "qkv" for kind in ("weight", "bias")},
    **{f"und.mlp.{a}.weight": f"mlp.{a}_proj.weight" for a in ("gate", "up", "down")},
}


class DreamFields(Fields):
    """config.json of Dream, and the language model's part of that of LaViDa-Dream and Dimple."""

    vocab_size: Rows
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    rms_norm_eps: Epsilon
    rope_theta: Theta
    mask_token_id: TokenId = MASK_ID
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**24)] = 4096
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False
    rope_scaling: None = None
    use_sliding_window: Literal[False] | None = None


def is_dream(raw: Json) -> bool:
    """Whether a config.json is of this family, and not of one with pictures, whose model_type is another."""
    return raw.get("model_type") == "Dream"


def read_trunk(
    raw: Json,
    path: Path,
    vision: VisionConfig | None = None,
    *,
    tower: QwenVisionConfig | None = None,
    rope_sections: tuple[int, ...] = (),
) -> tuple[ElasticConfig, int]:
    """config.json, read from ``path`` -> the language model's ElasticConfig and the id of a masked token.

    CheckpointError for unsupported, missing and wrong fields.
    """
    found = fields(DreamFields, raw, path)
    if found.mask_token_id >= found.vocab_size:
        raise CheckpointError(
            f"{path}: mask_token_id {found.mask_token_id} is not in the vocabulary of {found.vocab_size} ids; "
            "copy or download it again"
        )
    try:
        config = ElasticConfig(
            vocab_size=found.vocab_size,
            width=found.hidden_size,
            heads=found.num_attention_heads,
            kv_heads=found.num_key_value_heads or found.num_attention_heads,
            head_width=found.head_dim or 0,
            layers=found.num_hidden_layers,
            mlp=found.intermediate_size,
            gen_width=0,
            gen_mlp=0,
            joint_layers=found.num_hidden_layers,
            rope_theta=found.rope_theta,
            norm_eps=found.rms_norm_eps,
            codes=0,
            code_rows=0,
            vision=vision,
            qkv_bias=True,
            shifted=True,
            tower=tower,
            rope_sections=rope_sections,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: invalid value: {error}; copy or download it again") from error
    return config, found.mask_token_id


def trunk_names(config: ElasticConfig) -> dict[str, str]:
    """Our parameter name -> that of the released files, for the language model."""
    out = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    out["text_head.weight"] = "lm_head.weight"
    for i in range(config.layers):
        out |= {f"blocks.{i}.{a}": f"model.layers.{i}.{b}" for a, b in _LAYER.items()}
    return out


def survey_dream(folder: Path) -> Checkpoint:
    """Contents of a folder in Dream's layout; no weights are read. CheckpointError if something does not fit."""
    raw = read_json(folder / "config.json")
    (config, mask_id), found = read_trunk(raw, folder / "config.json"), tensors_of(folder, "model")
    refuse_pictures(folder, raw, found)
    refuse_layers("num_hidden_layers", config.layers, found, "model.layers", folder / "config.json")
    mapping = trunk_names(config)
    if raw.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)  # a copy of the embedding
        mapping["text_head.weight"] = mapping["embed.weight"]
    with unfilled():
        net = Elastic(config, mask_id=0)
    stored = fit(net, found, mapping, folder)
    return Checkpoint(place=folder, config=config, vq_config=VQConfig(), mask_id=mask_id, net=stored, vq={})


def refuse_pictures(folder: Path, raw: Json, found: Iterable[str]) -> None:
    """CheckpointError where a folder that calls itself a text model holds a vision tower: it is of another family."""
    seen = [name for name in found if name.startswith(("visual.", "model.vision_tower.", "img_projector."))]
    if seen:
        raise CheckpointError(
            f"{folder}: config.json says model_type {raw.get('model_type')!r}, a text model, and the weights hold {seen[0]}, of a vision "
            "tower; use the config.json that belongs to these weights"
        )
