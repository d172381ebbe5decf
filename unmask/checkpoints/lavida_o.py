"""The released LaViDa-O layout on disk -> our network and tokenizer (spec 7.2 to 7.4).

Public idea: ``survey_lavida_o(folder) -> Checkpoint`` reads the safetensors headers, ``load_lavida_o(folder) -> (Elastic, VQ)`` all
weights, the network's in the files' dtype. Names are mapped one by one: a missing or misshapen tensor is an error that names it, an
unused one is a warning.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.loading import load_everything
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
    """CheckpointError if a field of config.json has none of its ``wanted`` values.

    ``absent``: the meaning of an absent field, if it is not the first of its values.
    """
    meant = absent or {}
    for field, values in wanted.items():
        if (found := raw.get(field, meant.get(field, values[0]))) not in values:
            raise CheckpointError(f"config.json: {field} {found!r} is not supported; wanted {values[0]!r}")


def trunk(raw: Json) -> Json:
    """The fields of ElasticConfig common to the model family, from config.json. KeyError for a missing field."""
    return {
        "vocab_size": raw.get("embedding_size") or raw["vocab_size"],
        "width": raw["d_model"],
        "heads": raw["n_heads"],
        "layers": raw["n_layers"],
        "mlp": raw["mlp_hidden_size"],
        "rope_theta": float(raw["rope_theta"]),
        "norm_eps": raw["rms_norm_eps"],
    }


def read_config(raw: Json, tensors: Mapping[str, Stored]) -> ElasticConfig:
    """config.json -> ElasticConfig, with the defaults of spec 7.4; the sizes of the code tables are those of ``tensors`` (plain names).

    CheckpointError for an unsupported configuration.
    """
    refuse_unsupported(raw, _ONLY, _ABSENT)
    try:
        if raw.get("n_kv_heads", raw["n_heads"]) != raw["n_heads"]:
            raise CheckpointError(
                f"config.json: n_kv_heads {raw['n_kv_heads']} is not supported; wanted {raw['n_heads']}"
            )
        gen_width, gen_mlp = (int(raw.get(field, -1)) for field in ("d_model_gen", "mlp_hidden_size_gen"))
        return ElasticConfig(
            **trunk(raw),
            gen_width=gen_width if gen_width > 0 else raw["d_model"],
            gen_mlp=gen_mlp if gen_mlp > 0 else raw["mlp_hidden_size"],
            joint_layers=min(raw["n_layers"], raw.get("dual_tower_layers", 9999) + 1),  # split iff index > the field
            codes=tensors["gen_predictor.2.weight"].shape[0],
            code_rows=tensors["gen_embedding.0.weight"].shape[0],
            vision=_vision(raw),
            **_registers(raw, tensors),
        )
    except KeyError as error:
        raise CheckpointError(f"a LaViDa-O checkpoint must have {error}; is this another model?") from error
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: invalid value: {error}; copy or download it again") from error


def _vision(raw: Json) -> VisionConfig | None:
    """The vision tower, if the model has one. The released file has no sizes; those of other models are in ``unmask.vision``."""
    own = raw.get(OWN_BLOCK, {}).get("vision")
    if not own and not raw.get("mm_vision_tower"):
        return None
    refuse_unsupported(raw, _VISION_ONLY)
    try:
        return VisionConfig(**(own or {}))
    except TypeError as error:
        raise CheckpointError(f"config.json: invalid unmask.vision: {error}; use the fields of VisionConfig") from error


def _registers(raw: Json, tensors: Mapping[str, Stored]) -> Json:
    """The register fields of ElasticConfig for a step-causal checkpoint (Sparse-LaViDa); none for a dense one.

    CheckpointError for what cannot be read: our names are our own, and a position embedding of the source codes was never seen.
    """
    if not raw.get("block_causal"):
        return {}
    missing = [name for name in _REGISTERS.values() if name not in tensors]
    if missing or raw.get("gen_enc_add_pos_emb"):
        why = f"it lacks {', '.join(missing)}" if missing else "gen_enc_add_pos_emb is true"
        raise CheckpointError(
            f"config.json says block_causal, as Sparse-LaViDa does, but {why}; the tensor names of the released checkpoints are not known, "
            "and unmask opens those that its own recipe sparse.finetune made"
        )
    text, code = (int(n) for n in str(raw.get("num_register_tokens", "64,64")).split(","))
    return {
        "text_registers": text,
        "code_registers": code,
        "register_rows": tensors[_REGISTERS["registers.text"]].shape[0],
    }


def survey_lavida_o(folder: Path) -> Checkpoint:
    """Contents of a folder in the released layout; no weights are read. CheckpointError if something does not fit.

    The image tokenizer's weights are taken from the model's shards if they are there, else from ``vqvae/`` (spec 8, 13).
    """
    raw = read_json(folder / "config.json")
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    vq_own = {key.removeprefix("vqvae."): found.pop(key) for key in list(found) if key.startswith("vqvae.")}
    config, vq_config = read_config(raw, found), _vq_config(read_json(folder / "vqvae" / "config.json"))
    vq_found = vq_own or tensors_of(folder / "vqvae", "diffusion_pytorch_model")
    with unfilled():
        net, vq = Elastic(config, mask_id=0), VQ(vq_config)
    return Checkpoint(
        place=folder,
        config=config,
        vq_config=vq_config,
        mask_id=raw.get("mask_token_id", 126336),
        net=fit(net, found, names(config), folder),
        vq=fit(vq, vq_found, {k: k for k in vq.state_dict()}, folder),
    )


def load_lavida_o(folder: Path) -> tuple[Elastic, VQ]:
    """Network and image tokenizer of a folder in the released layout, with all weights. CheckpointError if something does not fit."""
    return load_everything(survey_lavida_o(folder))


def plain(key: str) -> str:
    """A released name without its prefix, with the level ``vision_model`` of the tower added if it is missing."""
    key = key.removeprefix("model.")
    short = _TOWER.removesuffix(".vision_model")
    return key.replace(short, _TOWER, 1) if key.startswith(short) and not key.startswith(_TOWER) else key


def read_json(path: Path) -> Json:
    """A parsed JSON file. CheckpointError if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; is this a folder of weights?") from error


def _vq_config(raw: Json) -> VQConfig:
    if raw.get("mid_block_add_attention") or raw.get("act_fn", "silu") != "silu":
        raise CheckpointError(
            "vqvae/config.json: a tokenizer with attention or without SiLU is not supported; wanted that of LaViDa-O"
        )
    fields = ("layers_per_block", "latent_channels", "num_vq_embeddings", "norm_num_groups")
    missing = [f for f in (*fields, "block_out_channels") if f not in raw]
    if missing:
        raise CheckpointError(f"vqvae/config.json lacks {', '.join(missing)}; copy or download it again")
    apart = bool(raw.get(OWN_BLOCK, {}).get("encode_apart", False))
    channels = tuple(raw["block_out_channels"])
    return VQConfig(block_out_channels=channels, encode_apart=apart, **{f: raw[f] for f in fields})


def fit(module: nn.Module, found: dict[str, Stored], mapping: dict[str, str], folder: Path) -> dict[str, Stored]:
    """Our parameter -> where it is stored. ``mapping``: our names -> those of ``found``."""
    report = compare(module.state_dict(), found, mapping)
    report.refuse(folder, unexpected=False)
    if report.unexpected:
        names_ = ", ".join(report.unexpected[:8]) + (" …" if len(report.unexpected) > 8 else "")
        warnings.warn(f"{folder}: {len(report.unexpected)} unused tensors: {names_}", stacklevel=3)
    return {ours: found[theirs] for ours, theirs in mapping.items()}
