"""A checkpoint in Dream's layout that fits into a test: width 32, grouped keys, 320 rows of vocabulary, random weights, two shards, and
the tokenizer as Qwen's models have it: vocab.json, merges.txt, tokenizer_config.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

ADDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<|beginoftext|>", "<|mask|>"),
)
CONFIG = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer() -> Tokenizer:
    """Byte-level BPE of at most 290 ids, with the added tokens behind them."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["why is the sky blue? the sky is blue", "user assistant the the is is"] * 9, trainer)
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ADDED])
    return made


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """All weights by their released names."""
    g = torch.Generator().manual_seed(seed)
    width, mlp, vocabulary, keys = 32, 48, 320, 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    for i in range(3):
        layer = f"model.layers.{i}"
        for name, rows in (("q", width), ("k", keys), ("v", keys)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{layer}.mlp.{n}_proj.weight": (mlp, width) for n in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, mlp)
        shapes |= {f"{layer}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
    return {
        name: torch.randn(shape, generator=g) * (1.0 if len(shape) == 1 else shape[-1] ** -0.5 * 1.5)
        for name, shape in shapes.items()
    }


def write_tokenizer(folder: Path) -> Tokenizer:
    """The three files of a released tokenizer."""
    made = tokenizer()
    made.model.save(str(folder))
    added = {str(made.token_to_id(name)): {"content": name, "special": True} for name in ADDED}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return made


def make(folder: Path, seed: int = 0) -> Path:
    """Write the whole folder."""
    folder.mkdir(parents=True)
    made, weights = write_tokenizer(folder), tensors(seed)
    ids = {name: made.token_to_id("<|endoftext|>") for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = CONFIG | ids | {"mask_token_id": made.token_to_id("<|mask|>")}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    for i, half in enumerate((names[::2], names[1::2])):
        save_file({n: weights[n] for n in half}, folder / f"model-{i + 1:05d}-of-00002.safetensors")
    return folder
