"""Models with LoRA adapters. Public idea: ``with_adapters(model, ["runs/pets:0.8"])``: the same model with adapters, and the same weights
in memory; ``merge(source, lora, out)`` writes a model folder with the adapters folded into the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unmask.checkpoints.adapters import CONFIG, adapter_place, layers_in, load_adapter, read_adapter, refuse_other_base
from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.elastic import EVERYTHING, Weights
from unmask.checkpoints.families import not_part_of_model
from unmask.checkpoints.stream import CheckpointError, Stored, read
from unmask.models.elastic import Elastic
from unmask.models.lora import Product, merged, sharing
from unmask.pipeline.loading import read_spec, resolve
from unmask.pipeline.model import Model
from unmask.pipeline.recipe_models import recipe_in
from unmask.pipeline.text_model import TextModel
from unmask.writing import copy_file, whole_folder, write_tensors

Adapters = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""``FOLDER`` or ``FOLDER:scale``, or several, which add up."""
Header = Mapping[str, str] | None
"""The metadata of a file of weights."""
Change = Callable[[dict[str, Tensor], Header], tuple[dict[str, Tensor], Header]]
"""The tensors and metadata of a file, to what is written in their place."""


def each_of(lora: Adapters) -> list[str | os.PathLike[str]]:
    """One or several adapters as a list."""
    return [lora] if isinstance(lora, str | os.PathLike) else list(lora)


def add_adapters(net: Elastic, lora: Adapters, *, weights: Weights | None, called: str) -> None:
    """Add adapters to a network in place, as ``load_adapter`` does."""
    for one in each_of(lora):
        load_adapter(net, *adapter_place(one), weights=weights, called=called)


def with_adapters(model: Model | TextModel, lora: Adapters, *, called: str = "") -> Model | TextModel:
    """A model with adapters, which shares its weights with ``model``; ``model`` does not change. ``called``: the name of ``model``.

    Loads all parts of ``model`` first. CheckpointError as ``load_adapter``.
    """
    if isinstance(model, Model):
        model.parts.require(EVERYTHING)
        net = sharing(model.parts.net)
        add_adapters(net, lora, weights=None, called=called)
        # What the cache of picture features holds was computed without the adapters.
        parts = replace(
            model.parts, net=net, weights=None, features=type(model.parts.features)(model.parts.features.most_bytes)
        )
        return Model(parts, model.presets, executor=model.executor)
    if not isinstance(net := model.parts.net, Elastic):
        raise ValueError(f"a {type(net).__name__} takes no adapters; open a model of unmask, LaViDa-O or LLaDA")
    net = sharing(net)
    add_adapters(net, lora, weights=None, called=called)
    return TextModel(replace(model.parts, net=net), executor=model.executor, change=model.change, fast=model.fast)


def merge(source: str | os.PathLike[str], lora: Adapters, out: Path, *, download: bool = False) -> list[Path]:
    """A copy of a model folder with adapters folded into the weights, in the layout and dtype of the source. Returns the files written.

    Each weight is computed in float32 and rounded once; all other tensors keep every bit. One file of weights is in memory at a time.
    CheckpointError if an adapter does not fit the model, ValueError if ``out`` exists.
    """
    home = resolve(source, download=download)
    if recipe := recipe_in(home):
        raise ValueError(f"{home} is opened by the recipe {recipe}, which takes no adapters; merge into another model")
    places = [adapter_place(one) for one in each_of(lora)]
    if not places:
        raise ValueError("no adapter to merge; give at least one")
    checkpoint = read_spec(home).checkpoint
    net, _ = checkpoint.modules()
    changes: dict[str, dict[str, list[Product]]] = {}  # by file and name in the file
    for folder, scale in places:
        found = read_adapter(folder)
        fitting = layers_in(net, found, checkpoint.net)
        refuse_other_base(net, found, Weights(checkpoint=checkpoint), str(source))
        for name, (down, up, own) in fitting.items():
            stored = checkpoint.net[f"{name}.weight"]
            _refuse_tied(name, stored, checkpoint.net["embed.weight"])
            if stored.bits:
                raise CheckpointError(
                    f"{home} has quantised weights, which cannot be merged; use --lora, or merge before quantising"
                )
            joint, up_OR = _in_joint(stored, read(up), checkpoint.net)
            product = Product(down=read(down), up=up_OR, scale=own * scale)
            changes.setdefault(stored.path.name, {}).setdefault(joint, []).append(product)
    with whole_folder(out) as part:
        copied(home, part, {file: _Merging(products=some) for file, some in changes.items()})
        if checkpoint.sums:
            write_sums(part)
    return sorted(p for p in out.rglob("*") if p.is_file())


def _in_joint(stored: Stored, up_OR: Tensor, net: Mapping[str, Stored]) -> tuple[str, Tensor]:
    """The name in the file, and ``up`` with rows of zeros for the other parts of a joint matrix, ``NAME[q]`` and so on."""
    whole, _, part = stored.name.partition("[")
    if not part:
        return whole, up_OR
    others = [one for one in net.values() if one.path == stored.path and one.name.startswith(f"{whole}[")]
    before = sum(one.shape[0] for one in others if one.start < stored.start)
    after = sum(one.shape[0] for one in others if one.start > stored.start)
    return whole, torch.nn.functional.pad(up_OR, (0, 0, before, after))


def _refuse_tied(name: str, stored: Stored, embedding: Stored) -> None:
    if (stored.path, stored.name) == (embedding.path, embedding.name):
        raise CheckpointError(
            f"{name} is tied to the embedding, so an adapter of it cannot be merged; use --lora instead"
        )


def copied(home: Path, part: Path, changed: Mapping[str, Change]) -> None:
    """Copy a model folder into ``part``; ``changed``: files that are written anew. What is not part of the model is left out."""
    others = {f"{name}.safetensors" for name in not_part_of_model(home, {p.stem for p in home.glob("*.safetensors")})}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        target = part / path.relative_to(home)
        if path.parent == home and (path.name in others or path.name == CONFIG):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent != home or path.name not in changed:
            copy_file(path, target)
            continue
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
        try:
            write_tensors(target, *changed[path.name](tensors, metadata))
        except OSError as error:
            raise OSError(f"could not write {path.name}: {error}; nothing was written") from error


@dataclass(frozen=True, kw_only=True)
class _Merging:
    """The tensors of a file with products folded in. ``products``: by the name in the file."""

    products: Mapping[str, list[Product]]

    def __call__(self, tensors: dict[str, Tensor], header: Header) -> tuple[dict[str, Tensor], Header]:
        return tensors | {name: merged(tensors[name], *some) for name, some in self.products.items()}, header
