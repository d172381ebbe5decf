"""LLaDA2.0-Uni's folder on disk: the network of ``llada2``, the SigLIP-VQ tokenizer, the flow decoder and Flux's decoder.

Public idea: ``survey_uni(folder) -> Checkpoint``. The table of features of codes is released as a pickle, ``sigvq_embedding.pt``, which is
never read here: ``unmask convert`` makes safetensors of it. Asking, and everything but pixels, works without it and without a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.lavida_o import fit
from unmask.checkpoints.llada2 import survey_trunk
from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Pixels,
    Rows,
    Size,
    Theta,
    Width,
    fields,
    invalid,
    read_fields,
    read_json,
    refuse_layers,
    refuse_sizes,
)
from unmask.checkpoints.stream import CheckpointError, Stored, how_to_convert, read, tensors_of
from unmask.json_types import Json
from unmask.models.unfilled import unfilled
from unmask.tokens.flux_vae import FluxConfig
from unmask.tokens.siglip_vq import SiglipConfig
from unmask.tokens.uni import FlowSchedule, TurboSchedule, UniConfig
from unmask.tokens.z_image import ZImage, ZImageConfig

TOKENIZER, VAE, DECODER, TURBO = "image_tokenizer", "vae", "decoder", "decoder-turbo"
PRIOR = "sigvq_embedding"
_ENCODER, _VQ, _TABLE = "model.visual.", "model.vqmodel.", "prior_token_embedding.weight"
_FLOW_FILES = ("decoder_model", "model", "diffusion_pytorch_model")


class _Vision(Fields):
    depth: Layers
    hidden_size: Width
    intermediate_size: Width
    num_heads: Heads
    patch_size: Pixels
    image_size: Pixels
    layer_norm_eps: Epsilon = 1e-6
    hidden_act: Literal["gelu"] = "gelu"
    attention_bias: Literal[True] = True


class _Vq(Fields):
    embed_dim: Width
    num_embeddings: Rows


class _Tokenizer(Fields):
    vision_config: _Vision
    vq_config: _Vq


class _Flow(Fields):
    kind: Literal["ZImageTransformer2DModel"] = Field(alias="_class_name")
    dim: Width
    n_layers: Layers
    n_refiner_layers: Annotated[int, Field(ge=0, le=64)]
    n_heads: Heads
    n_kv_heads: Heads
    in_channels: Width
    axes_dims: Annotated[list[Width], Field(min_length=3, max_length=3)]
    rope_theta: Theta
    norm_eps: Epsilon
    qk_norm: Literal[True]
    t_scale: Annotated[float, Field(gt=0, le=1e6)]
    all_patch_size: Annotated[list[Literal[2]], Field(min_length=1, max_length=1)]
    all_f_patch_size: Annotated[list[Literal[1]], Field(min_length=1, max_length=1)]
    siglip_feat_dim: None = None


class _Vae(Fields):
    kind: Literal["AutoencoderKL"] = Field(alias="_class_name")
    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=8)]
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    latent_channels: Width
    norm_num_groups: Annotated[int, Field(ge=1, le=1024)]
    scaling_factor: Annotated[float, Field(gt=0, le=100)]
    shift_factor: Annotated[float, Field(ge=-100, le=100)]
    act_fn: Literal["silu"] = "silu"
    out_channels: Literal[3] = 3
    use_post_quant_conv: Literal[False] = False
    mid_block_add_attention: Literal[True] = True


class _Own(Fields):
    decoder: Literal["decoder", "decoder-turbo"] | None = None
    decoder_steps: Annotated[int, Field(ge=2, le=1000)] | None = None
    side: Annotated[int, Field(ge=1, le=2**14)] | None = None


class _Block(Fields):
    unmask: _Own = _Own()


def own_settings(raw: Json, path: Path) -> _Own:
    """The block ``unmask`` of config.json: which decoder draws, in how many steps, and the pixels of a square drawing."""
    return fields(_Block, raw, path).unmask


def survey_uni(folder: Path) -> Checkpoint:
    """Contents of a folder; no weights are read. CheckpointError if the network or the tokenizer does not fit.

    ``Checkpoint.missing`` says why pictures cannot be decoded where a part of the decoder is not there.
    """
    trunk, path = survey_trunk(folder), folder / "config.json"
    own = own_settings(read_json(path), path)
    encoder, stored = _tokenizer(folder)
    if encoder.codes != trunk.config.codes:
        raise CheckpointError(
            f"{folder}: the image tokenizer has {encoder.codes} codes, the vocabulary {trunk.config.codes}; use files of one model"
        )
    lost = _lost(folder, own)
    config = UniConfig(encoder=encoder)
    flow_at = Path()
    if not lost:
        turbo = _decoder_of(folder, own) == TURBO
        flow_at = folder / (TURBO if turbo else DECODER)
        flow, flow_found = _flow(flow_at)
        vae, vae_found = _vae(folder / VAE)
        prior = tensors_of(folder / TOKENIZER, PRIOR)
        _refuse_widths(prior, flow, encoder.codes, folder)
        config = replace(config, flow=flow, vae=vae, schedule=_schedule(turbo=turbo, steps=own.decoder_steps))
        stored |= {
            f"decoder.{part}.{n}": s
            for part, found in (("prior", prior), ("flow", flow_found), ("vae", vae_found))
            for n, s in found.items()
        }
    with unfilled():
        vq = config.build()
    if lost:
        del vq.decoder
    return replace(
        trunk,
        vq_config=config,
        vq=fit(vq, stored, {name: name for name in vq.state_dict()}, folder),
        missing={"vq.decoder": lost} if lost else {},
        as_stored=frozenset(s.path for s in stored.values() if flow_at != Path() and s.path.parent == flow_at),
    )


def _schedule(*, turbo: bool, steps: int | None) -> FlowSchedule | TurboSchedule:
    if turbo:
        return TurboSchedule() if steps is None else TurboSchedule(steps=steps)
    return FlowSchedule() if steps is None else FlowSchedule(points=steps)


def _decoder_of(folder: Path, own: _Own) -> str:
    return own.decoder or (DECODER if (folder / DECODER).is_dir() else TURBO)


def _lost(folder: Path, own: _Own) -> str:
    """Why codes cannot become pixels; "" where everything is there."""
    place = folder / TOKENIZER
    if not list(place.glob(f"{PRIOR}*.safetensors")):
        if (pickle := place / f"{PRIOR}.pt").exists():
            return f"{pickle} is a pickle, which can run code, and unmask reads safetensors only; {how_to_convert(folder, pickle.name)}"
        return f"{place} has no {PRIOR}.safetensors, the features of codes; download {PRIOR}.pt and convert the folder"
    for part in (_decoder_of(folder, own), VAE):
        if not (folder / part).is_dir():
            return f"{folder} has no folder {part}, so it cannot turn codes into pixels; download it too"
    return ""


def _tokenizer(folder: Path) -> tuple[SiglipConfig, dict[str, Stored]]:
    """The encoder's shape and tensors by our names. CheckpointError where they do not fit."""
    place = folder / TOKENIZER
    if not place.is_dir():
        raise CheckpointError(f"{folder} has no image tokenizer (folder {TOKENIZER}); download it too")
    path = place / "config.json"
    found, tensors = read_fields(path, _Tokenizer), tensors_of(place, "image_tokenizer")
    vision = found.vision_config
    table = "model.visual.embeddings.position_embedding.weight"
    if table not in tensors:
        raise CheckpointError(f"{place} lacks {table}; copy or download it again")
    refuse_layers("vision_config.depth", vision.depth, tensors, "model.visual.blocks", path)
    side = vision.image_size // vision.patch_size
    sizes = (
        Size(field="vision_config.image_size / patch_size squared", value=side**2, tensor=table, axis=0),
        Size(
            field="vq_config.num_embeddings",
            value=found.vq_config.num_embeddings,
            tensor=f"{_VQ}quantize.embedding.weight",
            axis=0,
        ),
    )
    refuse_sizes(sizes, tensors, path)
    out = dict[str, Stored]()
    for name, stored in tensors.items():
        if name.startswith(_ENCODER):
            out[f"encoder.{name.removeprefix(_ENCODER)}"] = stored
        elif name.startswith(_VQ) and "post_quant_conv" not in name:  # present in the released file, never applied
            out[name.removeprefix(_VQ)] = stored
    try:
        config = SiglipConfig(
            width=vision.hidden_size,
            layers=vision.depth,
            heads=vision.num_heads,
            mlp=vision.intermediate_size,
            patch=vision.patch_size,
            side=side,
            eps=vision.layer_norm_eps,
            latent=found.vq_config.embed_dim,
            codes=found.vq_config.num_embeddings,
        )
    except ValueError as error:
        raise invalid(path, str(error)) from error
    return config, out


