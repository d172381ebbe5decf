"""Write trained weights as a model folder with everything else of the model that they started from.

Public idea: ``export_like(spec, state, folder)``; ``unmask.load(folder)`` opens the result. Layout and dtypes are those of the first model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.dream import trunk_names
from unmask.checkpoints.lavida_o import names
from unmask.checkpoints.llada2 import joined_heads
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import save_tensors
from unmask.checkpoints.stream import FLOATS, files_of
from unmask.pipeline.loading import Format, ModelSpec
from unmask.writing import copy_file, write_text

_BESIDE = (
    "config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer*.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "preprocessor_config.json",
)
_IMAGE_TOKENIZERS = (
    "vqvae",
    "magvitv2",
    "image_tokenizer",
    "decoder",
    "decoder-turbo",
    "vae",
)  # folders beside the network
_LIKE_LLADA = (Format.RELEASED, Format.LLADA)
_SMALL, _SMALL_SHARD, _SHARD = 2**28, 15 * 2**20, 5 * 2**30  # bytes, as of ``convert``


def export_like(spec: ModelSpec, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model that is ``spec`` but for its network's weights, ``state`` by our parameter names. OSError where it cannot."""
    checkpoint, source = spec.checkpoint, spec.checkpoint.place
    folder.mkdir(parents=True, exist_ok=True)
    own = spec.format is Format.OWN
    called = {key: key for key in state} if own else _released_names(spec)
    weights = {
        called[key]: tensor.to(FLOATS.get(checkpoint.net[key].dtype, tensor.dtype))
        for key, tensor in state.items()
        if key in checkpoint.net
    }
    weights = joined_heads(weights)
    size = sum(tensor.nbytes for tensor in weights.values())
    save_tensors(weights, folder, shard=_SMALL_SHARD if size < _SMALL else _SHARD)
    for pattern in _BESIDE:
        for path in source.glob(pattern):
            copy_file(path, folder / path.name)
    if own:
        for path in files_of(source, "vq"):
            copy_file(path, folder / path.name)
    for name in _IMAGE_TOKENIZERS:
        if not own and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True, copy_function=copy_file)
    if own:
        write_sums(folder)
    if spec.format.is_text:  # embedding and head have been trained apart
        fields = ("weight_tying", "tie_word_embeddings") if spec.format is Format.LLADA else ("tie_word_embeddings",)
        untied = read_json(folder / "config.json") | dict.fromkeys(fields, False)
        write_text(folder / "config.json", json.dumps(untied, indent=1) + "\n")


def _released_names(spec: ModelSpec) -> dict[str, str]:
    """Our parameter name -> that of the files."""
    if spec.format is Format.DREAM:
        return trunk_names(spec.checkpoint.config)
    if spec.format in _LIKE_LLADA:
        return {ours: f"model.{theirs}" for ours, theirs in names(spec.checkpoint.config).items()}
    return {ours: stored.name for ours, stored in spec.checkpoint.net.items()}
