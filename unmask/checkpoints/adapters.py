"""LoRA adapters on disk, in the format of the library peft: adapter_config.json and adapter_model.safetensors.

Public idea: ``save_adapter(model, folder, base="mini")``, ``load_adapter(model, folder, scale=1.0)`` and ``read_adapter(folder)``. The
weights of the base model are stored elsewhere. docs/notes/0011-lora.md says why peft itself is not used.

The scale of a layer is alpha / rank, with the fields ``rank_pattern`` and ``alpha_pattern`` as peft reads them; layers are named as in our
network or as in the released checkpoints. Files of ours also hold a few values of the base model's embedding, in the header, by which
another base of the same shape is recognised; peft does not read them.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.lavida_o import names
from unmask.checkpoints.store import save_tensors
from unmask.checkpoints.stream import FLOATS, CheckpointError, Stored, files_of, read, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.lora import Product, adapters, add_products
from unmask.writing import write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
_MARK, _MARKED = "unmask.base", (4, 8)  # rows and columns of the embedding that identify the base
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
# Fields of adapter_config.json that are followed, and those that do not change what a saved adapter computes.
_FOLLOWED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "base_model_name_or_path"}
_HARMLESS = {
    *("auto_mapping", "peft_version", "revision", "task_type", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("fan_in_fan_out", "megatron_config", "megatron_core", "qalora_group_size", "eva_config", "ensure_weight_tying"),
}
_STARTS = (True, "gaussian", "eva", "orthogonal")  # first weights that leave the base model as it is
_LARGEST = 16 * 2**20  # bytes of adapter_config.json


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter on disk. ``base``: the model that it was trained on, as its makers wrote it; "" if they did not · ``layers``: by their
    names in the file, where ``lora_A`` and ``lora_B`` are stored, and the scale of their product.
    """

    folder: Path
    base: str
    layers: Mapping[str, tuple[Stored, Stored, float]]

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({down.shape[0] for down, _, _ in self.layers.values()})

    @property
    def scales(self) -> list[float]:
        """The scales that occur, ascending."""
        return sorted({scale for _, _, scale in self.layers.values()})


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def adapter_place(text: str | os.PathLike[str]) -> tuple[Path, float]:
    """``FOLDER`` or ``FOLDER:scale`` -> (folder, scale, 1 by default). ValueError for a scale that is not a finite number."""
    whole = os.fspath(text)
    folder, colon, number = whole.rpartition(":")
    if not colon or Path(whole).exists():
        return Path(whole), 1.0
    try:
        scale = float(number)
    except ValueError:
        raise ValueError(
            f"the adapter {whole!r} is neither a folder nor FOLDER:SCALE with a number; use for example {folder}:0.5"
        ) from None
    if not math.isfinite(scale):
        raise ValueError(
            f"the scale of the adapter {folder} must be a finite number, got {number}; use for example 0.5"
        )
    return Path(folder), scale


def save_adapter(model: nn.Module, folder: Path | str, *, base: str = "") -> None:
    """Write the adapters of a model, without its other weights. ``base``: name or folder of the model they were trained on.

    ValueError where the model has no adapters.
    """
    folder, products = Path(folder), {name: adapter.product for name, _, adapter in adapters(model)}
    if not products:
        raise ValueError("the model has no adapters to save; call LoRA(...)(model) first")
    tensors = {}
    for name, product in products.items():
        tensors |= {f"{_PREFIX}{name}.lora_A.weight": product.down, f"{_PREFIX}{name}.lora_B.weight": product.up}
    mark = _mark(model, None)
    metadata = {"format": "pt", **({_MARK: json.dumps(mark)} if mark else {})}
    save_tensors(tensors, folder, name=WEIGHTS, shard=2**62, metadata=metadata)  # peft reads one file
    write_text(folder / CONFIG, json.dumps(_config(products, base), indent=2) + "\n")


def _config(products: Mapping[str, Product], base: str) -> Json:
    """The fields of adapter_config.json; most common rank and alpha first, those of other layers by their full names."""
    pairs = {name: (len(product.down), len(product.down) * product.scale) for name, product in products.items()}
    ((rank, alpha), _), *_ = Counter(pairs.values()).most_common()
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": r for name, (r, _) in pairs.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": a for name, (_, a) in pairs.items() if a != alpha},
        "target_modules": sorted(products),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "task_type": None,
        "inference_mode": True,
    }