def load_flow(folder: Path) -> ZImage:
    """The flow of a folder ``decoder`` or ``decoder-turbo`` with its weights, on the CPU."""
    config, found = _flow(folder)
    with unfilled():
        flow = ZImage(config)
    stored = fit(flow, found, {name: name for name in flow.state_dict()}, folder)
    flow.load_state_dict({name: read(one) for name, one in stored.items()}, assign=True)
    return flow.eval()


def _flow(folder: Path) -> tuple[ZImageConfig, dict[str, Stored]]:
    """The flow's shape and tensors. The width of the features in config.json is that of another model: the tensors say it."""
    path = folder / "config.json"
    found = read_fields(path, _Flow)
    name = next((n for n in _FLOW_FILES if list(folder.glob(f"{n}*.safetensors"))), _FLOW_FILES[0])
    tensors = tensors_of(folder, name)
    shapes = {n: s.shape for n, s in tensors.items()}
    lacking = [n for n in ("semantic_embedder.1.weight", "t_embedder.mlp.0.weight") if len(shapes.get(n, ())) != 2]
    if lacking:
        raise CheckpointError(f"{folder} lacks {lacking[0]}; copy or download it again")
    if found.n_kv_heads != found.n_heads:
        raise invalid(path, f"n_kv_heads {found.n_kv_heads} is not n_heads {found.n_heads}, which is not supported")
    refuse_layers("n_layers", found.n_layers, tensors, "layers", path)
    refuse_layers("n_refiner_layers", found.n_refiner_layers, tensors, "noise_refiner", path)
    inner, waves = shapes["t_embedder.mlp.0.weight"]
    try:
        config = ZImageConfig(
            width=found.dim,
            layers=found.n_layers,
            refiners=found.n_refiner_layers,
            heads=found.n_heads,
            channels=found.in_channels,
            features=shapes["semantic_embedder.1.weight"][1],
            axes=(found.axes_dims[0], found.axes_dims[1], found.axes_dims[2]),
            theta=found.rope_theta,
            eps=found.norm_eps,
            time_scale=found.t_scale,
            time_inner=inner,
            waves=waves,
        )
    except ValueError as error:
        raise invalid(path, str(error)) from error
    return config, tensors


