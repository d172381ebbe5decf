"""Our model folders <-> the released LaViDa-O layout, both ways; there and back is identical.

Public idea: ``to_released(source, out)`` and ``to_own(source, out)``. Tensors keep their type and every bit. Settings that the
released layout cannot express (wording, picture size, vision tower, how the tokenizer encodes) go into the block ``unmask`` of config.json
and vqvae/config.json; settings that ours cannot express go into the block ``released`` of our config.json. A folder is written completely
or not at all. The whole model is held in memory once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import OWN_BLOCK, names, survey_lavida_o
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import CheckpointError, save_tensors
from unmask.checkpoints.stream import Stored, read, read_header
from unmask.json_types import Json
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.pipeline.formats import format_of
from unmask.pipeline.loading import (
    RELEASED_BLOCK,
    SIDE,
    Format,
    fit_own,
    read_spec,
    resolve,
    vision_fields,
    write_config,
)
from unmask.tokens.text import EOS, Text
from unmask.tokens.vq import VQConfig
from unmask.writing import copy_file, whole_folder, write_text

_BESIDE = (
    "tokenizer*.json",
    "vocabulary.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
    "*.md",
)
_AS_RELEASED = {"wording": "released", "side": SIDE, "fold": 2}  # defaults of a released folder
_SMALL, _SMALL_SHARD, _SHARD = (
    2**28,
    15 * 2**20,
    5 * 2**30,
)  # bytes: small models are split into files that code hosts accept


@dataclass(frozen=True, kw_only=True)
class Content:
    """A model in either layout, without its weights. ``setting``: wording, side and fold · ``config``, ``vqvae``: its released JSON ·
    ``beside``: the folder whose small files (text tokenizer, licence, card) are copied.
    """

    checkpoint: Checkpoint
    setting: Json
    beside: Path
    config: Json
    vqvae: Json


def to_released(source: str | os.PathLike[str], out: Path, *, like: str | os.PathLike[str] | None = None) -> list[Path]:
    """One of our models (a name, a folder, or a run together with the model ``like`` that it trained) in the released layout.

    Returns the files written. CheckpointError if the source is not in our layout, ValueError if ``out`` exists.
    """
    content = _read_own(source, like)
    mapping = names(content.checkpoint.config)
    with whole_folder(out) as folder:
        weights = {f"model.{mapping[key]}": tensor for key, tensor in _read(content.checkpoint.net).items()}
        written = save_tensors(weights, folder, shard=_shard(weights, _SHARD))
        if len(written) > 1:
            _write_json(folder / "model.safetensors.index.json", _index(written, weights))
        save_tensors(_read(content.checkpoint.vq), folder / "vqvae", name="diffusion_pytorch_model", shard=_SHARD)
        config, vqvae = released_config(content)
        _write_json(folder / "config.json", config)
        _write_json(folder / "vqvae" / "config.json", vqvae)
        _copy(content.beside, folder)
    return sorted(p for p in out.rglob("*") if p.is_file())


def to_own(source: str | os.PathLike[str], out: Path) -> list[Path]:
    """A folder in the released layout as one of ours. Returns the files written.

    CheckpointError if the source is not in the released layout, ValueError if ``out`` exists.
    """
    content = _read_released(Path(source))
    checkpoint = content.checkpoint
    with whole_folder(out) as folder:
        for name, stored in (("model", checkpoint.net), ("vq", checkpoint.vq)):
            weights = _read(stored)
            save_tensors(weights, folder, name=name, shard=_shard(weights, _SMALL_SHARD))
        write_config(folder, checkpoint.config, _vq_config(checkpoint), **content.setting)
        # Kept only if it differs from what ``to_released`` would write.
        if (content.config, content.vqvae) != released_config(replace(content, config={}, vqvae={})):
            kept = {"config": content.config, "vqvae": content.vqvae, "mask_token_id": checkpoint.mask_id}
            _write_json(folder / "config.json", read_json(folder / "config.json") | {RELEASED_BLOCK: kept})
        write_sums(folder)
        _copy(content.beside, folder)
    return sorted(p for p in out.rglob("*") if p.is_file())


def _read_own(source: str | os.PathLike[str], like: str | os.PathLike[str] | None) -> Content:
    place = Path(source)
    if like is None and place.is_dir() and not (place / "config.json").exists():
        raise CheckpointError(f"{place} has no config.json; for a training run, name its model with --like")
    home = resolve(source if like is None else like)
    raw = read_json(home / "config.json")
    if (found_as := format_of(raw)) is not Format.OWN:
        text = found_as.is_text
        kind = "the layout of its family, the only one of text models" if text else "the released layout already"
        raise CheckpointError(f"{home} is in {kind}; give a model in our layout")
    found, kept = read_spec(home), raw.get(RELEASED_BLOCK, {})
    checkpoint = found.checkpoint
    if like is not None:
        checkpoint = replace(checkpoint, net=fit_own(checkpoint.modules()[0], place, "model"))
    setting = {name: raw[name] for name in ("wording", "side", "fold")}
    return Content(
        checkpoint=checkpoint, setting=setting, beside=home, config=found.released, vqvae=kept.get("vqvae", {})
    )


def _read_released(folder: Path) -> Content:
    raw = read_json(folder / "config.json")
    if (found_as := format_of(raw)) is not Format.RELEASED:
        text = found_as.is_text
        kind = "is a text model, which has only one layout" if text else "is not in the released layout"
        raise CheckpointError(f"{folder} {kind}; give a LaViDa-O folder")
    said = raw.get(OWN_BLOCK, {})
    setting = {name: said.get(name, value) for name, value in _AS_RELEASED.items()}
    vqvae = read_json(folder / "vqvae" / "config.json")
    return Content(checkpoint=survey_lavida_o(folder), setting=setting, beside=folder, config=raw, vqvae=vqvae)


def _read(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Weights as stored, by our names."""
    return {name: read(one) for name, one in stored.items()}