def read_adapter(folder: Path | str) -> AdapterFile:
    """An adapter's configuration and the safetensors headers; no weights are read.

    CheckpointError for missing and damaged files, and for features of peft that would change the result and are not supported.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.exists():
        what = "it holds a model" if (folder / "config.json").exists() else "is this the folder of a LoRA adapter?"
        inside = next(
            (p.parent for p in sorted(folder.glob(f"*/{CONFIG}"))), None
        )  # as unmask train finetune writes it
        hint = f"use {inside}" if inside else what if folder.is_dir() else "the folder does not exist"
        raise CheckpointError(f"{folder} has no {CONFIG}; {hint}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy the adapter again") from error
    _refuse_unsupported(path, raw)
    pairs: dict[str, dict[str, Stored]] = {}
    for key, stored in tensors_of(folder, WEIGHTS).items():
        match = _TENSOR.fullmatch(key)
        if match is None or len(stored.shape) != 2 or stored.dtype not in FLOATS:
            shape = "x".join(map(str, stored.shape))
            raise CheckpointError(
                f"{folder}: {key} ({stored.dtype} {shape}) is not part of a LoRA of linear layers; train one without it"
            )
        pairs.setdefault(match["layer"], {})[match["part"]] = stored
    if not pairs:
        raise CheckpointError(f"{folder}: {WEIGHTS}.safetensors holds no tensors; copy the adapter again")
    layers = {name: _layer(path, raw, name, pair) for name, pair in pairs.items()}
    return AdapterFile(folder=folder, base=str(raw.get("base_model_name_or_path") or ""), layers=layers)


def _refuse_unsupported(path: Path, raw: Json) -> None:
    """CheckpointError that names the first field whose value is not supported."""
    if (kind := raw.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type {kind!r} is not supported; unmask reads LORA")
    if (start := raw.get("init_lora_weights", True)) and start not in _STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights {start!r} changes the base model; save it with peft's path_initial_model_for_weight_conversion"
        )
    for field in sorted(raw.keys() - _FOLLOWED - _HARMLESS - {"init_lora_weights"}):
        if raw[field] and raw[field] != "none":
            raise CheckpointError(
                f"{path}: {field} {json.dumps(raw[field])[:80]} is not supported; train the adapter without it"
            )


def _layer(path: Path, raw: Json, name: str, pair: Mapping[str, Stored]) -> tuple[Stored, Stored, float]:
    """Both factors of a layer and the scale of their product."""
    if len(pair) != 2:
        raise CheckpointError(f"{path.parent}: {name} lacks lora_{'B' if 'A' in pair else 'A'}; copy the adapter again")
    down, up = pair["A"], pair["B"]
    rank, alpha = (
        _of_layer(path, raw, "rank_pattern", "r", name),
        _of_layer(path, raw, "alpha_pattern", "lora_alpha", name),
    )
    if down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"{path.parent}: {name} has factors {down.shape} and {up.shape}, and {CONFIG} says rank {rank:g}; use both files of one adapter"
        )
    return down, up, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _of_layer(path: Path, raw: Json, patterns: str, default: str, name: str) -> float:
    """The rank or alpha of a layer: of the first pattern that matches the end of its name, else the default (peft's rule)."""
    found = raw.get(patterns) or {}
    try:
        fits = (value for key, value in found.items() if re.match(rf"(.*\.)?({key})$", name))
        value = next(fits, raw.get(default, 8))  # 8: peft's default of both
    except (re.error, AttributeError) as error:
        raise CheckpointError(f"{path}: {patterns} is not an object of patterns ({error}); copy it again") from error
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (default == "r" and value < 1):
        raise CheckpointError(f"{path}: {default} of {name} is {value!r}, wanted a number; copy the adapter again")
    return float(value)


def load_adapter(
    model: nn.Module, folder: Path | str, scale: float = 1.0, *, weights: Weights | None = None, called: str = ""
) -> None:
    """Add a saved adapter to a model, in place and on top of others that it has.

    ``scale``: factor of the whole adapter · ``weights``: source of the weights of a model whose parts are not all loaded yet · ``called``:
    the model's name. CheckpointError for files that are missing, damaged or of another model; the model is then unchanged. Warns if only
    the name of the base differs.
    """
    found = read_adapter(folder)
    fitting = layers_in(model, found, weights.checkpoint.net if weights else {})
    refuse_other_base(model, found, weights, called)
    products = {}
    for name, (down, up, own) in fitting.items():
        weight = model.get_parameter(f"{name}.weight")
        dtype, device = weight.dtype, weight.device
        if weights is not None:
            dtype, device = (
                weights.dtype_of("net", weights.checkpoint.net[f"{name}.weight"]),
                torch.device(weights.device),
            )
        factors = (read(one, dtype=dtype, device=device) for one in (down, up))
        products[name] = Product(down=next(factors), up=next(factors), scale=own * scale)
    add_products(model, products)


def _apart(
    layers: Mapping[str, tuple[Stored, Stored, float]], parts: Mapping[str, list[str]], modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, tuple[Stored, Stored, float]]]:
    """The layers of an adapter; one of a joint matrix as one for each of its parts, with the rows of ``lora_B`` that are its own."""
    for name, (down, up, scale) in layers.items():
        own = [modules[part] for part in parts.get(name, ())]
        sizes = [layer.out_features for layer in own if isinstance(layer, nn.Linear)]
        if len(sizes) < 2 or sum(sizes) != up.shape[0]:
            yield name, (down, up, scale)
            continue
        each, first = up.nbytes // up.shape[0], 0
        for part, rows in zip(parts[name], sizes, strict=True):
            some = replace(up, shape=(rows, up.shape[1]), start=up.start + first * each, nbytes=rows * each)
            yield part, (down, some, scale)
            first += rows