def _vae(folder: Path) -> tuple[FluxConfig, dict[str, Stored]]:
    path = folder / "config.json"
    found = read_fields(path, _Vae)
    if wrong := [width for width in found.block_out_channels if width % found.norm_num_groups]:
        raise invalid(
            path, f"block_out_channels {wrong[0]} is not a multiple of norm_num_groups {found.norm_num_groups}"
        )
    tensors = tensors_of(folder, "diffusion_pytorch_model")
    prefix = "decoder."
    own = {n.removeprefix(prefix): s for n, s in tensors.items() if n.startswith(prefix)}
    refuse_layers("stages of block_out_channels", len(found.block_out_channels), own, "up_blocks", path)
    config = FluxConfig(
        block_out_channels=tuple(found.block_out_channels),
        layers_per_block=found.layers_per_block,
        latent_channels=found.latent_channels,
        norm_num_groups=found.norm_num_groups,
        scale=found.scaling_factor,
        shift=found.shift_factor,
    )
    return config, own


def _refuse_widths(prior: Mapping[str, Stored], flow: ZImageConfig, codes: int, folder: Path) -> None:
    """CheckpointError where the table of features belongs to another model."""
    shape = prior[_TABLE].shape if _TABLE in prior else None
    if shape != (codes, flow.features):
        raise CheckpointError(
            f"{folder / TOKENIZER}: {_TABLE} of {PRIOR} is {shape}, wanted {(codes, flow.features)}; use files of one model"
        )
