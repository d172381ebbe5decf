"""Folders that unmask does not run: models of other families, and files that are not a model in safetensors.

``refuse_foreign(folder)`` is a CheckpointError that says what a folder or file is. Families are told by ``architectures`` and
``model_type`` of config.json, because several call themselves ``llada``: LLaDA-MoE by its experts, Lumina-DiMOO by its class, by rows for
image codes in the embedding, or by an image tokenizer beside the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unmask.checkpoints.dimple import is_dimple
from unmask.checkpoints.dream import is_dream
from unmask.checkpoints.lavida import is_lavida
from unmask.checkpoints.llada2 import is_llada2
from unmask.checkpoints.rediff import is_rediff
from unmask.checkpoints.stream import OTHER_WEIGHTS, CheckpointError, how_to_convert
from unmask.files import FileRefused, read_json
from unmask.json_types import Json

RUNS = (
    "LaViDa-O, LLaDA-8B (Base, Instruct, 1.5), LLaDA2.0, LLaDA2.1, LLaDA2.0-Uni, MMaDA, Lumina-DiMOO, Dream-7B (Base, Instruct, Coder), "
    "LaViDa, LLaDA-V, ReDiff, Dimple-7B and its own models"
)
_LLADA_IDS, _IMAGE_CODES = 126_349, 8_192  # ids of LLaDA's tokenizer; its embedding has 126,464 rows
_SHOWN = 80  # characters of a name in an error
_SHARD = re.compile(r"(model|vq)-\d+-of-\d+", re.ASCII)
_IMAGE_TOKENIZER = "vqvae"  # folder beside the network

# Part of a class or model_type, in lower case and without "_", "-" and "." -> name. The first that fits counts.
_NAMES = {
    "multimodalgeneration": "Lumina-DiMOO",
    "lumina": "Lumina",
    "llada2moeveomni": "LLaDA-Image",
    "llada2": "LLaDA2",
    "lladamoe": "LLaDA-MoE",
    "llavalladaformaskeddiffusion": "LaViDa",
    "llavadream": "LaViDa",
    "lavida": "LaViDa",
    "llavallada": "LLaDA-V or of ReDiff, which has its layout",
    "lladav": "LLaDA-V",
    "rediff": "ReDiff",
    "diffa": "DIFFA",
    "dreamvl": "Dream-VL",
    "dream": "Dream",
    "dimple": "Dimple",
    "llavaonevision": "LLaVA-OneVision",
    "llavanext": "LLaVA-NeXT",
    "llava": "LLaVA",
    "sdar": "SDAR",
    "bd3lm": "BD3-LM",
    "mdlm": "MDLM",
    "showo": "Show-o",
    "unidisc": "UniDisc",
    "janus": "Janus",
    "bagel": "BAGEL",
    "qwen25vl": "Qwen2.5-VL",
    "qwen25omni": "Qwen2.5-Omni",
    "qwen2vl": "Qwen2-VL",
    "qwen3vl": "Qwen3-VL",
    "qwen3": "Qwen3",
    "qwen2": "Qwen2 or Qwen2.5",
    "qwen": "Qwen",
    "deepseek": "DeepSeek",
    "llama4": "Llama 4",
    "mllama": "Llama 3.2 Vision",
    "llama": "Llama",
    "mixtral": "Mixtral",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "phi3": "Phi-3",
    "gpt2": "GPT-2",
    "roberta": "RoBERTa",
    "bert": "BERT",
    "siglip": "SigLIP",
    "clip": "CLIP",
    "stablediffusionxl": "Stable Diffusion XL",
    "stablediffusion3": "Stable Diffusion 3",
    "stablediffusion": "Stable Diffusion",
    "flux": "FLUX",
    "pixart": "PixArt",
    "amused": "aMUSEd",
    "meissonic": "Meissonic",
}


def refuse_foreign(place: Path) -> None:
    """CheckpointError for a file, a model of another family, an adapter, and weights that are not in safetensors; else nothing."""
    if place.is_file():
        raise CheckpointError(_single_file(place))
    if (place / "config.json").exists():
        refuse_family(place, _json(place / "config.json"))
    elif (place / "model_index.json").exists():
        kind = _json(place / "model_index.json").get("_class_name", "")
        raise CheckpointError(_not_ours(place, _named(str(kind)) or "a pipeline of diffusers", f"diffusers, {kind!r}"))
    elif (place / "adapter_config.json").exists():
        base = _json(place / "adapter_config.json").get("base_model_name_or_path") or "MODEL"
        raise CheckpointError(
            f"{place} holds a LoRA adapter (adapter_config.json) and no model; "
            f"use the adapter with its base model: --model {base} --lora {place}"
        )


def refuse_family(folder: Path, raw: Json) -> None:
    """CheckpointError for a config.json of another family; nothing for ours and for one that names no family."""
    if _ours(raw, folder):
        return
    if isinstance(part := raw.get("_class_name"), str):
        raise CheckpointError(
            _not_ours(folder, _named(part) or "a part of a diffusers pipeline", f"diffusers, {part[:_SHOWN]!r}")
        )
    kind, classes = _kind(raw), ", ".join(_classes(raw))
    if not kind and not classes:
        return  # reading it says what is wrong
    told = f"model_type {kind!r}" if kind else f"architectures {classes!r}"
    raise CheckpointError(_not_ours(folder, family_of(raw, folder), told))


def family_of(raw: Json, folder: Path) -> str:
    """The name of a family as its makers write it; for one that is not known, its class or model_type."""
    kind, classes = _kind(raw), _classes(raw)
    if _named(kind) == "LLaDA-Image":  # its class has the name of LLaDA2's
        return "LLaDA-Image"
    if kind == "llada" and any("experts" in field for field in raw):
        return "LLaDA-MoE"
    if kind == "llada" and _has_image_codes(raw, folder):
        return "Lumina-DiMOO"
    if kind == "llada" and not any(_named(name) for name in classes):
        return "LLaDA in another layout"
    return next((name for word in (*classes, kind) if (name := _named(word))), kind or classes[0])


def _ours(raw: Json, folder: Path) -> bool:
    if raw.get("dual_tower") or ("model" in raw and "vq" in raw) or raw.get("recipe") or _known(raw):
        return True
    other = [name for name in _classes(raw) if _named(name)]
    renamed = "hidden_size" in raw and "d_model" not in raw
    if raw.get("model_type") == "mmada" or is_dimoo(raw, folder):
        return True
    return raw.get("model_type") == "llada" and not (renamed or other or _has_image_codes(raw, folder))


def _known(raw: Json) -> bool:
    return is_dream(raw) or is_lavida(raw) or is_rediff(raw) or is_dimple(raw) or is_llada2(raw)


def is_dimoo(raw: Json, folder: Path) -> bool:
    """Whether a folder is Lumina-DiMOO's: by its class, by rows for image codes, or by the image tokenizer beside the network."""
    classes = [name for word in _classes(raw) if (name := _named(word))]
    other = any("experts" in field for field in raw) or any(name != "Lumina-DiMOO" for name in classes)
    ours = raw.get("dual_tower") or raw.get("model_type") != "llada" or "d_model" not in raw
    return not ours and not other and ("Lumina-DiMOO" in classes or _has_image_codes(raw, folder))


