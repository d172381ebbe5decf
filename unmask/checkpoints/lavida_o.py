"""The released LaViDa-O layout on disk -> our network and tokenizer (spec 7.2 to 7.4).

Public idea: ``survey_lavida_o(folder) -> Checkpoint`` reads the safetensors headers, ``load_lavida_o(folder) -> (Elastic, VQ)`` all
weights, the network's in the files' dtype. Names are mapped one by one: a missing or misshapen tensor is an error that names it, an
unused one is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import Names, VisionFields, VQFields, elastic, refuse_unfit, refuse_unfit_vq
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Pixels,
    Rows,
    Theta,
    TokenId,
    Width,
    fields,
    invalid,
    read_fields,
    read_json,
    shown,
)
from unmask.checkpoints.store import compare
from unmask.checkpoints.stream import CheckpointError, Stored, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.vq import VQ, VQConfig

OWN_BLOCK = "unmask"  # in config.json and vqvae/config.json: fields that the released layout lacks
_UND = {
    "attn_norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "mlp_norm": "ff_norm",
    "mlp.gate": "ff_proj",
    "mlp.up": "up_proj",
    "mlp.down": "ff_out",
}
_CODES = {
    "code_embedding.table": "gen_embedding.0",
    "code_embedding.table_norm": "gen_embedding.1",
    "code_embedding.mix": "gen_embedding.2",
    "code_embedding.fold_norm": "downsample_gen.downsample.norm",
    "code_embedding.fold": "downsample_gen.downsample.conv",
    "code_embedding.out_norm": "gen_embedding_2.0",
    "code_embedding.out": "gen_embedding_2.1",
    "code_head.unfold_norm": "upsample_gen.upsample.norm",
    "code_head.unfold": "upsample_gen.upsample.conv",
    "code_head.in_norm": "gen_predictor_2.0",
    "code_head.inner": "gen_predictor_2.1",
    "code_head.mix": "gen_predictor.0",
    "code_head.mix_norm": "gen_predictor.1",
    "code_head.classify": "gen_predictor.2",
}
# Ours: the names in a release of Sparse-LaViDa are not known.
_REGISTERS = {"registers.text": "register_tokens.weight", "registers.code": "register_tokens_vision.weight"}
_TOWER = "vision_tower.vision_tower.vision_model"
_Pair = Annotated[list[Pixels], Field(min_length=2, max_length=2)]
_VISION_LAYER = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}

# Supported values; other values are an error. An absent field means the first value, or the value in _ABSENT.
TRUNK_ONLY: dict[str, tuple[object, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False, None),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (None, False),
    "rope": (True,),
    "rope_full_precision": (True,),
    "scale_logits": (False, None),
}
_ONLY: dict[str, tuple[object, ...]] = {
    "dual_tower": (True,),
    "downsample": (True,),
    "enc_use_image_branch": (True,),
    "gen_mlp_type": ("dit2",),
    "weight_tying": (False,),
    "unified_gen_enc": (False,),
    "extra_gen_dit": (False,),
}
_ABSENT = {"dual_tower": False, "downsample": False, "enc_use_image_branch": False, "gen_mlp_type": "embed"}
_VISION_ONLY: dict[str, tuple[object, ...]] = {
    "image_aspect_ratio": ("anyres",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_resampler_type": ("spatial_pool",),
    "mm_spatial_pool_mode": ("conv",),
    "mm_spatial_pool_stride": (2,),
    "mm_projector_type": ("mlp2x_gelu",),
}

_MASK_ID = 126336
_FIELDS = {
    "vocab_size": "embedding_size (or vocab_size)",
    "width": "d_model",
    "layers": "n_layers",
    "mlp": "mlp_hidden_size",
    "gen_width": "d_model_gen",
    "gen_mlp": "mlp_hidden_size_gen",
}


class TrunkFields(Fields):
    """The fields of config.json common to LLaDA and LaViDa-O."""

    d_model: Width
    n_heads: Heads
    n_layers: Layers
    mlp_hidden_size: Width
    vocab_size: Rows
    embedding_size: Rows | None = None
    n_kv_heads: Heads | None = None
    rope_theta: Theta
    rms_norm_eps: Epsilon
    mask_token_id: TokenId = _MASK_ID


class _OwnBlock(Fields):
    side: Pixels = 1024
    wording: Literal["compact", "released"] = "released"
    fold: Literal[2] = 2
    vision: VisionFields | None = None


class _LavidaO(TrunkFields):
    d_model_gen: Width | Literal[-1] = -1  # -1: as in the understanding branch
    mlp_hidden_size_gen: Width | Literal[-1] = -1
    dual_tower_layers: Annotated[int, Field(ge=0, le=9999)] = 9999
    mm_vision_tower: str | None = None
    image_grid_pinpoints: Annotated[list[_Pair], Field(min_length=1, max_length=64)] | None = None
    block_causal: bool | None = None
    gen_enc_add_pos_emb: bool | None = None
    num_register_tokens: Annotated[str, Field(pattern=r"^\d{1,4},\d{1,4}$")] = "64,64"
    unmask: _OwnBlock | None = None


class _VqvaeBlock(Fields):
    encode_apart: bool = False


class _Vqvae(VQFields):
    """vqvae/config.json. The network has no attention and SiLU, as that of the release."""

    act_fn: Literal["silu"] = "silu"
    mid_block_add_attention: Literal[False] | None = None
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    unmask: _VqvaeBlock | None = None


def names(config: ElasticConfig) -> dict[str, str]:
    """Our parameter name -> the released one, without its prefix ``model.``; for every parameter of ``Elastic(config)``.

    A text model (``gen_width`` 0) has the names of LLaDA, which are the same without those of the generation branch.
    """
    out = {
        "embed.weight": "transformer.wte.weight",
        "norm.weight": "transformer.ln_f.weight",
        "text_head.weight": "transformer.ff_out.weight",
    }
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"transformer.blocks.{i}"
        out[f"{ours}.out.weight"] = f"{theirs}.attn_out.weight"
        for a, b in _UND.items():
            out[f"{ours}.und.{a}.weight"] = f"{theirs}.{b}.weight"
            if config.gen_width:
                out[f"{ours}.gen.{a}.weight"] = f"{theirs}.{b}_vision.weight"
    if config.gen_width:
        out |= {f"{a}.weight": f"{b}.weight" for a, b in _CODES.items()}
    if config.text_registers or config.code_registers:
        out |= _REGISTERS
    return out | (vision_names(config.vision) if config.vision else {})


def vision_names(config: VisionConfig) -> dict[str, str]:
    pairs = {
        "vision.tower.patch": f"{_TOWER}.embeddings.patch_embedding",
        "vision.tower.post_norm": f"{_TOWER}.post_layernorm",
        **({"vision.pool": "vision_resampler.pool"} if config.reduction == "conv" else {}),
        "vision.project_in": "mm_projector.0",
        "vision.project_out": "mm_projector.2",
    }
    for i in range(config.layers):
        pairs |= {f"vision.tower.layers.{i}.{a}": f"{_TOWER}.encoder.layers.{i}.{b}" for a, b in _VISION_LAYER.items()}
    out = {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}
    position = f"{_TOWER}.embeddings.position_embedding.weight"
    return out | {"vision.tower.position.weight": position, "vision.newline": "image_newline"}


def refuse_unsupported(
    raw: Json, wanted: Mapping[str, tuple[object, ...]], absent: Mapping[str, object] | None = None
) -> None:
    """CheckpointError if a field of config.json has none of its ``wanted`` values; 0 is not false.

    ``absent``: the meaning of an absent field, if it is not the first of its values.
    """
    meant = absent or {}
    for field, values in wanted.items():
        found = raw.get(field, meant.get(field, values[0]))
        if not any(type(found) is type(value) and found == value for value in values):
            raise CheckpointError(f"config.json: {field} {shown(found)} is not supported; wanted {values[0]!r}")


def trunk(found: TrunkFields, path: Path) -> Json:
    """The fields of ElasticConfig common to the model family. CheckpointError for grouped queries, which no model of the family has."""
    if found.n_kv_heads not in (None, found.n_heads):
        raise CheckpointError(f"{path}: n_kv_heads {found.n_kv_heads} is not supported; wanted {found.n_heads}")
    return {
        "vocab_size": found.embedding_size or found.vocab_size,
        "width": found.d_model,
        "heads": found.n_heads,
        "layers": found.n_layers,
        "mlp": found.mlp_hidden_size,
        "rope_theta": found.rope_theta,
        "norm_eps": found.rms_norm_eps,
    }


def read_config(raw: Json, tensors: Mapping[str, Stored], path: Path) -> ElasticConfig:
    """config.json -> ElasticConfig, with the defaults of spec 7.4; the sizes of the code tables are those of ``tensors`` (plain names).

    CheckpointError for an unsupported configuration.
    """
    refuse_unsupported(raw, TRUNK_ONLY | _ONLY, _ABSENT)
    found = fields(_LavidaO, raw, path)
    classify, table = (_table(tensors, name, path) for name in ("gen_predictor.2.weight", "gen_embedding.0.weight"))
    config = elastic(
        path,
        trunk(found, path)
        | {
            "gen_width": found.d_model if found.d_model_gen == -1 else found.d_model_gen,
            "gen_mlp": found.mlp_hidden_size if found.mlp_hidden_size_gen == -1 else found.mlp_hidden_size_gen,
            "joint_layers": min(found.n_layers, found.dual_tower_layers + 1),  # split iff index > the field
            "codes": classify,
            "code_rows": table,
            "vision": _vision(raw, found, path),
        }
        | _registers(found, tensors, path),
    )
    tower = f"{_TOWER}.encoder.layers" if found.unmask and found.unmask.vision else ""
    refuse_unfit(config, tensors, released_names(config, tower), path)
    return config


def released_names(config: ElasticConfig, tower: str = "") -> Names:
    """What the layout calls the tensors and fields that tell sizes."""
    vision = replace(config.vision, layers=1) if config.vision else None
    first = names(replace(config, layers=1, joint_layers=1, vision=vision))  # however many layers config.json says
    return Names(
        blocks="transformer.blocks", tower=tower, tensor=first.__getitem__, fields=_FIELDS, vision="unmask.vision"
    )


def mask_row(raw: Json, config: ElasticConfig, path: Path) -> int:
    """``mask_token_id`` of a checked config.json. CheckpointError where the vocabulary has no such row."""
    row = raw.get("mask_token_id", _MASK_ID)
    if "mask_token_id" in raw and row >= config.vocab_size:
        raise invalid(path, f"mask_token_id {row} is not a row of the vocabulary of {config.vocab_size}")
    return row


def _table(tensors: Mapping[str, Stored], name: str, path: Path) -> int:
    """Rows of a table. CheckpointError where the files lack it."""
    if (stored := tensors.get(name)) is None or len(stored.shape) != 2:
        raise CheckpointError(
            f"{path.parent}: a LaViDa-O checkpoint must have the matrix {name!r}; is this another model?"
        )
    return stored.shape[0]


def _vision(raw: Json, found: _LavidaO, path: Path) -> VisionConfig | None:
    """The vision tower, if the model has one. The released file has no sizes; those of other models are in ``unmask.vision``."""
    own = found.unmask.vision if found.unmask else None
    if not own and not found.mm_vision_tower:
        return None
    refuse_unsupported(raw, _VISION_ONLY)
    return own.config(path, "unmask.vision") if own else VisionConfig()


def _registers(found: _LavidaO, tensors: Mapping[str, Stored], path: Path) -> Json:
    """The register fields of ElasticConfig for a step-causal checkpoint (Sparse-LaViDa); none for a dense one.

    CheckpointError for what cannot be read: our names are our own, and a position embedding of the source codes was never seen.
    """
    if not found.block_causal:
        return {}
    missing = [name for name in _REGISTERS.values() if name not in tensors]
    if missing or found.gen_enc_add_pos_emb:
        why = f"it lacks {', '.join(missing)}" if missing else "gen_enc_add_pos_emb is true"
        raise CheckpointError(
            f"config.json says block_causal, as Sparse-LaViDa does, but {why}; the tensor names of the released checkpoints are not known, "
            "and unmask opens those that its own recipe sparse.finetune made"
        )
    text, code = (int(n) for n in found.num_register_tokens.split(","))
    return {
        "text_registers": text,
        "code_registers": code,
        "register_rows": _table(tensors, _REGISTERS["registers.text"], path),
    }


def survey_lavida_o(folder: Path) -> Checkpoint:
    """Contents of a folder in the released layout; no weights are read. CheckpointError if something does not fit.

    The image tokenizer's weights are taken from the model's shards if they are there, else from ``vqvae/`` (spec 8, 13).
    """
    path, vq_path = folder / "config.json", folder / "vqvae" / "config.json"
    raw = read_json(path)
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    vq_own = {key.removeprefix("vqvae."): found.pop(key) for key in list(found) if key.startswith("vqvae.")}
    config, vq_config = read_config(raw, found, path), read_vq_config(vq_path)
    vq_found = vq_own or tensors_of(folder / "vqvae", "diffusion_pytorch_model")
    refuse_unfit_vq(vq_config, vq_found, vq_path)
    mask_id = mask_row(raw, config, path)
    if config.codes != vq_config.num_vq_embeddings:
        raise invalid(
            vq_path,
            f"num_vq_embeddings {vq_config.num_vq_embeddings} is not the {config.codes} codes that the model predicts",
        )
    with unfilled():
        net, vq = Elastic(config, mask_id=0), VQ(vq_config)
    return Checkpoint(
        place=folder,
        config=config,
        vq_config=vq_config,
        mask_id=mask_id,
        net=fit(net, found, names(config), folder),
        vq=fit(vq, vq_found, {k: k for k in vq.state_dict()}, folder),
    )


def load_lavida_o(folder: Path) -> tuple[Elastic, VQ]:
    """Network and image tokenizer of a folder in the released layout, with all weights. CheckpointError if something does not fit."""
    net, vq = load_everything(survey_lavida_o(folder))
    assert isinstance(vq, VQ)
    return net, vq


def plain(key: str) -> str:
    """A released name without its prefix, with the level ``vision_model`` of the tower added if it is missing."""
    key = key.removeprefix("model.")
    short = _TOWER.removesuffix(".vision_model")
    return key.replace(short, _TOWER, 1) if key.startswith(short) and not key.startswith(_TOWER) else key


def read_vq_config(path: Path) -> VQConfig:
    """vqvae/config.json -> VQConfig. CheckpointError for another tokenizer and missing fields."""
    found = read_fields(path, _Vqvae)
    own = found.unmask
    return found.config(path, encode_apart=bool(own and own.encode_apart))


def fit(module: nn.Module, found: dict[str, Stored], mapping: dict[str, str], folder: Path) -> dict[str, Stored]:
    """Our parameter -> where it is stored. ``mapping``: our names -> those of ``found``."""
    report = compare(module.state_dict(), found, mapping)
    report.refuse(folder, unexpected=False)
    if report.unexpected:
        names_ = ", ".join(report.unexpected[:8]) + (" …" if len(report.unexpected) > 8 else "")
        warnings.warn(f"{folder}: {len(report.unexpected)} unused tensors: {names_}", stacklevel=3)
    return {ours: found[theirs] for ours, theirs in mapping.items()}
