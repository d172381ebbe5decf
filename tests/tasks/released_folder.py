"""A small folder in the released layout: the fixture with a vocabulary large enough for the coordinates, one text token per byte, and a
small vision tower.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unmask.checkpoints.lavida_o import names
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, VisionConfig
from unmask.pipeline.loading import vision_fields
from unmask.tokens.text import CONTROL, MASK

FIXTURE = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
VISION = VisionConfig(image=28, patch=4, width=16, layers=2, heads=2, mlp=24)  # 7 x 7 patches, pooled to 3 x 3
SQUARE = 51  # features of a square picture: 9 of the whole, 6 rows of 6 and a newline
LEVEL = "vision_tower.vision_tower.vision_model."


def write_tokenizer(folder: Path, control: tuple[str, ...] = CONTROL) -> int:
    """One token a byte and control tokens; how many in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size(with_added_tokens=True)


def configure(folder: Path, **changes: object) -> None:
    """Fields of config.json set, or taken away (None)."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def make_folder(place: Path, rename: Callable[[str], str] = str, dtype: torch.dtype = torch.float32) -> Path:
    shutil.copytree(FIXTURE, place)
    size = write_tokenizer(place)
    mask = Tokenizer.from_file(str(place / "tokenizer.json")).token_to_id(MASK)
    own = {"side": 128, "vision": vision_fields(VISION)}
    configure(place, vocab_size=size, embedding_size=size, mask_token_id=mask, mm_vision_tower="siglip", unmask=own)
    tensors = load_file(place / "model.safetensors")
    g = torch.Generator().manual_seed(0)
    for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
        tensors[name] = torch.randn(size, 64, generator=g) * tensors[name].std()
    config = replace(SIZES["tiny"], width=64, heads=4, vision=VISION)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Elastic(config, mask_id=0).state_dict().items() if k.startswith("vision.")}
    mapping = names(config)
    for ours, shape in shapes.items():
        tensors[f"model.{rename(mapping[ours])}"] = torch.randn(shape, generator=g) * 0.2
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, place / "model.safetensors")
    return place
