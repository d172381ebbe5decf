"""A checkpoint in Dimple's layout that fits into a test: the language model of ``tiny_dream``, a tower of two layers, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import tiny_dream

VISION = {
    "depth": 2,
    "hidden_size": 16,
    "hidden_act": "silu",
    "intermediate_size": 24,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "out_hidden_size": 20,
    "fullatt_block_indexes": [1],
}
PICTURES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 256, "max_pixels": 1024}


def vision(seed: int = 9, width: int = 32) -> dict[str, Tensor]:
    """The weights of the tower and the projector by their released names."""
    g, inner, mlp, out = torch.Generator().manual_seed(seed), 16, 24, 20
    shapes: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (inner, 3, 2, 4, 4),
        "visual.merger.ln_q.weight": (inner,),
    }
    linear = {
        "visual.merger.mlp.0": (4 * inner, 4 * inner),
        "visual.merger.mlp.2": (out, 4 * inner),
        "img_projector.linear_1": (width, out),
        "img_projector.linear_2": (width, width),
    }
    for i in range(2):
        block = f"visual.blocks.{i}"
        shapes |= {f"{block}.norm{n}.weight": (inner,) for n in (1, 2)}
        linear |= {f"{block}.attn.qkv": (3 * inner, inner), f"{block}.attn.proj": (inner, inner)}
        linear |= {f"{block}.mlp.{n}_proj": (mlp, inner) for n in ("gate", "up")}
        linear[f"{block}.mlp.down_proj"] = (inner, mlp)
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return {
        name: torch.randn(shape, generator=g) * (1.0 if len(shape) == 1 else shape[1:].numel() ** -0.5)
        for name, shape in ((n, torch.Size(s)) for n, s in shapes.items())
    }


def make(folder: Path) -> Path:
    """Write the whole folder."""
    tiny_dream.make(folder)
    ids = {
        one["content"]: int(i)
        for i, one in json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
    }
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "dimple",
        "architectures": ["DimpleModel"],
        "vision_config": VISION,
        "mrope_section": [1, 1, 2],
        "full_attn_mask": True,
        "image_token_id": ids["<|image_pad|>"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    for path in folder.glob("model-*.safetensors"):
        path.rename(path.with_name(path.name.replace("of-00002", "of-00003")))
    save_file(vision(), folder / "model-00003-of-00003.safetensors")
    return folder