def released_config(content: Content) -> tuple[Json, Json]:
    """config.json and vqvae/config.json: as they came, or generated (spec 7.4), with the block ``unmask`` if it is not empty."""
    config, vq = content.checkpoint.config, _vq_config(content.checkpoint)
    made = content.config or _lm_fields(config, content)
    block = {} if content.setting == _AS_RELEASED else dict(content.setting)
    if config.vision and config.vision != VisionConfig():
        block["vision"] = vision_fields(config.vision)
    made = {k: v for k, v in made.items() if k != OWN_BLOCK} | ({OWN_BLOCK: block} if block else {})
    return made, content.vqvae or _vq_fields(vq)


def _vq_config(checkpoint: Checkpoint) -> VQConfig:
    if not isinstance(checkpoint.vq_config, VQConfig):
        raise CheckpointError(f"{checkpoint.place} has another image tokenizer than LaViDa-O; it has only one layout")
    return checkpoint.vq_config


def _lm_fields(config: ElasticConfig, content: Content) -> Json:
    tokens = content.beside / "tokenizer.json"
    end = {"eos_token_id": Text.load(tokens)[EOS], "pad_token_id": Text.load(tokens)[EOS]} if tokens.exists() else {}
    fields: Json = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": config.width,
        "n_heads": config.heads,
        "n_kv_heads": config.heads,
        "n_layers": config.layers,
        "mlp_hidden_size": config.mlp,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta * config.rope_factor,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "weight_tying": False,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "include_bias": False,
        "include_qkv_bias": False,
        "rope": True,
        "dual_tower": True,
        "d_model_gen": config.gen_width,
        "mlp_hidden_size_gen": config.gen_mlp,
        "dual_tower_layers": config.joint_layers - 1,
        "enc_use_image_branch": True,
        "downsample": True,
        "gen_mlp_type": "dit2",
        "mask_token_id": content.checkpoint.mask_id,
        **end,
        "mm_vqvae": "vqvae",
    }
    if config.vision:
        fields |= {
            "mm_vision_tower": "siglip",
            "mm_hidden_size": config.vision.width,
            "mm_resampler_type": "spatial_pool",
            "mm_spatial_pool_mode": "conv",
            "mm_spatial_pool_stride": 2,
            "mm_spatial_pool_out_channels": config.vision.width,
            "mm_projector_type": "mlp2x_gelu",
        }
    return fields


def _vq_fields(config: VQConfig) -> Json:
    """The diffusers description of the tokenizer."""
    stages = len(config.block_out_channels)
    own = {OWN_BLOCK: {"encode_apart": True}} if config.encode_apart else {}
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "norm_num_groups": config.norm_num_groups,
        "norm_type": "group",
        "num_vq_embeddings": config.num_vq_embeddings,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
        "vq_embed_dim": config.latent_channels,
        **own,
    }


def _shard(tensors: dict[str, Tensor], small: int) -> int:
    return small if sum(t.nbytes for t in tensors.values()) < _SMALL else _SHARD


def _index(written: list[Path], tensors: dict[str, Tensor]) -> Json:
    """The shard index that other loaders read."""
    places = {tensor.name: path.name for path in written for tensor in read_header(path)}
    return {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": dict(sorted(places.items())),
    }


def _copy(source: Path, out: Path) -> None:
    for pattern in _BESIDE:
        for file in sorted(source.glob(pattern)):
            copy_file(file, out / file.name)


def _write_json(path: Path, value: Json) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
