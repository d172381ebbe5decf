"""Folders of image-token models, whose text and codes share one vocabulary and one trunk; a recipe opens them.

Public idea: ``write_folder(folder, net, ...)`` and ``opened(folder, device) -> (net, kit)``. A folder holds config.json, which names the
recipe that opens it, tokenizer.json, model.safetensors and vq.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, text_config
from unmask.tasks.parts import PAPER, to_image
from unmask.tokens.pictures import square
from unmask.tokens.text import MASK, Text
from unmask.tokens.views import to_pixels
from unmask.tokens.vq import VQ, VQConfig
from unmask.writing import write_text


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What an image-token model has besides its network. ``side``: pixels of a picture."""

    text: Text
    vq: VQ
    side: int

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of a picture: (rows, columns)."""
        return (self.side // self.vq.config.factor,) * 2

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Tensor:
        """A picture, padded to a square -> codes [h, w]."""
        return self.vq.encode(to_pixels(square(image, self.side, PAPER)[0])[None])[0]

    @torch.no_grad()
    def decode(self, codes_Nhw: Tensor) -> list[Image.Image]:
        return [to_image(pixels) for pixels in self.vq.decode(codes_Nhw)]


def trunk(kit: Kit, *, width: int, layers: int, heads: int = 4) -> ElasticConfig:
    """A network for the vocabulary of ``kit`` that predicts a token from the position before it."""
    codes = kit.vq.config.num_vq_embeddings
    mlp, vocab_size = 8 * width // 3 // 8 * 8, kit.text.size + codes
    size = text_config(
        vocab_size=vocab_size, width=width, heads=heads, layers=layers, mlp=mlp, rope_theta=500.0, shifted=True
    )
    return replace(size, codes=codes, first_code=kit.text.size)


def write_folder(
    folder: Path, net: nn.Module, config: ElasticConfig, kit: Kit, recipe: str, more: Json | None = None
) -> None:
    """Write a model. ``config``: of its trunk · ``recipe``: its name, ``file.function`` · ``more``: further fields of config.json.

    OSError where the disk is full; what was there stays.
    """
    save_module(net, folder)
    fields = {"recipe": recipe, "model": asdict(config), **write_kit(folder, kit), **(more or {})}
    write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")


def write_kit(folder: Path, kit: Kit) -> Json:
    """Write the tokenizers; returns what config.json says of them."""
    save_module(kit.vq, folder, name="vq")
    kit.text.save(folder / "tokenizer.json")
    return {"side": kit.side, "vq": asdict(kit.vq.config)}


def opened(folder: Path, device: str = "cpu") -> tuple[Elastic, Kit]:
    """The network and the rest of a folder, in eval mode. CheckpointError for a file that is missing or does not fit."""
    config, kit = described(folder, device)
    net = load_module(Elastic(config, mask_id=kit.text[MASK]), folder)
    return net.to(device).eval(), kit


def described(folder: Path, device: str = "cpu") -> tuple[ElasticConfig, Kit]:
    """The sizes of the trunk and all of a folder but its network. CheckpointError as of ``opened``."""
    path = folder / "config.json"
    raw = read_json(path)
    try:
        config = ElasticConfig(**tupled(raw["model"]))
        vq = VQ(VQConfig(**tupled(raw["vq"])))
        side = int(raw["side"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe an image-token model: {error}; was it changed?") from error
    if not config.first_code or side % vq.config.factor:
        raise CheckpointError(
            f"{path} does not describe an image-token model: first_code {config.first_code}, side {side}; was it changed?"
        )
    text = Text.load(folder / "tokenizer.json")
    return config, Kit(text=text, vq=load_module(vq, folder, name="vq").to(device).eval(), side=side)


def tupled(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config as read from JSON, with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def with_codes(vq: VQ, used: Tensor) -> VQ:
    """The tokenizer with these codes alone, numbered in this order: a small vocabulary for a small world. ``used [V]``."""
    small = VQ(dataclasses.replace(vq.config, num_vq_embeddings=len(used)))
    state = dict(vq.state_dict())
    name = "quantize.embedding.weight"
    state[name] = state[name][used]
    small.load_state_dict(state)
    return small.eval()
