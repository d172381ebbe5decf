"""The layout of LLaDA2.0, LLaDA2.1 and LLaDA2.0-Uni on disk -> our network with routed experts (arXiv 2512.15745, 2602.08676, 2604.20796).

Public idea: ``survey_llada2(folder) -> Checkpoint`` from config.json and the safetensors headers. Queries, keys and values lie in one
matrix, one under the other. A model with ``image_token_offset`` has image codes as rows of its vocabulary (LLaDA2.0-Uni); its image
tokenizer and decoder are surveyed by ``llada2_uni``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unmask.checkpoints.eight_bit_floats import rows_of, with_scales
from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import elastic
from unmask.checkpoints.lavida_o import fit
from unmask.checkpoints.packed import EIGHT_BIT_FLOATS
from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Rows,
    Size,
    Theta,
    TokenId,
    Width,
    fields,
    invalid,
    read_json,
    refuse_layers,
    refuse_sizes,
)
from unmask.checkpoints.stream import CheckpointError, Stored, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, ExpertsConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.llada2 import make_text
from unmask.tokens.text import MASK, Text, TokenizerError
from unmask.tokens.tokenizer_file import read_tokenizer
from unmask.tokens.vq import VQConfig

_Experts = Annotated[int, Field(ge=1, le=2**14)]
_EDITING = re.compile(
    r"[<\[|_]*(delete|insert)[>\]|_]*", re.IGNORECASE
)  # the tokens of LLaDA2.2, however they are framed
_LAYER = {
    "out.weight": "attention.dense.weight",
    "und.attn_norm.weight": "input_layernorm.weight",
    "und.mlp_norm.weight": "post_attention_layernorm.weight",
    **{f"und.{a}.weight": f"attention.{a}.weight" for a in "qkv"},
}
_NORMS = {
    "und.q_norm.weight": "attention.query_layernorm.weight",
    "und.k_norm.weight": "attention.key_layernorm.weight",
}
_MATRICES = ("gate", "up", "down")


class _Rope(Fields):
    rope_type: Literal["default"] = "default"
    rope_theta: Theta | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None


class Llada2Fields(Fields):
    """config.json. Fields that the network depends on have no defaults: those of the released class differ from the released values."""

    vocab_size: Rows
    image_token_offset: TokenId | None = None
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width | None = None
    rms_norm_eps: Epsilon
    use_qk_norm: bool
    rope_theta: Theta | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    rotary_dim: Width | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    first_k_dense_replace: Annotated[int, Field(ge=0, le=1024)]
    num_experts: _Experts
    num_experts_per_tok: _Experts
    num_shared_experts: Annotated[int, Field(ge=0, le=64)]
    moe_intermediate_size: Width
    n_group: _Experts
    topk_group: _Experts
    routed_scaling_factor: Annotated[float, Field(gt=0, le=1000)]
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**24)] = 4096
    tie_word_embeddings: bool = False
    # Only the released values are supported.
    hidden_act: Literal["silu"] = "silu"
    use_qkv_bias: Literal[False] = False
    use_bias: Literal[False] = False
    use_rmsnorm: Literal[True] = True
    use_sliding_window: Literal[False] = False
    norm_head: Literal[False] = False
    norm_topk_prob: Literal[True] = True
    score_function: Literal["sigmoid"] = "sigmoid"
    router_dtype: Literal["fp32"] = "fp32"
    moe_router_enable_expert_bias: Literal[True] = True


def is_llada2(raw: Json) -> bool:
    """Whether a config.json is of this family, text models and LLaDA2.0-Uni alike."""
    return raw.get("model_type") == "llada2_moe"


def has_pictures(raw: Json) -> bool:
    """Whether a config.json of this family is that of LLaDA2.0-Uni, whose vocabulary has image codes."""
    return raw.get("image_token_offset") is not None


def read_config(raw: Json, path: Path) -> ElasticConfig:
    """config.json, read from ``path``. CheckpointError for unsupported, missing and wrong fields."""
    found = fields(Llada2Fields, raw, path)
    theta, share = _rope(found, path)
    offset = found.image_token_offset
    if offset is not None and not 0 < offset < found.vocab_size:
        raise invalid(path, f"image_token_offset {offset} is not a row of vocab_size {found.vocab_size}")
    width = found.head_dim or found.hidden_size // found.num_attention_heads
    values: Json = {
        "vocab_size": found.vocab_size,
        "width": found.hidden_size,
        "heads": found.num_attention_heads,
        "kv_heads": found.num_key_value_heads,
        "head_width": width,
        "layers": found.num_hidden_layers,
        "mlp": found.intermediate_size,
        "joint_layers": found.num_hidden_layers,
        "rope_theta": theta,
        "rope_width": found.rotary_dim or int(width * share),
        "norm_eps": found.rms_norm_eps,
        "qk_norm": found.use_qk_norm,
        "codes": 0 if offset is None else found.vocab_size - offset,
        "first_code": offset or 0,
        **{"gen_width": 0, "gen_mlp": 0, "code_rows": 0, "vision": None},
    }
    return elastic(path, values | {"experts": _experts(found, path)})


def _rope(found: Llada2Fields, path: Path) -> tuple[float, float]:
    """Base of the rotary positions and the share of a head's channels that turn; both may stand in two places."""
    out = []
    for name in ("rope_theta", "partial_rotary_factor"):
        given = [getattr(part, name) for part in (found, found.rope_parameters, found.rope_scaling) if part is not None]
        values = {value for value in given if value is not None}
        if name == "partial_rotary_factor" and not values and found.rotary_dim:
            values = {1.0}  # rotary_dim says it
        if len(values) != 1:
            what = f"has several values {sorted(values)}" if values else "is missing"
            raise invalid(path, f"{name} {what}, at the top and in rope_parameters; wanted one value")
        out.append(values.pop())
    return out[0], out[1]


