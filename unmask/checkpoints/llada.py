"""The layout of LLaDA-8B Base, Instruct and 1.5 on disk -> our network without a generation branch (Nie et al. 2025, arXiv 2502.09992).

Public idea: ``survey_llada(folder) -> Checkpoint`` from the safetensors headers, without an image tokenizer. LaViDa-O inherited its
understanding branch from LLaDA, names included, so the name map is that of ``lavida_o`` without the generation branch. The three
models differ only in their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import elastic, refuse_unfit
from unmask.checkpoints.lavida_o import (
    TRUNK_ONLY,
    TrunkFields,
    fit,
    mask_row,
    names,
    plain,
    refuse_unsupported,
    released_names,
    trunk,
)
from unmask.checkpoints.schema import fields, invalid, read_json
from unmask.checkpoints.stream import CheckpointError, Stored, read, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.text import Text, TokenizerError
from unmask.tokens.vq import VQConfig

_COMPARED = 4  # rows of the embedding and of the head


def is_llada(raw: Json) -> bool:
    """Whether a config.json is of this family and not of LaViDa-O, which has a second branch."""
    return raw.get("model_type") == "llada" and (raw.get("dual_tower") is None or raw["dual_tower"] is False)


class _Llada(TrunkFields):
    weight_tying: bool | None = None
    tie_word_embeddings: bool | None = None
    max_sequence_length: Annotated[int, Field(ge=1, le=2**24)] = 4096


def read_config(raw: Json, path: Path) -> ElasticConfig:
    """config.json -> ElasticConfig. CheckpointError for unsupported, wrong and missing fields."""
    refuse_unsupported(raw, TRUNK_ONLY)
    found = fields(_Llada, raw, path)
    text = {"gen_width": 0, "gen_mlp": 0, "joint_layers": found.n_layers, "codes": 0, "code_rows": 0, "vision": None}
    return elastic(path, trunk(found, path) | text)


def _names(raw: Json, config: ElasticConfig, found: Mapping[str, Stored]) -> dict[str, str]:
    """The name map of the family; where the head is tied, it is read from the embedding.

    ``weight_tying`` is the family's own field. Where it is not set, a missing head counts as tied too, as transformers has it, unless both
    fields deny that.
    """
    mapping, head = names(config), "text_head.weight"
    denied = raw.get("weight_tying") is False and raw.get("tie_word_embeddings") is False
    if raw.get("weight_tying") or (mapping[head] not in found and not denied):
        mapping[head] = mapping["embed.weight"]
    return mapping


def _refuse_other_head(found: dict[str, Stored], called: Mapping[str, str], path: Path) -> None:
    """Drop the head of a tied model, which is a copy of the embedding. CheckpointError where the first rows differ: it is not tied."""
    head, embedding = found.pop(called["text_head.weight"], None), found.get(called["embed.weight"])
    if head is None or embedding is None:
        return
    if head.shape != embedding.shape or not read(head, rows=_COMPARED).equal(read(embedding, rows=_COMPARED)):
        raise invalid(path, "weight_tying is true, but the head is not the embedding")


def survey_llada(folder: Path) -> Checkpoint:
    """Contents of a folder in LLaDA's layout; no weights are read. CheckpointError if something does not fit."""
    path = folder / "config.json"
    raw = read_json(path)
    config = read_config(raw, path)
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    refuse_unfit(config, found, released_names(config), path)
    if any("_proj_vision." in name for name in found):
        raise invalid(path, "dual_tower is not true, but the weights have a generation branch")
    with unfilled():
        net = Elastic(config, mask_id=0)
    mask_id = mask_row(raw, config, path)
    mapping = _names(raw, config, found)
    if mapping["text_head.weight"] != names(config)["text_head.weight"]:
        _refuse_other_head(found, names(config), path)
    stored = fit(net, found, mapping, folder)
    return Checkpoint(place=folder, config=config, vq_config=VQConfig(), mask_id=mask_id, net=stored, vq={})


def released_text(folder: Path, raw: Json, control: tuple[str, ...], same: Mapping[str, str], hint: str) -> Text:
    """The tokenizer of a model on LLaDA's trunk. ``same``: fields of ``raw``, its config.json, and the tokens that they have the ids of.

    CheckpointError if the tokenizer is missing, lacks a token of ``control`` (the message ends in ``hint``) or has other ids.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"no tokenizer.json in {folder}; copy the one released with the weights")
    try:
        text = Text.load(path, control)
    except TokenizerError as error:
        raise CheckpointError(
            f"{str(error).rpartition('; ')[0] or error}; {hint}"
        ) from error  # its hint is of any model
    for field, name in same.items():
        if (said := raw.get(field, text[name])) != text[name]:
            raise CheckpointError(
                f"{name} is {text[name]} in the tokenizer and {said} ({field}) in config.json; use both files of the same model"
            )
    return text
