"""A checkpoint in LaViDa's layout that fits into a test, on LLaDA or on Dream, with a tower of 7 patches a side and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import tiny_dream, tiny_llada

TOWER = {"image": 14, "patch": 2, "width": 16, "layers": 1, "heads": 2, "mlp": 24, "eps": 1e-6}
FIELDS = {
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[14, 28], [28, 14], [28, 28]],
    "mm_spatial_pool_mode": "bilinear",
    "tokenizer_model_max_length": 512,
    "unmask": {"vision": TOWER},
}


def vision(seed: int = 7, width: int = 32) -> dict[str, Tensor]:
    """The weights of the tower, the projector and the newline by their released names."""
    g, inner = torch.Generator().manual_seed(seed), 16
    top = "model.vision_tower.vision_tower.vision_model"
    layer = f"{top}.encoder.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        f"{top}.embeddings.patch_embedding.weight": (inner, 3, 2, 2),
        f"{top}.embeddings.patch_embedding.bias": (inner,),
        f"{top}.embeddings.position_embedding.weight": (49, inner),
        "model.mm_projector.0.weight": (width, inner),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
        "model.image_newline": (width,),
    }
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{layer}.{name}.{kind}": (inner,) for kind in ("weight", "bias")}
    shapes |= {f"{top}.post_layernorm.{kind}": (inner,) for kind in ("weight", "bias")}
    for name, (rows, columns) in {
        **{f"self_attn.{n}_proj": (inner, inner) for n in ("q", "k", "v", "out")},
        "mlp.fc1": (24, inner),
        "mlp.fc2": (inner, 24),
    }.items():
        shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
    return {
        name: torch.randn(shape, generator=g) * (1.0 if len(shape) == 1 else shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def make(folder: Path, *, on_dream: bool = False) -> Path:
    """Write the whole folder."""
    (tiny_dream if on_dream else tiny_llada).make(folder)
    config = json.loads((folder / "config.json").read_text())
    kind = "llava_dream" if on_dream else "llava_llada"
    named = "LlavaDreamForMaskedDiffusion" if on_dream else "LlavaLladaForMaskedDiffusion"
    config |= FIELDS | {"model_type": kind, "architectures": [named]}
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("model-*.safetensors"):
        path.rename(path.with_name(path.name.replace("of-00002", "of-00003")))
    save_file(vision(), folder / "model-00003-of-00003.safetensors")
    return folder
