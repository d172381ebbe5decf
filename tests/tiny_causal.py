"""Causal checkpoints that fit into a test: the tensors of ``tiny_dream`` in the layouts of Qwen2 and Llama, and a tokenizer that has never
heard of masks.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from . import tiny_dream

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIG = {key: value for key, value in tiny_dream.CONFIG.items() if key not in ("model_type", "architectures")}


def make(folder: Path, kind: str = "qwen2", *, rows: int = 320, seed: int = 0, **changes: object) -> Path:
    """``kind``: qwen2 (biases, ChatML in the tokenizer), or llama (neither, tied embeddings) · ``rows``: of the vocabulary."""
    folder.mkdir(parents=True)
    made = tiny_dream.tokenizer()
    raw = json.loads(made.to_str())
    kept = ADDED if kind == "qwen2" else ADDED[:1]
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in kept]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    tensors = tiny_dream.tensors(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].clone()
    if kind == "llama":
        tensors = {name: t for name, t in tensors.items() if not name.endswith("bias") and name != "lm_head.weight"}
    config = CONFIG | {"model_type": kind, "vocab_size": rows, "tie_word_embeddings": kind == "llama"} | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
