"""From a name to a checkpoint: a shipped model, one of our folders, a folder in the released layout, or a model of the hub.

Public idea: ``resolve("mini") -> folder`` and ``read_spec(folder) -> ModelSpec``: everything about a model except its weights.

In the released layout, config.json may have a block ``unmask`` for what that layout cannot express: ``side`` (pixels of a generated
picture, default 1024), ``vision`` (sizes of another vision tower) and ``wording`` (``compact`` for our own models in this layout). Our
config.json may have a block ``released`` with the fields of the released config that our layout does not have.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from unmask.checkpoints.diffa import survey_diffa
from unmask.checkpoints.dimple import survey_dimple
from unmask.checkpoints.dream import survey_dream
from unmask.checkpoints.elastic import EVERYTHING, Checkpoint, Weights
from unmask.checkpoints.families import refuse_foreign
from unmask.checkpoints.hub import fetch, is_hub_name
from unmask.checkpoints.lavida import is_on_dream, survey_lavida
from unmask.checkpoints.lavida_o import OWN_BLOCK, survey_lavida_o
from unmask.checkpoints.llada import survey_llada
from unmask.checkpoints.llada2 import survey_llada2
from unmask.checkpoints.llada2_uni import survey_uni
from unmask.checkpoints.lumina_dimoo import survey_dimoo
from unmask.checkpoints.mmada import sizes_of, survey_mmada
from unmask.checkpoints.own import read_own
from unmask.checkpoints.rediff import survey_rediff
from unmask.checkpoints.schema import invalid, read_json
from unmask.checkpoints.store import compare
from unmask.checkpoints.stream import CheckpointError, Stored, other_weights, tensors_of
from unmask.files import read_text
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.linear import pack
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.models.unfilled import unfilled
from unmask.pipeline.formats import Format, format_in
from unmask.tasks import (
    conversing,
    dimple,
    edit,
    generate,
    ground,
    infill,
    lavida,
    llada2_uni,
    lumina_dimoo,
    mmada,
    planning,
    rediff,
    reflecting,
    released,
    revising,
    understand,
)
from unmask.tasks.own import OWN
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.step_causal import step_causal
from unmask.tokens.magvit import MagvitConfig
from unmask.tokens.mmada import WORDING
from unmask.tokens.prompts import COMPACT, RELEASED, Wording
from unmask.tokens.text import MASK, Text
from unmask.tokens.vocabulary import FILE, Vocabulary
from unmask.tokens.vq import VQ, VQConfig
from unmask.writing import write_text

WORDINGS = {"compact": COMPACT, "released": RELEASED}
RELEASED_BLOCK = "released"  # block of our config.json with fields of the released config
SIDE = 1024  # pixels: the only picture size of the released weights (spec 1.8)
ALL = "all"
_OTHER_TRUNKS = (
    "kv_heads",
    "head_width",
    "qkv_bias",
    "shifted",
    "tower",
    "rope_sections",
    "first_code",
    *("qk_norm", "rope_width", "experts"),
)  # left out of our config.json where they are not set
_SURVEYS = {
    Format.LLADA: survey_llada,
    Format.DREAM: survey_dream,
    Format.LLADA2: survey_llada2,
    Format.DIFFA: survey_diffa,
}
TEXT_TASKS = ("ask", "infill-text", ALL)  # tasks of a text model


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model without its weights. ``side``: pixels of a generated picture (text models: 0) · ``fold``: codes per position along one side ·
    ``released``: the released config.json, if there is one.
    """

    format: Format
    checkpoint: Checkpoint
    wording: Wording
    side: int
    fold: int
    released: Json = field(default_factory=dict)

    @property
    def presets(self) -> Presets:
        """The samplers of a model that draws: those of the released models, or of our own."""
        if self.format is Format.LAVIDA:
            context = int(self.released.get("tokenizer_model_max_length", 4096))
            return lavida.presets(on_dream=is_on_dream(self.released), context=context)
        if self.format is Format.REDIFF:
            return rediff.presets(self.released)
        if self.format is Format.DIMPLE:
            return dimple.presets(int(self.released.get("max_position_embeddings", 4096)))
        if self.format is Format.MMADA:
            return mmada.presets(self.released)
        if self.format is Format.DIMOO:
            return lumina_dimoo.presets(self.released)
        if self.format is Format.LLADA2_UNI:
            return llada2_uni.presets(self.released)
        dense = released.PRESETS if self.wording == RELEASED else OWN
        config = self.checkpoint.config
        return step_causal(dense) if config.text_registers or config.code_registers else dense


