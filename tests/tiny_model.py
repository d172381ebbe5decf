"""A model folder of ours that fits into a test: the size ``tiny``, the shipped text tokenizer, random weights."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

import torch

from unmask.checkpoints.store import save_module
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.pipeline.loading import write_config
from unmask.rng import generator
from unmask.tokens.text import MASK, Text
from unmask.tokens.vq import VQ, VQConfig


def make(folder: Path, *, shard: int = 15 * 2**20) -> Path:
    """Write the whole folder; ``shard``: bytes of one file of the network's weights."""
    text = Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))
    text.save(folder / "tokenizer.json")
    size = dataclasses.replace(SIZES["tiny"], vocab_size=text.size)
    codes = VQConfig(
        block_out_channels=(4, 4, 4, 4, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=size.codes,
        norm_num_groups=2,
    )
    net = Elastic(size, mask_id=text[MASK])
    init(net, generator("test"))
    save_module(net, folder, shard=shard)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_module(VQ(codes), folder, name="vq")
    write_config(folder, size, codes, wording="compact", side=128, fold=2)
    return folder
