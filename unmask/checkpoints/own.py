"""The config.json of our own layout: its fields, how they depend on each other, and what is built from them.

Public idea: ``read_own(folder) -> Own``, checked before anything is built. Every field is required: a missing one must not take the value
of the released model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints.fitting import Names, VisionFields, VQFields, elastic, refuse_unfit, refuse_unfit_vq
from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Pixels,
    Rows,
    Theta,
    TokenId,
    Width,
    fields,
    invalid,
    read_json,
)
from unmask.checkpoints.stream import CheckpointError, Stored
from unmask.json_types import Json
from unmask.models.sizes import ElasticConfig
from unmask.tokens.vq import VQConfig

_Registers = Annotated[int, Field(ge=0, le=4096)]


class _OwnVQ(VQFields, extra="forbid"):
    encode_apart: bool


class _Model(Fields, extra="forbid"):
    vocab_size: Rows
    width: Width
    heads: Heads
    layers: Layers
    mlp: Width
    gen_width: Width
    gen_mlp: Width
    joint_layers: Layers
    rope_theta: Theta
    norm_eps: Epsilon
    codes: Rows
    code_rows: Rows
    vision: VisionFields | None
    text_registers: _Registers = 0  # the three are left out of the file of a dense model
    code_registers: _Registers = 0
    register_rows: Annotated[int, Field(ge=1, le=4096)] = 1
    rope_factor: Annotated[float, Field(ge=1, lt=1e9)] = 1.0  # left out where it is 1


class _Released(Fields):
    config: dict[str, object]
    vqvae: dict[str, object]
    mask_token_id: TokenId


class _Own(Fields):
    model: _Model
    vq: _OwnVQ
    wording: Literal["compact", "released"]
    side: Pixels
    fold: Literal[1, 2]
    released: _Released | None = None
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}  # older folders have none


@dataclass(frozen=True, kw_only=True)
class Own:
    """A config.json of ours. ``side``, ``fold``: as of ``ModelSpec`` · ``wording``: its name · ``mask_id``: of the released model that it
    was converted from, None for others · ``released``: the fields of that model's config.json ·
    ``sums``: SHA-256 of the weight files.
    """

    path: Path
    model: ElasticConfig
    vq: VQConfig
    wording: str
    side: int
    fold: int
    mask_id: int | None
    released: Json
    sums: dict[str, str]

    def refuse_unfit(self, net: dict[str, Stored], vq: dict[str, Stored]) -> None:
        """CheckpointError where its sizes are not those of the tensors on disk."""
        refuse_unfit(self.model, net, Names(), self.path)
        refuse_unfit_vq(self.vq, vq, self.path, "vq.")


def read_own(folder: Path) -> Own:
    """config.json of a folder of ours. CheckpointError for a field that is missing, of another type, out of range or in contradiction."""
    path = folder / "config.json"
    raw = read_json(path)
    try:
        found = fields(_Own, raw, path)
        model = _elastic(found.model, path)
    except CheckpointError as error:
        if "model" in raw and "vq" in raw:
            raise
        raise CheckpointError(
            f"{path} is not a model configuration: it lacks model and vq; is this a folder of unmask, LaViDa-O or LLaDA?"
        ) from error
    vq = found.vq.config(path, encode_apart=found.vq.encode_apart, place="vq.")
    _refuse_contradictions(found, vq, path)
    kept = found.released
    return Own(
        path=path,
        model=model,
        vq=vq,
        wording=found.wording,
        side=found.side,
        fold=found.fold,
        mask_id=kept.mask_token_id if kept else None,
        released=dict(kept.config) if kept else {},
        sums=found.sha256,
    )


def _elastic(found: _Model, path: Path) -> ElasticConfig:
    if found.joint_layers > found.layers:
        raise invalid(path, f"model.joint_layers {found.joint_layers} is more than model.layers {found.layers}")
    own = {name: getattr(found, name) for name in _Model.model_fields if name != "vision"}
    return elastic(path, own | {"vision": found.vision.config(path, "model.vision") if found.vision else None})


def _refuse_contradictions(found: _Own, vq: VQConfig, path: Path) -> None:
    wrong, unit = "", vq.factor * found.fold
    if found.side % unit:
        wrong = f"side {found.side} is not a multiple of {unit} pixels, which one position covers"
    elif found.wording == "compact" and found.model.vision and found.model.vision.image != found.side:
        wrong = f"side {found.side} is not model.vision.image {found.model.vision.image}: a compact model reads what it draws"
    elif found.model.codes != vq.num_vq_embeddings:
        wrong = f"model.codes {found.model.codes} is not vq.num_vq_embeddings {vq.num_vq_embeddings}"
    if wrong:
        raise invalid(path, wrong)
