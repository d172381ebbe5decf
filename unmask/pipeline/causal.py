"""A causal language model as a folder in Dream's layout, from which a masked diffusion model is trained.

Public idea: ``as_dream(source, out)`` for checkpoints of transformers with the layers of Qwen2 or Llama (model_type qwen2, llama or
mistral). The network computes the same function, up to the rows of control tokens: Dream has the same layers with biases of q, k and v,
which are zero where the model has none. Control tokens of ChatML and ``<|mask|>`` are added to the tokenizer where it lacks them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from unmask.checkpoints.dream import DreamFields, read_trunk, trunk_names
from unmask.checkpoints.hub import fetch, is_hub_name
from unmask.checkpoints.schema import fields, read_json
from unmask.checkpoints.store import save_tensors
from unmask.checkpoints.stream import CheckpointError, Stored, read, tensors_of
from unmask.json_types import Json
from unmask.tokens.qwen import SPELLED, tokenizer_in
from unmask.tokens.text import EOS, EOT, HEADER, MASK
from unmask.writing import whole_folder, write_text, write_whole

CAUSAL = ("qwen2", "llama", "mistral")
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SHARD = 5 * 2**30  # bytes
_KEPT = (
    *(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act"),
)


def is_causal(raw: Json) -> bool:
    """Whether a config.json is of a causal language model that can be adapted."""
    return raw.get("model_type") in CAUSAL


def causal_in(name: str) -> Path | None:
    """The folder of a causal model, given as a folder or as ``owner/name`` in the hub's cache; None for any other model.

    CheckpointError for a config.json that cannot be read and for a hub model that is not in the cache.
    """
    there = Path(name).exists()
    folder = fetch(name, download=False) if not there and is_hub_name(name) else Path(name)
    if not (folder / "config.json").exists():
        return None
    raw = read_json(folder / "config.json")
    return folder if isinstance(raw, dict) and is_causal(raw) else None


def as_dream(source: Path, out: Path) -> None:
    """Write ``out``, whole or not at all. The model is held in memory once.

    CheckpointError for another kind of model, for layers that Dream has not (scaled rotary positions, sliding windows), and for damaged
    files; TokenizerError where the tokenizer cannot be read.
    """
    path = source / "config.json"
    raw = read_json(path)
    if not is_causal(raw):
        raise CheckpointError(
            f"{path}: model_type {raw.get('model_type')!r} is not a causal model that can be adapted; wanted {', '.join(CAUSAL)}"
        )
    _refuse_windows(raw, path)
    tokenizer = tokenizer_in(source)
    before = tokenizer.get_vocab_size(with_added_tokens=True)
    added = _with_control(tokenizer)
    found = fields(DreamFields, {**raw, "mask_token_id": 0}, path)
    if before > found.vocab_size:
        raise CheckpointError(f"{source}: the tokenizer has {before} ids and the model {found.vocab_size}")
    rows = max(found.vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
    config = {name: raw[name] for name in _KEPT if name in raw}
    config |= {"model_type": "Dream", "architectures": ["DreamModel"], "vocab_size": rows, "tie_word_embeddings": False}
    config |= {"mask_token_id": tokenizer.token_to_id(SPELLED[MASK])}
    wanted = trunk_names(read_trunk(config, path)[0])
    tensors = _tensors(tensors_of(source, "model"), list(wanted.values()), config, added, source)
    with whole_folder(out) as folder:
        write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")
        write_whole(folder / "tokenizer.json", lambda part: tokenizer.save(str(part)))
        save_tensors(tensors, folder, shard=_SHARD)


def _refuse_windows(raw: Json, path: Path) -> None:
    """CheckpointError for attention in windows, which Mistral may have."""
    if raw.get("model_type") == "mistral" and raw.get("sliding_window") is not None:
        raise CheckpointError(
            f"{path}: sliding_window {raw['sliding_window']} is not supported; wanted a model without one"
        )


def _with_control(tokenizer: Tokenizer) -> list[int]:
    """Add the control tokens that the tokenizer lacks; the ids of the new ones."""
    wanted = (EOS, SPELLED[HEADER], SPELLED[EOT], SPELLED[MASK])
    missing = [name for name in wanted if tokenizer.token_to_id(name) is None]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in missing])
    return [i for name in missing if (i := tokenizer.token_to_id(name)) is not None]


def _tensors(
    stored: dict[str, Stored], wanted: list[str], config: Json, added: list[int], source: Path
) -> dict[str, Tensor]:
    """The tensors by Dream's names, with the types that they have. CheckpointError for missing ones and for layers that Dream has not."""
    biases = {name for name in wanted if name.endswith("_proj.bias") and name not in stored}
    tied = {_HEAD: _EMBED} if _HEAD not in stored else {}
    names = {name: tied.get(name, name) for name in wanted if name not in biases}
    if missing := [name for name in names.values() if name not in stored]:
        raise CheckpointError(f"{source}: missing {missing[0]}; copy or download it again")
    strange = [name for name in stored if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if strange:
        raise CheckpointError(
            f"{source}: {strange[0]} is of no layer that can be adapted; wanted the layers of Qwen2 or Llama"
        )
    out = {name: read(stored[own]) for name, own in names.items()}
    for name in biases:
        weight = out[name.removesuffix("bias") + "weight"]
        out[name] = torch.zeros(len(weight), dtype=weight.dtype)
    for name in (_EMBED, _HEAD):
        out[name] = _with_rows(out[name], int(config["vocab_size"]), added)
    return out


def _with_rows(table: Tensor, rows: int, added: list[int]) -> Tensor:
    """A table of the vocabulary with ``rows`` rows; those of added tokens are the mean of the others."""
    mean = table.float().mean(0).to(table.dtype)
    grown = torch.cat([table, mean.expand(rows - len(table), -1)]) if rows > len(table) else table.clone()
    grown[added] = mean
    return grown
