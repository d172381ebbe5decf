"""The released models by the names of their sizes, of which no file exists. Public idea: ``spec_of_size("mmada_8b") -> ModelSpec``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unmask.checkpoints.elastic import Checkpoint
from unmask.checkpoints.mmada import SIDE as MMADA_SIDE
from unmask.checkpoints.stream import Stored
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.models.unfilled import unfilled
from unmask.pipeline.formats import Format
from unmask.pipeline.loading import SIDE, ModelSpec
from unmask.tokens.magvit import ImageTokenizerConfig, MagvitConfig
from unmask.tokens.prompts import RELEASED
from unmask.tokens.uni import UniConfig
from unmask.tokens.vq import VQConfig

_TOKENIZERS: dict[str, ImageTokenizerConfig] = {
    "mmada_8b": MagvitConfig(),
    "llada2_uni": UniConfig(),
}  # others: aMUSEd's VQ
_RELEASED = {"lavida_dream_7b": {"model_type": "llava_dream"}}  # fields of config.json that the presets read


def spec_of_size(name: str) -> ModelSpec:
    """The spec of a named size: the network in bfloat16, an image tokenizer in float32 where the model draws."""
    config, vq_config = SIZES[name], _TOKENIZERS.get(name, VQConfig())
    found = _format_of(config, vq_config)
    draws = bool(config.gen_width or config.first_code)
    with unfilled():
        net, vq = Elastic(config, mask_id=0), vq_config.build()
    checkpoint = Checkpoint(
        place=Path(name),
        config=config,
        vq_config=vq_config,
        mask_id=0,
        net=_not_stored(net, "BF16", 2),
        vq=_not_stored(vq, "F32", 4) if draws else {},
    )
    side, fold = MMADA_SIDE if found is Format.MMADA else SIDE, 2 if found is Format.RELEASED else 1
    return ModelSpec(
        format=found,
        checkpoint=checkpoint,
        wording=RELEASED,
        side=side if draws else 0,
        fold=fold,
        released=_RELEASED.get(name, {}),
    )


def _format_of(config: ElasticConfig, vq_config: ImageTokenizerConfig) -> Format:
    if config.gen_width:
        return Format.RELEASED
    if config.experts:
        return Format.LLADA2_UNI if config.first_code else Format.LLADA2
    if config.first_code:
        return Format.MMADA if isinstance(vq_config, MagvitConfig) else Format.DIMOO
    if config.vision and config.vision.reduction == "none":
        return Format.REDIFF
    if config.tower or config.vision:
        return Format.DIMPLE if config.tower else Format.LAVIDA
    return Format.DREAM if config.shifted else Format.LLADA


def _not_stored(module: nn.Module, dtype: str, size: int) -> dict[str, Stored]:
    return {
        name: Stored(
            path=Path("(not stored)"), name=name, dtype=dtype, shape=tuple(p.shape), start=0, nbytes=p.numel() * size
        )
        for name, p in module.named_parameters()
    }
