"""An image tokenizer of ``mini`` for pictures off the lattice: every class, colour and background at any position and size, at 128 px.

    unmask train mini_free.vq --out runs/vq_free
    unmask train mini.all -o tokenizer=free --hours 24 --processes 2 --out runs/mini

4,096 codes of factor 16 as ``mini_vq``, 64 in a picture; ``factor=8`` makes 256, which are folded into 64 positions. Off the lattice,
patches of 16 px hardly repeat, so codes are made of more than their own patch: encoder and decoder are convolutions over the whole picture,
trained together with a fixed grid of codes (``objectives.tokenizer.Rounded``). What is lost is that equal patches have equal codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask.checkpoints.store import save_module
from unmask.data.sources import Encode, Levels, pixels_of
from unmask.data.world.scenes import sample
from unmask.evaluation.judge import load_judge
from unmask.evaluation.metrics import psnr
from unmask.evaluation.scoring import right
from unmask.objectives.tokenizer import Rounded, grid
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.mini_vq import Trained
from unmask.recipes.small_vq import Crops, fill
from unmask.rng import generator, key
from unmask.tokens.vq import VQ, VQConfig
from unmask.training.parallel import Place

SIDE = 128
LEVELS: Levels = (("free", 0.7), ("grid", 0.3))
STEPS = (8, 8, 8, 8)  # values of a code along each of its dimensions
_WIDTHS = {16: (16, 32, 96, 160, 192), 8: (16, 32, 96, 160)}
_SPREAD = 0.5  # deviation of the first latents, of which the grid covers -1 to 1


def config(factor: int = 16) -> VQConfig:
    """The shape of the tokenizer. ValueError for a factor other than 8 and 16."""
    if factor not in _WIDTHS:
        raise ValueError(f"factor is {factor}; give 16 (64 codes in a picture) or 8 (256 codes)")
    return VQConfig(
        block_out_channels=_WIDTHS[factor],
        layers_per_block=1,
        latent_channels=len(STEPS),
        num_vq_embeddings=int(np.prod(STEPS)),
        norm_num_groups=8,
    )


def fresh(source: Crops, factor: int) -> VQ:
    """First weights: signals keep their deviation, latents of some pictures have mean 0 and deviation ``_SPREAD``."""
    made = VQ(config(factor))
    pictures = source.whole(10**7, 16)
    pixels = (pictures.float() / 255).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        fill(made, generator("free vq", source.seed))
        made.quantize.embedding.weight.copy_(grid(STEPS))
        identity = torch.eye(len(STEPS))[..., None, None]
        made.quant_conv.weight.copy_(identity)
        made.post_quant_conv.weight.copy_(identity / _SPREAD)
        out = made.encoder(pixels)
        scale = _SPREAD / out.std((0, 2, 3)).clamp(min=1e-6)
        made.encoder.conv_out.weight.mul_(scale[:, None, None, None])
        assert made.encoder.conv_out.bias is not None and made.decoder.conv_out.bias is not None
        made.encoder.conv_out.bias.copy_(-out.mean((0, 2, 3)) * scale)
        made.decoder.conv_out.bias.copy_(pixels.mean((0, 2, 3)))
    return made


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """Figures of a tokenizer on ``items`` unseen pictures of each level: PSNR of the mean error, the share of objects that the judge
    recognises after it, and the number of codes in use.
    """

    items: int
    levels: tuple[str, ...] = ("free", "grid")
    split: str = "validation"

    @torch.no_grad()
    def __call__(self, module: VQ, step: int) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for level in self.levels:
            scenes = [sample(level, self.split, key("rebuilt"), i) for i in range(self.items)]
            before = pixels_of(scenes, SIDE)
            dtype = next(module.parameters()).dtype
            codes = torch.cat([module.encode(some.to(dtype)) for some in before.split(32)])
            after = torch.cat([module.decode(some).float().cpu() for some in codes.split(32)])
            looks = load_judge().look((after * 255 + 0.5).byte().permute(0, 2, 3, 1).numpy())
            objects = [
                any(right(f, t) for f in seen.objects) for seen, s in zip(looks, scenes, strict=True) for t in s.objects
            ]
            found[f"{level}.psnr"] = psnr(float((after - before).square().mean()))
            found[f"{level}.recognised"] = sum(objects) / len(objects)
            found[f"{level}.codes"] = float(len(codes.unique()))
        return found


def vq(seed: int = 0, factor: int = 16, pictures: int = 8, steps: int = 20000, items: int = 64) -> Recipe:
    """The image tokenizer off the lattice, a variant of mini_vq.vq: 4,096 codes on a grid, encoder and decoder over whole pictures."""
    source = Crops(seed=seed, pictures=pictures, levels=LEVELS, side=SIDE)

    def export(module: VQ, folder: Path) -> None:
        save_module(module, folder)

    return Recipe(
        name="mini_free.vq",
        model=lambda: fresh(source, factor),
        source=source,
        objective=Rounded(),
        optim=Optim(lr=1.5e-3, warmup=100, decay_from=0.5, floor=0.02, ema=0.998, beta2=0.99),
        training=Training(steps=steps, seed=seed, save_every=500),
        trainable=lambda name: not name.startswith("quantize"),
        evals=(Eval(name="rebuilt", every=1000, run=Rebuilt(items=items)),),
        export=export,
    )


@dataclass(frozen=True, kw_only=True)
class Free:
    """This tokenizer, as ``mini_series.PictureCodes``. ``pictures``: of which crops are made, per batch · ``items``: of its evaluations."""

    seed: int
    factor: int = 16
    pictures: int = 8
    items: int = 64
    level: str = "free"
    levels: Levels | None = (("free", 0.5), ("grid", 0.5))

    @property
    def config(self) -> VQConfig:
        return config(self.factor)

    def recipe(self, folder: Path) -> Recipe:
        made = vq(self.seed, self.factor, self.pictures, items=self.items)
        return replace(made, evals=tuple(replace(each, every=4000) for each in made.evals))

    def prepare(self, folder: Path, place: Place) -> None:
        """Nothing: the codes are a grid."""

    def encode(self, folder: Path) -> Encode:
        return Trained(config=self.config, folder=str(folder / "vq"))

    def codebook(self, folder: Path) -> Tensor:
        return grid(STEPS)
