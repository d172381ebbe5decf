"""The layout of Dream-7B on disk -> our network (Ye et al. 2025, arXiv 2508.15487).

Public idea: ``survey_dream(folder) -> Checkpoint`` from the safetensors headers. Dream is Qwen2.5-7B read in both directions: its tensor
names, grouped keys, biases of q, k and v, and logits that the position before a token predicts. LaViDa-Dream and Dimple have the same
language model, so ``read_trunk`` and ``trunk_names`` serve them too.
"""

from __future__ import annotations

from pathlib import Path

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import fit, read_json, refuse_unsupported
from unmask.checkpoints.stream import CheckpointError, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, VisionConfig
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
# Supported values; other values are an error. An absent field means the first value.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
}


def is_dream(raw: Json) -> bool:
    """Whether a config.json is of this family, and not of one with pictures, whose model_type is another."""
    return raw.get("model_type") == "Dream"


def read_trunk(raw: Json, vision: VisionConfig | None = None) -> ElasticConfig:
    """config.json -> ElasticConfig of the language model. CheckpointError for unsupported, missing and wrong fields."""
    refuse_unsupported(raw, _ONLY)
    try:
        heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
        return ElasticConfig(
            vocab_size=raw["vocab_size"],
            width=raw["hidden_size"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_width=raw.get("head_dim") or 0,
            layers=layers,
            mlp=raw["intermediate_size"],
            gen_width=0,
            gen_mlp=0,
            joint_layers=layers,
            rope_theta=float(raw["rope_theta"]),
            norm_eps=raw["rms_norm_eps"],
            codes=0,
            code_rows=0,
            vision=vision,
            qkv_bias=True,
            shifted=True,
        )
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}; is this a folder of Dream?") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: invalid value: {error}; copy or download it again") from error


def trunk_names(config: ElasticConfig) -> dict[str, str]:
    """Our parameter name -> that of the released files, for the language model."""
    out = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    out["text_head.weight"] = "lm_head.weight"
    for i in range(config.layers):
        out |= {f"blocks.{i}.{a}": f"model.layers.{i}.{b}" for a, b in _LAYER.items()}
    return out


def mask_id_of(raw: Json, config: ElasticConfig) -> int:
    """The id of a masked token. CheckpointError where it is no row of the vocabulary."""
    found = raw.get("mask_token_id", MASK_ID)
    if not isinstance(found, int) or not 0 <= found < config.vocab_size:
        raise CheckpointError(
            f"config.json: mask_token_id {found!r} is not in the vocabulary of {config.vocab_size} ids; copy or download it again"
        )
    return found


def survey_dream(folder: Path) -> Checkpoint:
    """Contents of a folder in Dream's layout; no weights are read. CheckpointError if something does not fit."""
    raw = read_json(folder / "config.json")
    config, found = read_trunk(raw), tensors_of(folder, "model")
    refuse_pictures(folder, raw, found)
    mapping = trunk_names(config)
    if raw.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)  # a copy of the embedding
        mapping["text_head.weight"] = mapping["embed.weight"]
    with unfilled():
        net = Elastic(config, mask_id=0)
    stored = fit(net, found, mapping, folder)
    return Checkpoint(
        place=folder, config=config, vq_config=VQConfig(), mask_id=mask_id_of(raw, config), net=stored, vq={}
    )


def refuse_pictures(folder: Path, raw: Json, found: object) -> None:
    """CheckpointError where a folder that calls itself a text model holds a vision tower: it is of another family."""
    seen = [name for name in found if name.startswith(("visual.", "model.vision_tower.", "img_projector."))]  # type: ignore[attr-defined]
    if seen:
        raise CheckpointError(
            f"{folder}: config.json says model_type {raw.get('model_type')!r}, a text model, and the weights hold {seen[0]}, of a vision "
            "tower; use the config.json that belongs to these weights"
        )
