"""The image tokenizer of ``small``: factor 16, 4,096 codes, for scenes off the lattice at 256 px. See ``small.all``, which trains it.

As ``mini_vq``: the codebook is fitted first, by k-means over patches, and a code depends on its own patch alone, which makes codes fast to
learn and lets an edit copy what it leaves alone. Patches of free scenes hardly repeat, but at 256 px an object is three to eight patches
wide, so that most of them are one colour, two colours with an edge, or a simple texture: with each patch replaced by its cluster's mean,
and no network yet, the judge recognises 88 % of the objects of unseen free scenes and 99 % of those of grid scenes (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from unmask.checkpoints.store import load_module, read_tensors, save_module, save_tensors
from unmask.data.ahead import Ahead
from unmask.data.deferred import Rendered
from unmask.data.sources import Levels, scenes_of_batch
from unmask.data.world.scenes import Draft, Scene
from unmask.objectives.tokenizer import Squares, Taught, fit_squares
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.tokens.vq import VQ, Resnet, VQConfig

FILE, DICTIONARY = "vq", "dictionary"
PATCH = 16
DENSE = Draft(counts=((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)), alike=0.1)
_MOST_SQUARES = 120_000  # distinct ones that k-means sees
_FIT = 10**7  # the first scene that the codebook is fitted to; no run reaches it


def config(narrow: int = 1) -> VQConfig:
    """``narrow``: divides widths and codes, for tests."""
    return VQConfig(
        block_out_channels=tuple(width // narrow for width in (16, 32, 64, 112, 112)),
        layers_per_block=1,
        latent_channels=48 // narrow,
        num_vq_embeddings=4096 // narrow,
        norm_num_groups=8 // narrow,
        encode_apart=True,
    )


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops around objects, on the grid of codes, uint8 [N, crop, crop, 3]; every fourth batch has whole pictures, with as many pixels.

    Most of a picture is background, which is learned quickly. ``pictures``: scenes per batch · ``each``: crops of each.
    """

    seed: int
    pictures: int
    levels: Levels
    each: int = 4
    side: int = 256
    crop: int = 64
    draft: Draft = DENSE
    rendered: Rendered = Rendered()

    def __call__(self, step: int) -> tuple[Tensor]:
        rng = Random(f"crops/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed, step, self.pictures, rng, self.draft))
        if step % 4 == 0:
            fits = max(1, self.pictures * self.each * self.crop**2 // self.side**2)
            return (self.rendered(scenes[:fits], self.side).permute(0, 2, 3, 1),)
        whole = self.rendered(scenes, self.side).permute(0, 2, 3, 1)
        pairs = zip(whole, scenes, strict=True)
        return (torch.stack([self._cut(picture, scene, rng) for picture, scene in pairs for _ in range(self.each)]),)

    def whole(self, first: int, count: int) -> Tensor:
        """Whole pictures, uint8 [count, side, side, 3]."""
        rng = Random(f"whole/{self.seed}/{first}")
        scenes = list(scenes_of_batch(self.levels, self.seed, first // count, count, rng, self.draft))
        return self.rendered(scenes, self.side).permute(0, 2, 3, 1)

    def _cut(self, picture_HW3: Tensor, scene: Scene, rng: Random) -> Tensor:
        obj = rng.choice(scene.objects)
        most = (self.side - self.crop) // PATCH
        x, y = ((c + rng.uniform(-0.6, 0.6) * obj.size) * self.side - self.crop / 2 for c in obj.centre)
        left, top = (min(most, max(0, round(at / PATCH))) * PATCH for at in (x, y))
        return picture_HW3[top : top + self.crop, left : left + self.crop]


def fitted(source: Crops, images: int, width: int, codes: int) -> Squares:
    """The codebook, by k-means over the distinct patches of ``images`` pictures. Half a minute for 1,500 on one core."""
    counts: Counter[bytes] = Counter()
    for first in range(_FIT, _FIT + images, 50):
        pictures = source.whole(first, min(50, _FIT + images - first))
        counts.update(row.tobytes() for row in _patches(pictures).numpy())
    # Frequent patches first; of those that occur once, the first ones.
    kept = counts.most_common(_MOST_SQUARES)
    rows = torch.frombuffer(bytearray(b"".join(row for row, _ in kept)), dtype=torch.uint8).reshape(len(kept), -1)
    numbers = torch.tensor([count for _, count in kept])
    rng = generator("small squares", source.seed)
    return fit_squares(rows.float() / 255, numbers, width=width, size=codes, rng=rng)


def _patches(pictures_NHW3: Tensor) -> Tensor:
    """All patches, uint8 [n, 768], channel first."""
    n, high, wide, _ = pictures_NHW3.shape
    cut = pictures_NHW3.reshape(n, high // PATCH, PATCH, wide // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return cut.reshape(-1, 3 * PATCH * PATCH)


def first(teacher: Squares, pictures_NHW3: Tensor, narrow: int, seed: int) -> VQ:
    """A fresh tokenizer with the teacher's codebook. Encoder and decoder work on components of unit variance, and the encoder's first
    latents of these pictures have the deviation of the teacher's.
    """
    made = VQ(config(narrow))
    squares_ND = _patches(pictures_NHW3).float() / 255
    scale = teacher.latents(squares_ND).std(0).clamp(min=1e-3)
    with torch.no_grad():
        fill(made, generator("small vq", seed))
        made.quantize.embedding.weight.copy_(teacher.codebook)
        out = made.encoder(squares_ND.reshape(-1, 3, PATCH, PATCH)).flatten(1)
        made.encoder.conv_out.weight.div_(out.std(0).clamp(min=1e-6)[:, None, None, None])
        made.quant_conv.weight.copy_(torch.diag(scale)[..., None, None])
        made.post_quant_conv.weight.copy_(torch.diag(1 / scale)[..., None, None])
        assert made.decoder.conv_out.bias is not None
        made.decoder.conv_out.bias.copy_(pictures_NHW3.float().mean((0, 1, 2)) / 255)
    return made


def fill(made: VQ, rng: torch.Generator) -> None:
    """Weights that keep the deviation of their input (PyTorch's lose two thirds of it in every downsampling), biases of zero."""
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=rng)
            assert module.bias is not None
            module.bias.zero_()
    for module in made.modules():
        if isinstance(module, Resnet):
            module.conv2.weight.mul_(0.1)  # close to the identity at first: the linear path trains in minutes
    made.decoder.conv_out.weight.mul_(0.1)


@dataclass(frozen=True, kw_only=True)
class TokenizerRun:
    """``(folder, resumed) -> Recipe``: the run whose weights are FILE in ``folder``, a stage of a chain. ``images``: that the codebook is
    fitted to; it is kept as DICTIONARY.
    """

    source: Crops
    images: int
    narrow: int
    workers: int
    squares: int
    optim: Optim = Optim(lr=1.5e-3, warmup=40, decay_from=0.4, floor=0.02, ema=0.998, beta2=0.99)

    def __call__(self, folder: Path, resumed: bool) -> Recipe:
        teacher = self.teacher(folder)

        def model() -> VQ:
            if resumed:
                return load_module(VQ(config(self.narrow)), folder, name=FILE)
            return first(teacher, self.source.whole(_FIT, 8), self.narrow, self.source.seed)

        def export(module: VQ, _: Path) -> None:
            save_module(module, folder, name=FILE, dtype=torch.bfloat16)

        return Recipe(
            name="small.vq",
            model=model,
            source=Ahead(source=self.source, workers=self.workers),
            objective=Taught(teacher=teacher, squares=self.squares, side=PATCH),
            optim=self.optim,
            training=Training(steps=10**7, seed=self.source.seed),
            trainable=lambda name: not name.startswith("quantize"),
            export=export,
        )

    def teacher(self, folder: Path) -> Squares:
        """The codebook of the folder, which is fitted if there is none."""
        if not (folder / f"{DICTIONARY}.safetensors").exists():
            shape = config(self.narrow)
            made = fitted(self.source, self.images, shape.d, shape.num_vq_embeddings)
            tensors = {"mean": made.mean, "basis": made.basis, "codebook": made.codebook}
            save_tensors(tensors, folder, name=DICTIONARY)
        return Squares(**read_tensors(folder, DICTIONARY))
