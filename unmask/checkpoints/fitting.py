"""A configuration against the safetensors headers, before a module is built from it.

``VisionFields`` and ``VQFields`` are the parts of a configuration that several layouts have.

Public idea: ``refuse_unfit(config, found, ...)`` compares numbers of layers and widths with the tensors on disk. Building the module
afterwards takes time and memory in proportion to the files, whatever the configuration says. ``refuse_unfit_vq``: for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Heads,
    Layers,
    Pixels,
    Rows,
    Size,
    Width,
    invalid,
    refuse_layers,
    refuse_sizes,
)
from unmask.checkpoints.stream import Stored
from unmask.json_types import Json
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.tokens.vq import VQConfig


class VisionFields(Fields, extra="forbid"):
    """The sizes of a vision tower, in our config.json and in the block ``unmask`` of a released one."""

    image: Pixels
    patch: Pixels
    width: Width
    layers: Layers
    heads: Heads
    mlp: Width
    eps: Epsilon

    def config(self, path: Path, place: str) -> VisionConfig:
        """CheckpointError where the fields contradict each other; ``place``: what they are called in ``path``."""
        if self.width % self.heads:
            raise invalid(path, f"{place}.width {self.width} is not a multiple of {place}.heads {self.heads}")
        if self.image < 2 * self.patch:
            raise invalid(
                path, f"{place}.image {self.image} is less than two patches of {place}.patch {self.patch} pixels"
            )
        return VisionConfig(**self.model_dump())


class VQFields(Fields):
    """Sizes of the image tokenizer, as diffusers calls them (Meissonic, aMUSEd)."""

    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=8)]
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    latent_channels: Width
    num_vq_embeddings: Rows
    norm_num_groups: Annotated[int, Field(ge=1, le=1024)]

    def config(self, path: Path, *, encode_apart: bool, place: str = "") -> VQConfig:
        """CheckpointError where a width cannot be split into the groups of its norm; ``place``: as of ``refuse_unfit_vq``."""
        if wrong := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            groups = f"{place}norm_num_groups {self.norm_num_groups}"
            raise invalid(path, f"{place}block_out_channels {wrong[0]} is not a multiple of {groups}")
        own = {name: getattr(self, name) for name in VQFields.model_fields if name != "block_out_channels"}
        return VQConfig(block_out_channels=tuple(self.block_out_channels), encode_apart=encode_apart, **own)


def elastic(path: Path, values: Json) -> ElasticConfig:
    """ElasticConfig of values that were read from ``path``. CheckpointError where they contradict each other."""
    try:
        return ElasticConfig(**values)
    except ValueError as error:
        raise invalid(path, str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a layout calls its parts. ``blocks``, ``tower``: prefixes of the layers' tensors; "" for a tower without sizes in config.json ·
    ``tensor(ours)``: the name of a parameter in the files · ``fields``: a field of ElasticConfig -> its name in config.json, where it
    differs · ``vision``: prefix of the fields of the tower.
    """

    blocks: str = "blocks"
    tower: str = "vision.tower.layers"
    tensor: Callable[[str], str] = str
    fields: Mapping[str, str] = field(default_factory=dict)
    vision: str = "model.vision"


def refuse_unfit(config: ElasticConfig, found: Mapping[str, Stored], names: Names, path: Path) -> None:
    """CheckpointError where ``config``, read from ``path``, has other layers or widths than the tensors ``found``."""
    refuse_layers(names.fields.get("layers", "model.layers"), config.layers, found, names.blocks, path)
    if config.vision and names.tower:
        refuse_layers(f"{names.vision}.layers", config.vision.layers, found, names.tower, path)
    sizes = (
        Size(field=names.fields.get(of, f"model.{of}"), value=value, tensor=names.tensor(tensor), axis=axis)
        for of, value, tensor, axis in _trunk_sizes(config)
    )
    refuse_sizes(sizes, found, path)
    if config.vision:
        sizes = (
            Size(field=f"{names.vision}.{of}", value=value, tensor=names.tensor(tensor), axis=axis)
            for of, value, tensor, axis in _vision_sizes(config.vision)
        )
        refuse_sizes(sizes, found, path)


def _trunk_sizes(config: ElasticConfig) -> Iterator[tuple[str, int, str, int]]:
    """(field, value, our tensor, axis) of every size that a tensor shows."""
    yield "vocab_size", config.vocab_size, "embed.weight", 0
    yield "width", config.width, "embed.weight", 1
    yield "mlp", config.mlp, "blocks.0.und.mlp.gate.weight", 0
    if config.gen_width:
        yield "gen_width", config.gen_width, "blocks.0.gen.q.weight", 1
        yield "gen_mlp", config.gen_mlp, "blocks.0.gen.mlp.gate.weight", 0
        yield "codes", config.codes, "code_head.classify.weight", 0
        yield "code_rows", config.code_rows, "code_embedding.table.weight", 0
    if config.text_registers or config.code_registers:
        yield "register_rows", config.register_rows, "registers.text", 0


def _vision_sizes(config: VisionConfig) -> Iterator[tuple[str, int, str, int]]:
    yield "width", config.width, "vision.tower.patch.weight", 0
    yield "patch", config.patch, "vision.tower.patch.weight", 2
    yield "patch", config.patch, "vision.tower.patch.weight", 3
    yield "image / patch squared, from image", config.side**2, "vision.tower.position.weight", 0
    yield "mlp", config.mlp, "vision.tower.layers.0.fc1.weight", 0


def refuse_unfit_vq(config: VQConfig, found: Mapping[str, Stored], path: Path, place: str = "") -> None:
    """CheckpointError where the tokenizer's ``config`` has other stages, layers or widths than the tensors ``found``.

    ``place``: what precedes a field's name in ``path``.
    """
    stages = len(config.block_out_channels)
    refuse_layers(f"stages of {place}block_out_channels", stages, found, "encoder.down_blocks", path)
    called = f"{place}layers_per_block"
    for stage in range(stages):
        refuse_layers(called, config.layers_per_block, found, f"encoder.down_blocks.{stage}.resnets", path)
    wide = [
        Size(
            field=f"{place}block_out_channels.{stage}",
            value=width,
            tensor=f"encoder.down_blocks.{stage}.resnets.0.conv2.weight",
            axis=0,
        )
        for stage, width in enumerate(config.block_out_channels)
    ]
    table = "quantize.embedding.weight"
    codes = Size(field=f"{place}num_vq_embeddings", value=config.num_vq_embeddings, tensor=table, axis=0)
    latent = Size(field=f"{place}latent_channels", value=config.latent_channels, tensor=table, axis=1)
    refuse_sizes([*wide, codes, latent], found, path)
