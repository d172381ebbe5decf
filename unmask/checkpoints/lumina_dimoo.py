"""Lumina-DiMOO's layout on disk -> our network with codes in the text vocabulary, and aMUSEd's VQ (Xin et al. 2025, arXiv 2510.06308).

Public idea: ``survey_dimoo(folder) -> Checkpoint`` from config.json, the tokenizer and the safetensors headers. The network is LLaDA's,
its ``model_type`` included; ``families`` tells them apart by the class, by rows for 8,192 codes, or by the folder ``vqvae/``. The codes
are the last rows of the embedding, and code 0 follows the tokenizer's last id: both must agree.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.fitting import refuse_unfit, refuse_unfit_vq
from unmask.checkpoints.lavida_o import fit, names, plain, read_vq_config, released_names
from unmask.checkpoints.llada import read_config, released_text
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError, tensors_of
from unmask.json_types import Json
from unmask.models.elastic import Elastic
from unmask.models.unfilled import unfilled
from unmask.tokens.lumina_dimoo import CONTROL
from unmask.tokens.text import MASK, Text

VQ_FOLDER = "vqvae"


def survey_dimoo(folder: Path) -> Checkpoint:
    """Contents of a Lumina-DiMOO folder; no weights are read. CheckpointError if a part is missing or something does not fit."""
    path, vq_folder = folder / "config.json", folder / VQ_FOLDER
    raw = read_json(path)
    if not vq_folder.is_dir():
        raise CheckpointError(
            f"{folder} is a checkpoint of Lumina-DiMOO without its image tokenizer (folder {VQ_FOLDER}); copy or download it too"
        )
    vq_config = read_vq_config(vq_folder / "config.json")
    text, config = read_text(folder, raw), read_config(raw, path)
    first, codes = config.vocab_size - vq_config.num_vq_embeddings, vq_config.num_vq_embeddings
    if text.size != first:
        raise CheckpointError(
            f"the codes begin at row {first} of the embedding, its last {codes} rows, and the tokenizer has {text.size} ids; "
            "use config.json, tokenizer and image tokenizer of the same model"
        )
    config = replace(config, codes=codes, first_code=first)
    found = {plain(key): stored for key, stored in tensors_of(folder, "model").items()}
    refuse_unfit(config, found, released_names(config), path)
    vq_found = tensors_of(vq_folder, "diffusion_pytorch_model")
    refuse_unfit_vq(vq_config, vq_found, vq_folder / "config.json")
    with unfilled():
        net, vq = Elastic(config, mask_id=0), vq_config.build()
    return Checkpoint(
        place=folder,
        config=config,
        vq_config=vq_config,
        mask_id=text[MASK],
        net=fit(net, found, names(config), folder),
        vq=fit(vq, vq_found, {k: k for k in vq.state_dict()}, vq_folder),
    )


def read_text(folder: Path, raw: Json) -> Text:
    """The text tokenizer. CheckpointError if it is missing, lacks a control token or has another mask than ``raw``, its config.json."""
    return released_text(
        folder, raw, CONTROL, {"mask_token_id": MASK}, "use the one of this model, LLaDA's own lacks them"
    )