def _experts(found: Llada2Fields, path: Path) -> ExpertsConfig:
    try:
        return ExpertsConfig(
            count=found.num_experts,
            chosen=found.num_experts_per_tok,
            width=found.moe_intermediate_size,
            shared=found.num_shared_experts,
            groups=found.n_group,
            groups_chosen=found.topk_group,
            scale=found.routed_scaling_factor,
            dense=found.first_k_dense_replace,
        )
    except ValueError as error:
        raise invalid(path, str(error)) from error


def trunk_names(config: ElasticConfig) -> dict[str, str]:
    """Our parameter name -> that of the released files, after ``split_heads``."""
    out = {"embed.weight": "model.word_embeddings.weight", "norm.weight": "model.norm.weight"}
    out["text_head.weight"] = "lm_head.weight"
    experts = config.experts
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        layer = _LAYER | (_NORMS if config.qk_norm else {})
        out |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in layer.items()}
        if experts is None or i < experts.dense:
            out |= {f"{ours}.und.mlp.{a}.weight": f"{theirs}.mlp.{a}_proj.weight" for a in _MATRICES}
            continue
        router = {"weight": "gate.weight", "bias": "gate.expert_bias"}
        out |= {f"{ours}.und.mlp.router.{a}": f"{theirs}.mlp.{b}" for a, b in router.items()}
        parts = {f"experts.{e}": f"experts.{e}" for e in range(experts.count)}
        parts |= {"shared": "shared_experts"} if experts.shared else {}
        for a, b in parts.items():
            out |= {f"{ours}.und.mlp.{a}.{m}.weight": f"{theirs}.mlp.{b}.{m}_proj.weight" for m in _MATRICES}
    return out


