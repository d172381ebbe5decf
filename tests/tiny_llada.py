"""A checkpoint in LLaDA's layout that fits into a test: width 32, three layers, 320 rows of vocabulary, random weights, two shards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from unmask.tokens.text import TEXT_CONTROL

CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 3,
    "mlp_hidden_size": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 320,
    "embedding_size": 320,
    "weight_tying": False,
    "max_sequence_length": 256,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "include_bias": False,
    "include_qkv_bias": False,
    "rope": True,
}


def tokenizer() -> Tokenizer:
    """Byte-level BPE of at most 300 ids, with the control tokens that LLaDA has (and no coordinates)."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=294, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["why is the sky blue? the sky is blue", "user assistant the the is is"] * 9, trainer)
    made.add_special_tokens(list(TEXT_CONTROL))
    return made


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """All weights by their released names, with the prefix ``model.``."""
    g = torch.Generator().manual_seed(seed)
    width, mlp, vocabulary = CONFIG["d_model"], CONFIG["mlp_hidden_size"], CONFIG["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (vocabulary, width),
        "ln_f": (width,),
        "ff_out": (vocabulary, width),
    }
    for i in range(CONFIG["n_layers"]):
        block = f"blocks.{i}"
        shapes |= {f"{block}.{n}": (width, width) for n in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{n}": (width,) for n in ("attn_norm", "ff_norm")}
        shapes |= {f"{block}.ff_proj": (mlp, width), f"{block}.up_proj": (mlp, width), f"{block}.ff_out": (width, mlp)}
    return {
        f"model.transformer.{name}.weight": torch.randn(shape, generator=g)
        * (1.0 if len(shape) == 1 else shape[-1] ** -0.5 * 1.5)
        for name, shape in shapes.items()
    }


def make(folder: Path, seed: int = 0) -> Path:
    """Write the whole folder."""
    folder.mkdir(parents=True)
    made, weights = tokenizer(), tensors(seed)
    made.save(str(folder / "tokenizer.json"))
    config = CONFIG | {"mask_token_id": made.token_to_id("<|mdm_mask|>")}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    for i, half in enumerate((names[::2], names[1::2])):
        save_file({n: weights[n] for n in half}, folder / f"model-{i + 1:05d}-of-00002.safetensors")
    return folder