def resolve(name: str | os.PathLike[str], *, download: bool = False) -> Path:
    """The folder of a shipped model, the given folder, or that of ``owner/name`` in the hub's cache.

    CheckpointError if there is none, and for models of other families. Warns of a LoRA adapter beside the model.
    """
    name, shipped = str(name), Path(str(files("unmask") / "assets"))
    for folder in (Path(name), shipped / name):
        if (folder / "config.json").exists():
            return _ours(folder)
    if not Path(name).exists() and is_hub_name(name):
        return _ours(fetch(name, download=download))
    if name and Path(name).exists():
        refuse_foreign(Path(name))
        raise CheckpointError(f"{name} has no config.json; {_what_to_do(Path(name))}")
    known = sorted(p.parent.name for p in shipped.glob("*/config.json"))
    near = difflib.get_close_matches(name.strip().lower(), known, 1)
    hint = f"did you mean {near[0]!r}? Or use" if near else f"use a shipped one ({', '.join(known)}),"
    raise CheckpointError(f"no model is called {name!r}; {hint} a folder with a config.json, or owner/name on the hub")


def _what_to_do(folder: Path) -> str:
    """About a folder without a config.json."""
    if other := other_weights(folder):
        return other
    if (folder / "metrics.jsonl").exists():
        return "it is a run without a model; go on with unmask train RECIPE --resume, unless its recipe writes none"
    if any(folder.glob("*.safetensors")):
        return "copy the one of its weights"
    return "is this a folder of a model? docs/models.md has the families"


