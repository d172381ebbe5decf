"""A checkpoint in the layout of LLaDA-V and ReDiff for tests: LaViDa's tiny tower, LLaDA under Llama's names, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import tiny_lavida, tiny_llada

_NAMES = {
    **{f"{n}_proj": f"self_attn.{n}_proj" for n in "qkv"},
    **{"attn_out": "self_attn.o_proj", "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"},
    **{"ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj"},
}
_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def _renamed(name: str) -> str:
    """LLaDA's name -> Llama's."""
    inner = name.removeprefix("model.transformer.").removesuffix(".weight")
    if inner in _TOP:
        return f"{_TOP[inner]}.weight"
    _, layer, part = inner.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def config(mask_id: int, never: list[int]) -> dict[str, object]:
    own = tiny_llada.CONFIG
    language = {
        "vocab_size": own["vocab_size"],
        "hidden_size": own["d_model"],
        "intermediate_size": own["mlp_hidden_size"],
        "num_hidden_layers": own["n_layers"],
        "num_attention_heads": own["n_heads"],
        "num_key_value_heads": own["n_kv_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": own["rms_norm_eps"],
        "rope_theta": own["rope_theta"],
        "attention_bias": False,
        "tie_word_embeddings": False,
        "mask_token_id": mask_id,
    }
    sizes = [[14 * w, 14 * h] for w in range(1, 4) for h in range(1, 4)]
    pictures = {
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": sizes,
        "tokenizer_model_max_length": 1024,
        "unmask": {"vision": tiny_lavida.TOWER, "forbidden_ids": never},
    }
    return {"model_type": "llava_llada", "architectures": ["LlavaLLaDAModelLM"], **language, **pictures}


def make(folder: Path) -> Path:
    """Write the whole folder."""
    folder.mkdir(parents=True)
    made = tiny_llada.tokenizer()
    made.save(str(folder / "tokenizer.json"))
    never = [made.token_to_id(name) for name in ("<|endoftext|>", "<|startoftext|>")]
    raw = config(made.token_to_id("<|mdm_mask|>"), never)
    (folder / "config.json").write_text(json.dumps(raw))
    weights: dict[str, Tensor] = {_renamed(name): tensor for name, tensor in tiny_llada.tensors().items()}
    save_file(
        {n: t.to(torch.float32) for n, t in (weights | tiny_lavida.vision()).items()}, folder / "model.safetensors"
    )
    return folder