def _has_image_codes(raw: Json, folder: Path) -> bool:
    """Whether a folder that calls itself LLaDA holds image codes in the text vocabulary, which LLaDA's own models do not."""
    rows = [raw.get(field) for field in ("vocab_size", "embedding_size")]
    enough = any(isinstance(n, int) and n >= _LLADA_IDS + _IMAGE_CODES for n in rows)
    return enough or (folder / _IMAGE_TOKENIZER).is_dir()


def _classes(raw: Json) -> list[str]:
    names = raw.get("architectures")
    return [name[:_SHOWN] for name in names[:4] if isinstance(name, str)] if isinstance(names, list) else []


def _kind(raw: Json) -> str:
    """``model_type``; "" for what is no text."""
    kind = raw.get("model_type")
    return kind[:_SHOWN] if isinstance(kind, str) else ""


def _named(word: str) -> str:
    plain = "".join(c for c in word.lower() if c not in "_-. ")
    return next((name for part, name in _NAMES.items() if part in plain), "")


def _not_ours(place: Path, name: str, told: str) -> str:
    return f"{place}: this is a checkpoint of {name} ({told}), which unmask does not run yet; it runs {RUNS}"


def _single_file(path: Path) -> str:
    if path.suffix in (".gguf", ".safetensors"):
        what = "a GGUF file" if path.suffix == ".gguf" else "a single file of weights"
        hint = (
            "get the model in safetensors"
            if path.suffix == ".gguf"
            else "give its folder, which needs a config.json too"
        )
        return f"{path} is {what}, not a model folder; {hint}"
    if any(path.match(kind) for kind in OTHER_WEIGHTS):
        return f"{path} is a pickle, which can run code, and unmask reads safetensors only; {how_to_convert(path, path.name)}"
    return f"{path} is a file, not a model folder; give its folder"


def _json(path: Path) -> Json:
    """A JSON object; {} for anything else, which reading it properly reports."""
    try:
        found = read_json(path)
    except FileRefused:
        return {}
    return found if isinstance(found, dict) else {}


def not_part_of_model(folder: Path, names: set[str]) -> Iterator[str]:
    """The names among files of weights (without their endings) that do not belong to the model: measurements, adapters and others."""
    own = names & {"model", "vq"}
    for name in sorted(name for name in names - own if not _SHARD.fullmatch(name)):
        if name in ("expected", "adapter_model") or (own and (folder / "config.json").exists()):
            yield name