def _ours(folder: Path) -> Path:
    refuse_foreign(folder)
    if (folder / "adapter_config.json").exists():
        warnings.warn(
            f"{folder} holds a LoRA adapter beside the model, which is applied only with lora={folder}", stacklevel=3
        )
    return folder


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a folder, from config.json and the safetensors headers. CheckpointError says what does not fit."""
    refuse_foreign(folder)
    found = format_in(folder)
    if found is Format.LAVIDA:
        return _spec_of_lavida(folder)
    if found in (Format.DIMPLE, Format.REDIFF):
        kept = read_json(folder / "config.json")
        survey, wording = (survey_dimple, dimple.WORDING) if found is Format.DIMPLE else (survey_rediff, rediff.WORDING)
        return ModelSpec(format=found, checkpoint=survey(folder), wording=wording, side=0, fold=1, released=kept)
    if found.is_text:
        return ModelSpec(format=found, checkpoint=_SURVEYS[found](folder), wording=RELEASED, side=0, fold=1)
    if found is Format.MMADA:
        return _spec_of_mmada(folder)
    if found is Format.DIMOO:
        return _spec_of_dimoo(folder)
    if found is Format.LLADA2_UNI:
        return _spec_of_uni(folder)
    return _spec_of_released(folder) if found is Format.RELEASED else _spec_of_own(folder)


def _spec_of_lavida(folder: Path) -> ModelSpec:
    raw = read_json(folder / "config.json")
    wording = lavida.ON_DREAM if is_on_dream(raw) else lavida.ON_LLADA
    return ModelSpec(
        format=Format.LAVIDA, checkpoint=survey_lavida(folder), wording=wording, side=0, fold=1, released=raw
    )


def _spec_of_own(folder: Path) -> ModelSpec:
    config = read_own(folder)
    net_found, vq_found = tensors_of(folder, "model"), tensors_of(folder, "vq")
    config.refuse_unfit(net_found, vq_found)
    tokenizer = folder / "tokenizer.json"  # may be missing after a conversion from the released layout
    mask_id = config.mask_id if config.mask_id is not None and not tokenizer.exists() else Text.load(tokenizer)[MASK]
    if mask_id >= config.model.vocab_size:
        raise invalid(
            config.path, f"the mask token {mask_id} is not a row of model.vocab_size {config.model.vocab_size}"
        )
    with unfilled():
        net, vq = Elastic(config.model, mask_id=0), VQ(config.vq)
    checkpoint = Checkpoint(
        place=folder,
        config=config.model,
        vq_config=config.vq,
        mask_id=mask_id,
        net=_fitted(net, net_found, folder),
        vq=_fitted(vq, vq_found, folder),
        dtype=torch.float32,
        sums=config.sums,
    )
    return ModelSpec(
        format=Format.OWN,
        checkpoint=checkpoint,
        wording=WORDINGS[config.wording],
        side=config.side,
        fold=config.fold,
        released=config.released,
    )


def _spec_of_mmada(folder: Path) -> ModelSpec:
    raw, checkpoint = read_json(folder / "config.json"), survey_mmada(folder)
    assert isinstance(checkpoint.vq_config, MagvitConfig)
    side, _ = sizes_of(raw, checkpoint.vq_config)
    return ModelSpec(format=Format.MMADA, checkpoint=checkpoint, wording=WORDING, side=side, fold=1, released=raw)


def _spec_of_dimoo(folder: Path) -> ModelSpec:
    raw, checkpoint = read_json(folder / "config.json"), survey_dimoo(folder)
    side, wording = lumina_dimoo.side_of(raw, checkpoint.vq_config.factor), lumina_dimoo.WORDING
    return ModelSpec(format=Format.DIMOO, checkpoint=checkpoint, wording=wording, side=side, fold=1, released=raw)


def _spec_of_uni(folder: Path) -> ModelSpec:
    path = folder / "config.json"
    raw, checkpoint = read_json(path), survey_uni(folder)
    side, wording = llada2_uni.side_of(raw, checkpoint.vq_config.factor, path), llada2_uni.WORDING
    return ModelSpec(format=Format.LLADA2_UNI, checkpoint=checkpoint, wording=wording, side=side, fold=1, released=raw)


def _spec_of_released(folder: Path) -> ModelSpec:
    path = folder / "config.json"
    raw, checkpoint = read_json(path), survey_lavida_o(folder)
    own = raw.get(OWN_BLOCK) or {}  # checked by the survey
    side, named = own.get("side", SIDE), own.get("wording", "released")
    if side % (2 * checkpoint.vq_config.factor):
        raise CheckpointError(
            f"{path}: side {side} is not a multiple of {2 * checkpoint.vq_config.factor} pixels; change unmask.side"
        )
    vision = checkpoint.config.vision
    if named != "released" and vision and vision.image != side:
        raise CheckpointError(
            f"{path}: a compact model reads pictures of the size that it generates, got views of {vision.image} and pictures of "
            f"{side} pixels; change unmask.vision or unmask.side"
        )
    if named != "released":
        checkpoint = replace(
            checkpoint, dtype=torch.float32
        )  # our models compute in float32, whatever their storage type
    return ModelSpec(
        format=Format.RELEASED, checkpoint=checkpoint, wording=WORDINGS[named], side=side, fold=2, released=raw
    )


def open_parts(found: ModelSpec, weights: Weights) -> Parts:
    """The parts of a model, with no weights loaded. CheckpointError if the text tokenizer does not match the model."""
    folder = found.checkpoint.place
    if found.format is Format.MMADA:
        return mmada.mmada_parts(weights, found.released)
    if found.format is Format.DIMOO:
        return lumina_dimoo.dimoo_parts(weights, found.released)
    if found.format is Format.LLADA2_UNI:
        return llada2_uni.uni_parts(weights, found.released)
    if found.format is Format.RELEASED:
        text = released.read_text(folder, found.released)
    elif found.format in (Format.LAVIDA, Format.REDIFF, Format.DIMPLE):
        text = _family_text(found)
        if text.size > (size := found.checkpoint.config.vocab_size):  # the embedding may have spare rows
            raise CheckpointError(f"{folder}: the tokenizer has {text.size} ids and the model {size}")
    else:
        text = Text.load(folder / "tokenizer.json")
        if text.size != (size := found.checkpoint.config.vocab_size):
            raise CheckpointError(
                f"{folder}: the tokenizer has {text.size} ids and the model {size}; use both files of the same model"
            )
    net, vq = found.checkpoint.modules()
    net.mask_id = text[MASK]
    pack(net)
    parts = Parts(
        text=text,
        net=net,
        vq=vq,
        wording=found.wording,
        side=found.side,
        fold=found.fold,
        weights=weights,
        vocabulary=read_vocabulary(folder),
    )
    if found.format is Format.LAVIDA:
        return lavida.published(parts, folder)
    if found.format is Format.REDIFF:
        return rediff.published(parts, folder)
    if found.format is Format.DIMPLE:
        return dimple.published(parts, folder)
    return released.published(parts, found.released) if found.wording == RELEASED else parts


def _family_text(found: ModelSpec) -> Text:
    """The tokenizer of a model that reads pictures and writes text."""
    folder, mask_id = found.checkpoint.place, found.checkpoint.mask_id
    if found.format is Format.LAVIDA:
        return lavida.read_text(folder)
    return rediff.read_text(folder, mask_id) if found.format is Format.REDIFF else dimple.read_text(folder, mask_id)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The words that a model knows, from its vocabulary.json; None without the file. CheckpointError for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Vocabulary.parse(read_text(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a vocabulary: {error}; copy that of the model, or remove the file"
        ) from error


def needs_of(task: str) -> frozenset[str]:
    """The parts that a task needs, by its name at the command line; ``all``: every part. ValueError for an unknown name."""
    known = {
        "generate": generate.Generate.needs,
        "plan": generate.Generate.needs | planning.PlanImage.needs,
        "reflect": reflecting.NEEDS,
        "converse": conversing.NEEDS,
        "edit": edit.Edit.needs,
        "edit-plan": edit.Edit.needs | planning.PlanEdit.needs,
        "edit-reflect": revising.NEEDS,
        "infill": infill.Infill.needs,
        "infill-text": understand.FillText.needs,
        "ask": understand.Ask.needs,
        "ground": ground.Ground.needs,
        ALL: EVERYTHING,
    }
    if task not in known:
        raise ValueError(f"no task is called {task!r}; choose from {', '.join(known)}")
    return known[task]


def read_config(folder: Path) -> Json:
    """config.json -> {"model": ElasticConfig, "vq": VQConfig, "wording", "side", "fold"}. CheckpointError for a missing or wrong field."""
    found = read_own(folder)
    setting = {"wording": WORDINGS[found.wording], "side": found.side, "fold": found.fold}
    return {"model": found.model, "vq": found.vq, **setting}


def vision_fields(config: VisionConfig) -> Json:
    """The fields of a vision tower in a configuration; how it reduces a view only where it is not by a convolution."""
    return {name: value for name, value in asdict(config).items() if (name, value) != ("reduction", "conv")}


def write_config(folder: Path, model: ElasticConfig, vq: VQConfig, *, wording: str, side: int, fold: int) -> None:
    """The inverse of ``read_config``. The checksums of the weights are written afterwards (``checksums.write_sums``)."""
    fields = {name: value for name, value in asdict(model).items() if value or name not in _OTHER_TRUNKS}
    if model.vision:
        fields["vision"] = vision_fields(model.vision)
    if not (model.text_registers or model.code_registers):  # a dense model's file reads as before there were registers
        fields = {name: value for name, value in fields.items() if "register" not in name}
    if model.rope_factor == 1:
        del fields["rope_factor"]
    value = {"model": fields, "vq": asdict(vq), "wording": wording, "side": side, "fold": fold}
    write_text(folder / "config.json", json.dumps(value, indent=1) + "\n")


def fit_own(module: nn.Module, folder: Path, name: str) -> dict[str, Stored]:
    """Where our files store each parameter of a module. CheckpointError for a missing, unexpected or mismatched one."""
    return _fitted(module, tensors_of(folder, name), folder)


def _fitted(module: nn.Module, found: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    own = module.state_dict()
    compare(own, found).refuse(folder, unexpected=True)
    return {key: found[key] for key in own}