def layers_in(
    model: nn.Module, found: AdapterFile, stored: Mapping[str, Stored] | None = None
) -> dict[str, tuple[Stored, Stored, float]]:
    """The layers of an adapter by their names in ``model``. CheckpointError where one is missing or has another shape.

    ``stored``: the model's tensors by our names, whose names in their files an adapter may use. One of a joint matrix, which is stored as
    parts ``X.weight[q]``, ``X.weight[k]`` and so on, becomes one of each part.
    """
    modules = dict(model.named_modules())
    released = {}
    if isinstance(model, Elastic):
        released = {
            theirs.removesuffix(".weight"): ours.removesuffix(".weight") for ours, theirs in names(model.config).items()
        }
    parts = dict[str, list[str]]()
    for ours, theirs in (stored or {}).items():
        parts.setdefault(theirs.name.partition("[")[0].removesuffix(".weight"), []).append(ours.removesuffix(".weight"))
    released |= {theirs: ours[0] for theirs, ours in parts.items() if len(ours) == 1}
    whose = f"; it was trained on {found.base}" if found.base else "; was it trained on this model?"
    fitting = {}
    for given, (down, up, scale) in _apart(found.layers, parts, modules):
        ours = given if given in modules else released.get(given, released.get(given.removeprefix("model."), given))
        layer = modules.get(ours)
        if not isinstance(layer, nn.Linear):
            what = "which the model lacks" if layer is None else f"a {type(layer).__name__} and not a linear layer"
            raise CheckpointError(
                f"the adapter {found.folder} does not fit the model: it adapts {given}, {what}{whose}"
            )
        wanted, got = (layer.out_features, layer.in_features), (up.shape[0], down.shape[1])
        if wanted != got:
            raise CheckpointError(
                f"the adapter {found.folder} does not fit the model: {given} is {wanted} there, the adapter's is {got}{whose}"
            )
        if ours in fitting:
            raise CheckpointError(
                f"the adapter {found.folder} adapts {ours} twice, under two names; copy the adapter again"
            )
        fitting[ours] = down, up, scale
    return fitting


def refuse_other_base(model: nn.Module, found: AdapterFile, weights: Weights | None, called: str) -> None:
    """CheckpointError for an adapter whose file says that it was trained on other weights. Without that, warns where the names differ."""
    with safe_open(str(files_of(found.folder, WEIGHTS)[0]), "pt") as file:
        said = (file.metadata() or {}).get(_MARK)
    own = _mark(model, weights)
    if said is None or own is None:
        theirs, ours = (Path(name).name.lower() for name in (found.base, called))
        if theirs and ours and theirs != ours:
            warnings.warn(
                f"the adapter {found.folder} was trained on {found.base}, and the model is {called}", stacklevel=3
            )
        return
    try:
        wanted = torch.tensor(json.loads(said), dtype=torch.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{found.folder}: {WEIGHTS}.safetensors has a damaged header; copy the adapter again"
        ) from error
    got = torch.tensor(own)
    # Within the rounding of half precision.
    if wanted.shape != got.shape or not torch.allclose(got, wanted, rtol=0, atol=0.01 * float(wanted.abs().max())):
        raise CheckpointError(
            f"the adapter {found.folder} was trained on other weights{f' ({found.base})' if found.base else ''}; "
            "open the model that it was trained on"
        )


def _mark(model: nn.Module, weights: Weights | None) -> list[list[float]] | None:
    """A few values of a network's embedding; None for modules that have none."""
    if not isinstance(model, Elastic):
        return None
    rows, columns = _MARKED
    table: Tensor = model.embed.weight.detach()
    if weights is not None:
        table = read(weights.checkpoint.net["embed.weight"], rows=rows)
    return None if table.device.type == "meta" else table[:rows, :columns].float().tolist()
