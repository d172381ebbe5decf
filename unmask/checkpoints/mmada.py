"""MMaDA's layout on disk -> our network with codes in the text vocabulary, and MAGVIT-v2 (Yang et al. 2025, arXiv 2505.15809).

Public idea: ``survey_mmada(folder) -> Checkpoint`` from config.json, the tokenizer and the safetensors headers. The network is LLaDA's,
names included. The image tokenizer is a repository of its own (showlab/magvitv2) and lies in the folder ``magvitv2/``. Code 0 has the id
that follows the tokenizer's last one; ``llm_vocab_size`` is larger, and with it everything would load and draw noise.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import refuse_unfit
from unmask.checkpoints.lavida_o import fit, names, plain, released_names
from unmask.checkpoints.llada import read_config, released_text
from unmask.checkpoints.schema import Fields, Rows, Width, fields, invalid, read_fields, read_json
from unmask.checkpoints.stream import CheckpointError, Stored, other_weights, read, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.models.unfilled import unfilled
from unmask.tokens.magvit import MagvitConfig, MagvitHalf
from unmask.tokens.mmada import CONTROL, RESERVED
from unmask.tokens.text import EOS, MASK, Text

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
    path, vq_folder = folder / "config.json", folder / VQ_FOLDER
    raw = read_json(path)
    if not vq_folder.is_dir():
        if (folder / "vqvae").is_dir():
            raise CheckpointError(
                f"{folder}: config.json is that of MMaDA, and vqvae is the image tokenizer of Lumina-DiMOO or LaViDa-O; use files of one "
                f"model (MMaDA's is {VQ_REPOSITORY}, in the folder {VQ_FOLDER})"
            )
        raise CheckpointError(
            f"{folder} has no image tokenizer (folder {VQ_FOLDER}); download {VQ_REPOSITORY} and put it there"
        )
    vq_config, vq_found = _vq(vq_folder)
    text = read_text(folder, raw)
    codes = vq_config.num_vq_embeddings
    config = _with_codes(read_config(raw, path), fields(_Codes, raw, path), text.size, codes, path)
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    refuse_unfit(config, found, released_names(config), path)
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
    same = {"mask_token_id": MASK, "eos_token_id": EOS}
    text = released_text(folder, raw, CONTROL, same, "use the one of this model, which is LLaDA's")
    ids = [text[name] for name in RESERVED]
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: the ids of {RESERVED[0]} to {RESERVED[-1]} are not consecutive; use LLaDA's tokenizer"
        )
    return text


class _Own(Fields):
    side: Annotated[int, Field(ge=1, le=2**14)] | None = None
    text_length: Annotated[int, Field(ge=3, le=2**16)] = TEXT_LENGTH


class _Codes(Fields):
    codebook_size: Rows | None = None
    llm_vocab_size: Rows = _RELEASED_ROWS
    num_new_special_tokens: int = 0
    num_vq_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    unmask: _Own | None = None


def sizes_of(raw: Json, config: MagvitConfig, path: Path = Path("config.json")) -> tuple[int, int]:
    """Pixels along a side of a generated picture, and tokens of the prompt of a drawing. ``path``: of ``raw``, for errors.

    ``num_vq_tokens`` of the released config.json may be that of an earlier stage, so pictures of its tokenizer are 512 pixels. The block
    ``unmask`` of config.json may set ``side`` and ``text_length``. CheckpointError for a picture that the tokenizer cannot make.
    """
    found = fields(_Codes, raw, path)
    own = found.unmask or _Own()
    side = SIDE if config == MagvitConfig() else math.isqrt(found.num_vq_tokens or 0) * config.factor
    side = side if own.side is None else own.side
    if side < 1 or side % config.factor:
        raise invalid(
            path,
            f"a picture of {side} pixels (num_vq_tokens {found.num_vq_tokens}, unmask.side {own.side}) has no whole number of codes of "
            f"{config.factor} pixels",
        )
    return side, own.text_length


def _with_codes(config: ElasticConfig, found: _Codes, ids: int, codes: int, path: Path) -> ElasticConfig:
    """The text model with ``codes`` rows after the tokenizer's ``ids``. CheckpointError where they are not where the model learned them."""
    rows, text_rows = config.vocab_size, found.llm_vocab_size
    if found.codebook_size not in (None, codes):
        raise invalid(path, f"codebook_size is {found.codebook_size}, and the image tokenizer has {codes} codes")
    if ids > text_rows or (text_rows == _RELEASED_ROWS and ids != _RELEASED_IDS):
        wanted = _RELEASED_IDS if text_rows == _RELEASED_ROWS else f"at most {text_rows} (llm_vocab_size)"
        raise CheckpointError(
            f"the codes begin at the tokenizer's length, and the tokenizer has {ids} ids, wanted {wanted}; use the tokenizer of this model"
        )
    if found.num_new_special_tokens:
        raise invalid(
            path,
            f"num_new_special_tokens {found.num_new_special_tokens} is not supported, the special tokens are LLaDA's",
        )
    if ids + codes > rows:
        raise invalid(path, f"the embedding has {rows} rows, too few for {ids} ids of text and {codes} codes")
    return replace(config, codes=codes, first_code=ids)


def _vq(folder: Path) -> tuple[MagvitConfig, dict[str, Stored]]:
    """Shape and tensors of the image tokenizer, without its two tables, which follow from the number of bits and are checked."""
    config = _vq_config(folder / "config.json")
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


class _Half(Fields):
    ch: Width
    ch_mult: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)]
    num_res_blocks: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)]
    z_channels: Annotated[int, Field(ge=1, le=20)]

    @property
    def half(self) -> MagvitHalf:
        return MagvitHalf(width=self.ch, multiples=tuple(self.ch_mult), blocks=tuple(self.num_res_blocks))


class _Magvit(Fields):
    kind: str = Field(default="MAGVITv2", alias="_class_name")
    encoder: _Half | None = None
    decoder: _Half | None = None


def _vq_config(path: Path) -> MagvitConfig:
    """The released file names no sizes, which are then the released ones. CheckpointError for another class or invalid sizes."""
    found, released = read_fields(path, _Magvit), MagvitConfig()
    if found.kind != "MAGVITv2":
        raise CheckpointError(
            f"{path} is of {found.kind!r}; the image tokenizer of MMaDA is MAGVITv2 ({VQ_REPOSITORY})"
        )
    bits = {half.z_channels for half in (found.encoder, found.decoder) if half} or {released.bits}
    try:
        if len(bits) > 1:
            raise ValueError(f"z_channels differ: {sorted(bits)}")
        return MagvitConfig(
            encoder=found.encoder.half if found.encoder else released.encoder,
            decoder=found.decoder.half if found.decoder else released.decoder,
            bits=bits.pop(),
        )
    except ValueError as error:
        raise invalid(path, str(error)) from error
