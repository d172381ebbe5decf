"""Values that altered_folders.py gives to every field of a configuration, and those that leave a valid one."""

from __future__ import annotations

import math
from typing import Any

DELETED = object()
VALUES: tuple[tuple[str, Any], ...] = (
    ("deleted", DELETED),
    ("null", None),
    ("true", True),
    ("false", False),
    ("text", "8"),
    ("empty text", ""),
    ("long text", "x" * 10_000),
    ("list", [1]),
    ("empty list", []),
    ("object", {"a": 1}),
    ("zero", 0),
    ("minus one", -1),
    ("1.5", 1.5),
    ("10^9", 10**9),
    ("2^63", 2**63),
    ("10^400", 10**400),
    ("1e308", 1e308),
    ("-1e308", -1e308),
    ("tiny", 5e-324),
    ("NaN", math.nan),
    ("inf", math.inf),
    ("-inf", -math.inf),
    ("half a surrogate", "\ud800"),
    ("zero byte", "a\0b"),
)
# Fields of released files that describe, or that other programs read. A wrong value changes nothing here.
NOT_READ = {
    "model_type", "_class_name", "_diffusers_version", "architectures", "transformers_version", "torch_dtype", "mm_vqvae", "mm_hidden_size",
    "mm_spatial_pool_out_channels", "down_block_types", "up_block_types", "eos_token_id", "pad_token_id",
    "force_upcast", "sample_size",
    "scaling_factor", "lookup_from_codebook", "norm_type", "vq_embed_dim", "total_size", "metadata", "id", "single_word", "lstrip",
    "rstrip",
    "normalized", "special", "version", "trim_offsets", "fuse_unk", "byte_fallback", "ignore_merges", "unk_token",
    "continuing_subword_prefix", "end_of_word_suffix", "post_processor", "truncation", "padding", "dropout", "cls", "sep",
}  # fmt: skip
# (last part of the place, alteration) that leave a valid configuration: an optional field, or its default.
VALID = {
    ("n_kv_heads", "deleted"), ("n_kv_heads", "null"), ("embedding_size", "deleted"), ("embedding_size", "null"),
    ("mask_token_id", "deleted"), ("weight_tying", "deleted"), ("weight_tying", "null"), ("dual_tower_layers", "deleted"),
    ("mm_vision_tower", "deleted"), ("mm_vision_tower", "null"), ("d_model_gen", "deleted"), ("d_model_gen", "minus one"),
    ("mlp_hidden_size_gen", "deleted"), ("mlp_hidden_size_gen", "minus one"), ("max_sequence_length", "deleted"),
    ("tie_word_embeddings", "deleted"), ("tie_word_embeddings", "null"), ("tie_word_embeddings", "true"),
    ("mm_vision_tower", "text"), ("mm_vision_tower", "empty text"), ("mm_vision_tower", "long text"),
    ("mm_vision_tower", "half a surrogate"), ("mm_vision_tower", "zero byte"), ("act_fn", "deleted"),
    ("mid_block_add_attention", "deleted"), ("mid_block_add_attention", "null"), ("in_channels", "deleted"), ("out_channels", "deleted"),
    ("encode_apart", "deleted"), ("layer_norm_type", "deleted"), ("activation_type", "deleted"), ("block_type", "deleted"),
    ("include_bias", "deleted"), ("include_bias", "null"), ("include_qkv_bias", "deleted"), ("include_qkv_bias", "null"),
    ("rope", "deleted"), ("mm_resampler_type", "deleted"), ("mm_spatial_pool_mode", "deleted"), ("mm_spatial_pool_stride", "deleted"),
    ("mm_projector_type", "deleted"), ("fold", "deleted"), ("normalizer", "deleted"), ("normalizer", "null"),
    ("decoder", "deleted"), ("decoder", "null"), ("pre_tokenizer", "deleted"), ("pre_tokenizer", "null"), ("type", "deleted"),
    ("wording", "deleted"),
    ("dual_tower_layers", "zero"),
}  # fmt: skip
