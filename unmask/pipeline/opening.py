"""From a name to a model. Public idea: ``unmask.load("mini")``, which is ``load`` here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from unmask.checkpoints.device import AUTO, find_device
from unmask.checkpoints.diffa import read_speech
from unmask.checkpoints.elastic import EVERYTHING, Weights, WeightStorage
from unmask.checkpoints.loading import load as load_weights
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic
from unmask.models.graphs import graphs_on
from unmask.pipeline.adapting import Adapters, add_adapters, each_of
from unmask.pipeline.context import Context, as_context, fitted, scaled
from unmask.pipeline.loading import (
    Format,
    ModelSpec,
    format_in,
    open_parts,
    read_spec,
    resolve,
)
from unmask.pipeline.model import Model
from unmask.pipeline.quirks import USUAL, refuse_quirks, with_quirks
from unmask.pipeline.recipe_models import open_by_recipe, recipe_in
from unmask.pipeline.text_family import DIFFA, DREAM, LLADA, LLADA2
from unmask.pipeline.text_model import Reply, TextModel, TextParts
from unmask.sampling.fast import EXACT, Fast
from unmask.tasks.arguments import checked
from unmask.tasks.speeds import speed_of
from unmask.tokens.text import MASK

TEXT_FAMILIES = {Format.LLADA: LLADA, Format.DREAM: DREAM, Format.LLADA2: LLADA2, Format.DIFFA: DIFFA}


def _silent(done: int, of: int) -> None:
    pass


@torch.inference_mode(False)  # as ``Parts.require``
@checked
def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device = AUTO,
    needs: Iterable[str] | None = None,
    storage: WeightStorage | None = None,
    lora: Adapters = (),
    speed: str | Fast = EXACT,
    quirks: str = USUAL,
    context: int | Context | None = None,
    download: bool = False,
    on_bytes: Callable[[int, int], None] = _silent,
    verify: bool = True,
    graphs: bool = True,
) -> Model | TextModel:
    """A shipped model by name, a model folder, or a hub model. CheckpointError says what is missing or damaged.

    A folder holds config.json, tokenizer.json, model*.safetensors and vq*.safetensors, or has the released layout of LaViDa-O, or that of
    LLaDA or Dream, which gives a TextModel; or its config.json names the recipe that opens it (``"recipe": "file.function"`` of
    unmask/recipes).
    ``device``: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1 … or mps; DeviceUnavailable (a ValueError) for one that is not here ·
    ``needs``: load only these parts (``needs_of("generate")``); tasks that need more load the rest later. None: everything ·
    ``storage``: dtype, quantisation and CPU offload · ``lora``: LoRA adapters that are applied, ``FOLDER`` or ``FOLDER:scale``, one or
    several, which add up · ``speed``: as of ``Model.with_speed`` · ``download``: download ``owner/name`` if it is not in the local cache ·
    ``quirks``: of the released scripts of a family, usual, released or none (``pipeline.quirks``) ·
    ``context``: tokens of the longest sequence, for which the rotary base is scaled where the model was trained with shorter ones
    (``pipeline.context``) · ``on_bytes``: called while weights are read, with the bytes read so far and the bytes to read ·
    ``verify``: compare the weights of our own layout with the SHA-256 in config.json (48 MB take 0.03 s) ·
    ``graphs``: on CUDA, layers run as CUDA graphs where they can (``models.graphs``); results are the same. False: kernel by kernel.
    """
    place, folder = find_device(device), resolve(name, download=download)
    fast, wanted = speed_of(speed), as_context(context)
    if recipe := recipe_in(folder):
        if storage not in (None, WeightStorage()):
            raise ValueError(
                f"{folder} is opened by the recipe {recipe}, which takes no other weight storage; leave it out"
            )
        if each_of(lora):
            raise ValueError(f"{folder} is opened by the recipe {recipe}, which takes no adapters; leave out lora")
        if fast != EXACT:
            raise ValueError(f"{folder} is opened by the recipe {recipe}, which has no fast mode; leave out speed")
        if quirks != USUAL:
            raise ValueError(f"{folder} is opened by the recipe {recipe}, which has no quirks; leave them out")
        if wanted:
            raise ValueError(f"{folder} is opened by the recipe {recipe}, which has one context; leave out context")
        return open_by_recipe(folder, recipe, place)
    refuse_quirks(quirks, format_in(folder))
    if format_in(folder).is_text:
        opened = partial(load_text, folder, device=place, storage=storage, lora=lora, called=str(name))
        return opened(context=wanted, on_bytes=on_bytes, graphs=graphs).with_speed(fast)
    found = read_spec(folder)
    presets = fitted(found.presets, wanted)
    found = scaled(found, wanted, found.presets.context)
    weights = Weights(
        checkpoint=found.checkpoint, device=place, storage=storage or WeightStorage(), on_bytes=on_bytes, verify=verify
    )  # fmt: skip
    parts = with_quirks(open_parts(found, weights), found.format, quirks)
    add_adapters(parts.net, lora, weights=weights, called=str(name))
    parts.net.graphs = graphs_on(place) if graphs else None
    parts.require(EVERYTHING if needs is None else frozenset(needs))
    return Model(parts, presets=presets.with_speed(fast))


def load_text(
    folder: Path,
    *,
    device: str | torch.device = AUTO,
    storage: WeightStorage | None = None,
    lora: Adapters = (),
    context: Context | None = None,
    called: str = "",
    on_bytes: Callable[[int, int], None] = _silent,
    graphs: bool = True,
) -> TextModel:
    """The text model of a folder in the layout of LLaDA, Dream or DIFFA. CheckpointError if its files do not match.

    ``called``: the name that it was opened by; the other arguments are those of ``load``.
    """
    place = find_device(device)
    spec = scaled(found := read_spec(folder), context, own_context(found))
    weights = Weights(checkpoint=spec.checkpoint, device=place, storage=storage or WeightStorage(), on_bytes=on_bytes)
    net, vq = weights.checkpoint.modules()
    parts = read_text_parts(spec, net)
    parts = replace(parts, context=context.tokens) if context else parts
    if spec.format is Format.DIFFA:
        parts = replace(parts, speech=read_speech(folder).to(place))
    add_adapters(net, lora, weights=weights, called=called)
    net.graphs = graphs_on(place) if graphs else None
    load_weights(weights, net, vq, Reply.needs)
    return TextModel(parts)


def read_text_parts(spec: ModelSpec, net: Elastic) -> TextParts:
    """The tokenizer, context and family of a text model with its network. CheckpointError if tokenizer and model do not match."""
    folder, family = spec.checkpoint.place, TEXT_FAMILIES[spec.format]
    text = family.read(folder)
    if text.size > net.config.vocab_size:  # the embedding may have spare rows
        raise CheckpointError(f"{folder}: the tokenizer has {text.size} ids and the model {net.config.vocab_size}")
    if text[MASK] != spec.checkpoint.mask_id:
        called = text.spelled.get(MASK, MASK)
        raise CheckpointError(
            f"{folder}: {called} is {text[MASK]} in the tokenizer and {spec.checkpoint.mask_id} in config.json"
        )
    return TextParts(text=text, net=net, context=own_context(spec), family=family)


def own_context(spec: ModelSpec) -> int:
    """The longest sequence of a text model in tokens, from its config.json."""
    raw = read_json(spec.checkpoint.place / "config.json")
    return int(raw.get(TEXT_FAMILIES[spec.format].context, 4096))
