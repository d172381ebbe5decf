"""MMaDA's layout on disk -> our network with codes in the text vocabulary, and MAGVIT-v2 (Yang et al. 2025, arXiv 2505.15809).

Public idea: ``survey_mmada(folder) -> Checkpoint`` from config.json, the tokenizer and the safetensors headers. The network is LLaDA's,
names included. The image tokenizer is a repository of its own (showlab/magvitv2) and lies in the folder ``magvitv2/``. Code 0 has the id
that follows the tokenizer's last one; ``llm_vocab_size`` is larger, and with it everything would load and draw noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import OWN_BLOCK, fit, names, plain, read_json
from unmask.checkpoints.llada import read_config
from unmask.checkpoints.stream import CheckpointError, Stored, other_weights, read, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.magvit import MagvitConfig, MagvitHalf
from unmask.tokens.mmada import CONTROL, RESERVED
from unmask.tokens.text import EOS, MASK, Text, TokenizerError

VQ_FOLDER, VQ_REPOSITORY = "magvitv2", "showlab/magvitv2"
_VQ_FILES = ("pytorch_model", "diffusion_pytorch_model", "model")  # names that the weights may have
SIDE, TEXT_LENGTH = 512, 512  # pixels of the released models; tokens of the prompt of a drawing
# The released embedding has 126,464 rows of LLaDA, of which its tokenizer uses the first 126,349.
_RELEASED_ROWS, _RELEASED_IDS = 126_464, 126_349


def is_mmada(raw: Json) -> bool:
    """Whether a config.json is of this family."""
    return raw.get("model_type") == "mmada"


def survey_mmada(folder: Path) -> Checkpoint:
    """Contents of an MMaDA folder; no weights are read. CheckpointError if a part is missing or something does not fit."""
    raw, vq_folder = read_json(folder / "config.json"), folder / VQ_FOLDER
    if not vq_folder.is_dir():
        raise CheckpointError(
            f"{folder} has no image tokenizer (folder {VQ_FOLDER}); download {VQ_REPOSITORY} and put it there"
        )
    vq_config, vq_found = _vq(vq_folder)
    text = read_text(folder, raw)
    config = _with_codes(read_config(raw), raw, text.size, vq_config.num_vq_embeddings)
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    with unfilled():
        net, vq = Elastic(config, mask_id=0), vq_config.build()
    called = {name: name.replace("conv_shortcut", "nin_shortcut") for name in vq.state_dict()}
    return Checkpoint(
        place=folder,
        config=config,
        vq_config=vq_config,
        mask_id=text[MASK],
        net=fit(net, found, names(config), folder),
        vq=fit(vq, vq_found, called, vq_folder),
    )


def read_text(folder: Path, raw: Json) -> Text:
    """The text tokenizer of an MMaDA folder. CheckpointError if it is missing or has other special ids than ``raw``, its config.json."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"no tokenizer.json in {folder}; copy the one released with the weights")
    try:
        text = Text.load(path, CONTROL)
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {error}; use the one of this model, which is LLaDA's") from error
    for field, name in (("mask_token_id", MASK), ("eos_token_id", EOS)):
        if (said := raw.get(field, text[name])) != text[name]:
            raise CheckpointError(
                f"{name} is {text[name]} in the tokenizer and {said} ({field}) in config.json; use both files of the same model"
            )
    ids = [text[name] for name in RESERVED]
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise CheckpointError(
            f"{path}: the ids of {RESERVED[0]} to {RESERVED[-1]} are not consecutive; use LLaDA's tokenizer"
        )
    return text


def sizes_of(raw: Json, config: MagvitConfig) -> tuple[int, int]:
    """Pixels along a side of a generated picture, and tokens of the prompt of a drawing.

    ``num_vq_tokens`` of the released config.json may be that of an earlier stage, so pictures of its tokenizer are 512 pixels. The block
    ``unmask`` of config.json may set ``side`` and ``text_length``. CheckpointError for a picture that the tokenizer cannot make.
    """
    own, codes = raw.get(OWN_BLOCK, {}), raw.get("num_vq_tokens", 0)
    own = own if isinstance(own, dict) else {}
    grid = math.isqrt(codes) if isinstance(codes, int) and codes > 0 else 0
    side = own.get("side", SIDE if config == MagvitConfig() else grid * config.factor)
    length = own.get("text_length", TEXT_LENGTH)
    if not (
        isinstance(side, int) and side > 0 and side % config.factor == 0 and isinstance(length, int) and length > 2
    ):
        raise CheckpointError(
            f"config.json: a picture of {side!r} pixels (from num_vq_tokens {codes!r} or unmask.side) and a prompt of {length!r} tokens "
            f"(unmask.text_length) are not possible; give a multiple of {config.factor} pixels and at least 3 tokens"
        )
    return side, length