def split_heads(found: Mapping[str, Stored], config: ElasticConfig) -> dict[str, Stored]:
    """The tensors with each joint matrix of queries, keys and values as three, which are rows of it. CheckpointError for another shape."""
    sizes = {"q": config.query_width, "k": config.key_width, "v": config.key_width}
    out = dict[str, Stored]()
    for name, stored in found.items():
        prefix, joint, rest = name.partition("attention.query_key_value")
        if not joint or rest != ".weight":
            out[name] = stored
            continue
        scaled = bool(stored.pieces) and stored.pieces[0].dtype in EIGHT_BIT_FLOATS
        if (stored.bits and not scaled) or stored.shape != (sum(sizes.values()), config.width):
            raise CheckpointError(
                f"{stored.path}: {name} is {stored.label} {stored.shape}, wanted {(sum(sizes.values()), config.width)} in a float type; "
                "use the config.json that it was saved with"
            )
        each, first = stored.nbytes // stored.shape[0], 0
        for part, rows in sizes.items():
            if scaled:
                own = rows_of(stored, first, rows, f"{name}[{part}]")
            else:
                own = replace(stored, name=f"{name}[{part}]", shape=(rows, config.width), nbytes=rows * each)
                own = replace(own, start=stored.start + first * each)
            out[f"{prefix}attention.{part}.weight"] = own
            first += rows
    return out


def joined_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``split_heads`` for tensors by the names of ``Stored``: parts ``NAME[q]``, ``NAME[k]`` and ``NAME[v]`` as one NAME."""
    out = {name: tensor for name, tensor in weights.items() if not name.endswith("]")}
    for name in weights:
        if (whole := name.removesuffix("[q]")) != name:
            out[whole] = torch.cat([weights[f"{whole}[{part}]"] for part in "qkv"])
    return out


def survey_trunk(folder: Path) -> Checkpoint:
    """The network of a folder, without an image tokenizer; no weights are read. CheckpointError if something does not fit."""
    path = folder / "config.json"
    raw = read_json(path)
    config, found = read_config(raw, path), with_scales(tensors_of(folder, "model"))
    text = read_text(folder, pictures=has_pictures(raw))
    refuse_layers("num_hidden_layers", config.layers, found, "model.layers", path)
    experts = config.experts
    if experts and experts.dense < config.layers:
        prefix = f"model.layers.{experts.dense}.mlp.experts"
        refuse_layers("num_experts", experts.count, found, prefix, path)
        wide = Size(field="moe_intermediate_size", value=experts.width, tensor=f"{prefix}.0.gate_proj.weight", axis=0)
        refuse_sizes([wide], found, path)
    table = "model.word_embeddings.weight"
    sizes = [("vocab_size", config.vocab_size, 0), ("hidden_size", config.width, 1)]
    refuse_sizes([Size(field=f, value=v, tensor=table, axis=axis) for f, v, axis in sizes], found, path)
    mapping, found = trunk_names(config), split_heads(found, config)
    if raw.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)  # a copy of the embedding
        mapping["text_head.weight"] = mapping["embed.weight"]
    with unfilled():
        net = Elastic(config, mask_id=0)
    stored = fit(net, found, mapping, folder)
    return Checkpoint(place=folder, config=config, vq_config=VQConfig(), mask_id=text[MASK], net=stored, vq={})


def read_text(folder: Path, *, pictures: bool) -> Text:
    """The tokenizer. CheckpointError if it is missing, lacks a control token, or is that of LLaDA2.2."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"no tokenizer.json in {folder}; copy the one released with the weights")
    try:
        tokenizer = read_tokenizer(path)
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        if edits := sorted(name for name in added if _EDITING.fullmatch(name)):
            raise CheckpointError(
                f"{folder} is a checkpoint of LLaDA2.2: its tokenizer has {' and '.join(edits[:2])}, tokens that delete and insert while "
                "decoding; unmask runs LLaDA2.0, LLaDA2.1 and LLaDA2.0-Uni, whose samplers would decode it wrongly"
            )
        return make_text(tokenizer, pictures=pictures)
    except TokenizerError as error:
        raise CheckpointError(f"cannot read {path}: {error}; use the tokenizer.json of this model") from error


def survey_llada2(folder: Path) -> Checkpoint:
    """Contents of a text model's folder. CheckpointError if something does not fit."""
    return survey_trunk(folder)
