"""From a name to a model. Public idea: ``unmask.load("mini")``, which is ``load`` here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch

from unmask.checkpoints.device import AUTO, find_device
from unmask.checkpoints.elastic import EVERYTHING, Weights, WeightStorage
from unmask.pipeline.loading import Format, format_in, open_by_recipe, open_parts, read_spec, recipe_in, resolve
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel, load_text
from unmask.tasks import released
from unmask.tasks.arguments import checked
from unmask.tasks.own import OWN
from unmask.tokens.prompts import RELEASED


def _silent(done: int, of: int) -> None:
    pass


@checked
def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device = AUTO,
    needs: Iterable[str] | None = None,
    storage: WeightStorage | None = None,
    download: bool = False,
    on_bytes: Callable[[int, int], None] = _silent,
) -> Model | TextModel:
    """A shipped model by name, a model folder, or a hub model. CheckpointError says what is missing or damaged.

    A folder holds config.json, tokenizer.json, model*.safetensors and vq*.safetensors, or has the released layout of LaViDa-O, or that of
    LLaDA, which gives a TextModel; or its config.json names the recipe that opens it (``"recipe": "file.function"`` of unmask/recipes).
    ``device``: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1 … or mps; DeviceUnavailable (a ValueError) for one that is not here ·
    ``needs``: load only these parts (``needs_of("generate")``); tasks that need more load the rest later. None: everything ·
    ``storage``: dtype, quantisation and CPU offload · ``download``: download ``owner/name`` if it is not in the local cache ·
    ``on_bytes``: called while weights are read, with the bytes read so far and the bytes to read.
    """
    place, folder = find_device(device), resolve(name, download=download)
    if recipe := recipe_in(folder):
        if storage not in (None, WeightStorage()):
            raise ValueError(
                f"{folder} is opened by the recipe {recipe}, which takes no other weight storage; leave it out"
            )
        return open_by_recipe(folder, recipe, place)
    if format_in(folder) is Format.LLADA:
        return load_text(folder, device=place, storage=storage, on_bytes=on_bytes)
    found = read_spec(folder)
    weights = Weights(
        checkpoint=found.checkpoint, device=place, storage=storage or WeightStorage(), on_bytes=on_bytes
    )  # fmt: skip
    parts = open_parts(found, weights)
    parts.require(EVERYTHING if needs is None else frozenset(needs))
    return Model(parts, presets=released.PRESETS if found.wording == RELEASED else OWN)