def _with_codes(config: ElasticConfig, raw: Json, ids: int, codes: int) -> ElasticConfig:
    """The text model with ``codes`` rows after the tokenizer's ``ids``. CheckpointError where they are not where the model learned them."""
    rows, text_rows = config.vocab_size, raw.get("llm_vocab_size", _RELEASED_ROWS)
    if (said := raw.get("codebook_size", codes)) != codes:
        raise CheckpointError(
            f"config.json: codebook_size is {said!r}, and the image tokenizer has {codes} codes; use both of the same model"
        )
    if not isinstance(text_rows, int) or ids > text_rows or (text_rows == _RELEASED_ROWS and ids != _RELEASED_IDS):
        wanted = _RELEASED_IDS if text_rows == _RELEASED_ROWS else f"at most {text_rows!r} (llm_vocab_size)"
        raise CheckpointError(
            f"the codes begin at the tokenizer's length, and the tokenizer has {ids} ids, wanted {wanted}; use the tokenizer of this model"
        )
    if raw.get("num_new_special_tokens", 0):
        raise CheckpointError(
            f"config.json: num_new_special_tokens {raw['num_new_special_tokens']!r} is not supported; the special tokens are LLaDA's"
        )
    if ids + codes > rows:
        raise CheckpointError(
            f"the embedding has {rows} rows, too few for {ids} ids of text and {codes} codes; use config.json and tokenizer of this model"
        )
    return replace(config, codes=codes, first_code=ids)


def _vq(folder: Path) -> tuple[MagvitConfig, dict[str, Stored]]:
    """Shape and tensors of the image tokenizer, without its two tables, which follow from the number of bits and are checked."""
    config = _vq_config(read_json(folder / "config.json"))
    name = next((n for n in _VQ_FILES if list(folder.glob(f"{n}*.safetensors"))), None)
    if name is None:
        what = other_weights(folder) or f"download {VQ_REPOSITORY} again"
        raise CheckpointError(f"no weights of the image tokenizer in {folder}; {what}")
    found = tensors_of(folder, name)
    places = found.pop("quantize.power_vals", None)
    found.pop("quantize.embedding", None)
    wanted = [2**i for i in reversed(range(config.bits))]
    if places is not None and read(places, dtype=torch.int64).tolist() != wanted:
        raise CheckpointError(
            f"{folder}: quantize.power_vals gives the bits of a code another order; wanted {wanted[:2]} …"
        )
    return config, found


def _vq_config(raw: Json) -> MagvitConfig:
    """The released file names no sizes, which are then the released ones. CheckpointError for another class or invalid sizes."""
    if raw.get("_class_name", "MAGVITv2") != "MAGVITv2":
        raise CheckpointError(
            f"{VQ_FOLDER}/config.json is of {raw['_class_name']!r}; the image tokenizer of MMaDA is MAGVITv2 ({VQ_REPOSITORY})"
        )
    released = MagvitConfig()
    try:
        halves = {name: _half(raw.get(name), getattr(released, name)) for name in ("encoder", "decoder")}
        bits = {raw[name]["z_channels"] for name in halves if isinstance(raw.get(name), dict)} or {released.bits}
        if len(bits) > 1:
            raise ValueError(f"z_channels differ: {sorted(bits)}")
        return MagvitConfig(**halves, bits=bits.pop())
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{VQ_FOLDER}/config.json: invalid sizes: {error}; each of encoder and decoder has ch, ch_mult, num_res_blocks and z_channels"
        ) from error


def _half(raw: Mapping[str, object] | None, released: MagvitHalf) -> MagvitHalf:
    if raw is None:
        return released
    multiples, blocks = (tuple(int(n) for n in raw[field]) for field in ("ch_mult", "num_res_blocks"))  # type: ignore[union-attr]
    return MagvitHalf(width=int(raw["ch"]), multiples=multiples, blocks=blocks)  # type: ignore[call-overload]
