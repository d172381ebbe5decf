"""The layout of DIFFA on disk: a Whisper encoder and two adapters beside an unchanged LLaDA (arXiv 2507.18452).

Public ideas: ``survey_diffa(folder) -> Checkpoint`` of the language model in the folder ``llm``, and ``read_speech(folder)``, the encoder
and the adapters. The release is three downloads: put LLaDA-8B-Instruct, with its tokenizer, into ``llm``. Its config.json says little about
the adapters, so their sizes are read from the safetensors headers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.llada import survey_llada
from unmask.checkpoints.schema import Fields, Heads, Layers, Width, fields, invalid, read_json, refuse_layers
from unmask.checkpoints.store import compare, load_module
from unmask.checkpoints.stream import CheckpointError, Stored, tensors_of
from unmask.json_types import Json
from unmask.models.speech import SpeechConfig, SpeechReader
from unmask.models.unfilled import unfilled

LLM = "llm"  # the folder of the language model
_CLASS = "DIFFAModel"


class WhisperFields(Fields):
    """``whisper_config`` of config.json."""

    d_model: Width
    encoder_layers: Layers
    encoder_attention_heads: Heads
    encoder_ffn_dim: Width
    num_mel_bins: Annotated[int, Field(ge=1, le=1024)]
    max_source_positions: Annotated[int, Field(ge=8, le=2**16)]
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False


class DiffaFields(Fields):
    """config.json; the fields of the language model are read from its own folder."""

    whisper_config: WhisperFields
    prompt_size: Literal[64] = 64


def is_diffa(raw: Json) -> bool:
    """Whether a config.json is of this family."""
    classes = raw.get("architectures")
    named = isinstance(classes, list) and _CLASS in classes
    return named or (isinstance(raw.get("whisper_config"), dict) and isinstance(raw.get("llm_config"), dict))


def survey_diffa(folder: Path) -> Checkpoint:
    """The language model's contents; no weights are read. CheckpointError if something does not fit, the adapters included."""
    if not (folder / LLM / "config.json").exists():
        raise CheckpointError(
            f"{folder} has no {LLM}/config.json; put the files of LLaDA-8B-Instruct into its folder {LLM}"
        )
    checkpoint = survey_llada(folder / LLM)
    config = speech_config(folder)
    with unfilled():
        compare(SpeechReader(config).state_dict(), tensors_of(folder, "model")).refuse(folder, unexpected=True)
    if config.out != checkpoint.config.width:
        raise CheckpointError(
            f"{folder}: the adapters write {config.out} channels, and {LLM} has {checkpoint.config.width}; "
            "use the language model that the adapters were trained with"
        )
    return checkpoint


def speech_config(folder: Path) -> SpeechConfig:
    """The sizes of encoder and adapters, from config.json and the safetensors headers."""
    path = folder / "config.json"
    found = fields(DiffaFields, read_json(path), path).whisper_config
    stored = tensors_of(folder, "model")
    refuse_layers("whisper_config.encoder_layers", found.encoder_layers, stored, "whisper_model.layers", path)
    queries, taps = _shape(stored, "acoustic_connector.layer_weights", 2, folder)
    layers = [name for name in stored if name.startswith("acoustic_connector.qformer.layer.")]
    if taps * 3 - 1 > found.encoder_layers:
        raise invalid(
            path, f"whisper_config.encoder_layers {found.encoder_layers} has not the {taps} layers 2, 5, 8 ..."
        )
    try:
        return SpeechConfig(
            mels=found.num_mel_bins,
            width=found.d_model,
            layers=found.encoder_layers,
            heads=found.encoder_attention_heads,
            mlp=found.encoder_ffn_dim,
            positions=found.max_source_positions,
            out=_shape(stored, "semantic_connector.layernorm.weight", 1, folder)[0],
            taps=tuple(range(2, 3 * taps, 3)),
            queries=queries,
            query_layers=len({name.split(".")[3] for name in layers}),
            query_mlp=_shape(stored, "acoustic_connector.qformer.layer.0.intermediate.dense.weight", 2, folder)[0],
            prompts=_shape(stored, "trainable_prompts.weight", 2, folder)[0],
        )
    except ValueError as error:
        raise invalid(path, f"whisper_config: {error}") from error


def _shape(stored: dict[str, Stored], name: str, dims: int, folder: Path) -> tuple[int, ...]:
    if name not in stored or len(stored[name].shape) != dims:
        what = f"has the shape {stored[name].shape}" if name in stored else "is missing"
        raise CheckpointError(f"the weights in {folder} are not those of DIFFA: {name} {what}")
    return stored[name].shape


def read_speech(folder: Path) -> SpeechReader:
    """Encoder and adapters of a surveyed folder with their weights, in float32 on the CPU. CheckpointError if something does not fit."""
    return load_module(SpeechReader(speech_config(folder)), folder).requires_grad_(False).eval()
