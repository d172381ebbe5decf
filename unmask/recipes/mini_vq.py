"""The embedded model's image tokenizer: factor 16, 4,096 codes, 128 px pictures of the grid world.

    unmask train mini_vq.vq --out runs/vq

Cost: about 25 minutes on two cores. Expected: PSNR of 30 dB or more on unseen grid scenes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from unmask.checkpoints.store import load_module, read_tensors, save_module, save_tensors
from unmask.data.sources import pixels_of
from unmask.data.world.scenes import Draft, Scene, sample
from unmask.objectives.tokenizer import Distilled, Squares, fit_squares
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.tokens.vq import VQ, Resnet, VQConfig

CONFIG = VQConfig(
    block_out_channels=(16, 32, 64, 128, 192),
    layers_per_block=1,
    latent_channels=64,
    num_vq_embeddings=4096,
    norm_num_groups=8,
    encode_apart=True,
)
DENSE = Draft(counts=((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)), alike=0.1)


IMAGES = 6000  # images that the codebook is fitted to


FITTED = "dictionary"  # name of the file


@lru_cache(maxsize=2)
def dictionary(seed: int, images: int, folder: str = "") -> tuple[Squares, Tensor]:
    """The teacher, and the distinct patches of training images [N, 768] that it was fitted to. Half a minute for 6,000 images.

    ``folder``: where they are kept, so that other processes need not fit them again.
    """
    if folder and (Path(folder) / f"{FITTED}.safetensors").exists():
        kept = read_tensors(Path(folder), FITTED)
        return Squares(**{name: kept[name] for name in ("mean", "basis", "codebook")}), kept["distinct"].float() / 255
    made, squares = _fitted(seed, images)
    if folder:
        about = {"mean": made.mean, "basis": made.basis, "codebook": made.codebook}
        save_tensors({**about, "distinct": squares}, Path(folder), name=FITTED)
    return made, squares.float() / 255


def _fitted(seed: int, images: int) -> tuple[Squares, Tensor]:
    """The teacher and its patches, uint8."""
    scenes = [sample("grid", "train", seed + 2, i, DENSE) for i in range(images)]
    chunks = [pixels_of(scenes[i : i + 100], 128) for i in range(0, images, 100)]
    squares = torch.cat([torch.nn.functional.unfold(c, 16, stride=16).transpose(1, 2).reshape(-1, 768) for c in chunks])
    distinct, counts = torch.unique((squares * 255).round().to(torch.uint8), dim=0, return_counts=True)
    width, size = CONFIG.d, CONFIG.num_vq_embeddings
    with _one_thread():
        fitted = fit_squares(distinct.float() / 255, counts, width=width, size=size, rng=generator("squares", seed))
    return fitted, distinct


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The codes of the teacher: pixels [B, 3, H, W] in 0..1 -> [B, h, w]. Fields as of ``dictionary``."""

    seed: int = 0
    images: int = IMAGES
    folder: str = ""

    def __call__(self, pixels: Tensor) -> Tensor:
        return dictionary(self.seed, self.images, self.folder)[0].codes(pixels)


def crops(pixels: Tensor, scenes: list[Scene], rng: Random) -> Tensor:
    """One 64 px crop per image, aligned with the code grid, around one of its objects: [B, 3, 64, 64]."""
    cut = []
    for picture, scene in zip(pixels, scenes, strict=True):
        obj = rng.choice(scene.objects)
        left, top = (min(4, max(0, round(at * 8) + rng.randint(-2, 0))) * 16 for at in (obj.x, obj.y))
        cut.append(picture[:, top : top + 64, left : left + 64])
    return torch.stack(cut)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images with their codes, and distinct patches with their latents.

    Three steps in four use crops around objects, because most of an image is background, which is learned quickly.
    """

    seed: int
    images: int = IMAGES
    batch: int = 8
    squares: int = 160
    folder: str = field(default="", compare=False)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        teacher, distinct = dictionary(self.seed, self.images, self.folder)
        count = self.batch if step % 4 == 0 else 4 * self.batch
        scenes = [sample("grid", "train", self.seed, step * 4 * self.batch + i, DENSE) for i in range(count)]
        pixels = pixels_of(scenes, 128)
        if step % 4:
            pixels = crops(pixels, scenes, Random(f"crops/{self.seed}/{step}"))
        # Half uniform over distinct patches, half as they occur: the background is few distinct patches, but most of an image.
        rng = generator("squares", self.seed, step)
        shown = torch.nn.functional.unfold(pixels, 16, stride=16).transpose(1, 2).reshape(-1, 768)
        half = self.squares // 2
        squares = torch.cat([some[torch.randint(len(some), (half,), generator=rng)] for some in (distinct, shown)])
        return pixels, teacher.codes(pixels), squares.reshape(-1, 3, 16, 16), teacher.latents(squares)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The codes of the finished tokenizer in ``folder``, which are those that it gives later: pixels [B, 3, H, W] in 0..1 -> [B, h, w]."""

    config: VQConfig
    folder: str

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        net = _opened(self.config, self.folder)
        return torch.cat([net.encode(some) for some in pixels.split(32)])


@lru_cache(maxsize=1)
def _opened(config: VQConfig, folder: str) -> VQ:
    return load_module(VQ(config), Path(folder)).eval()


ALIKE, MOVED = 0.3, 0.8  # distances of codes: 2 and 6 of 255 in a pixel. The encoder's error is about 0.1


def settle(model: VQ, teacher: Squares, pixels: Tensor) -> None:
    """Move codes away from a more frequent one that looks the same.

    K-means divides frequent patches among several codes that are closer to each other than the encoder's error, so that the encoder would
    give others than those that the transformer is trained with. ``pixels``: training pictures, which tell how frequent a code is.
    """
    used = torch.bincount(teacher.codes(pixels).flatten(), minlength=len(teacher.codebook))
    alike = torch.cdist(teacher.codebook, teacher.codebook) < ALIKE
    twin = torch.full_like(used, -1)  # of each code: itself, or the one that stays in its place
    for code in used.argsort(descending=True, stable=True).tolist():
        if twin[code] < 0:
            twin[alike[code] & (twin < 0)] = code
    moved = (twin != torch.arange(len(twin))).nonzero().flatten()
    away = torch.randn(len(moved), teacher.codebook.shape[1], generator=generator("moved codes"))
    table = teacher.codebook.clone()
    table[moved] = table[twin[moved]] + MOVED * torch.nn.functional.normalize(away, dim=1)
    model.quantize.embedding.weight.data.copy_(table)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads have another order, and k-means then ends in other codes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def vq(seed: int = 0, images: int = IMAGES, kept: str = "") -> Recipe:
    """The image tokenizer: codes by k-means over patches, encoder and decoder by regression (see ``objectives.tokenizer``).

    ``kept``: the folder of ``dictionary``.
    """

    def model() -> VQ:
        teacher, distinct = dictionary(seed, images, kept)
        torch.manual_seed(seed)
        fresh = VQ(CONFIG)
        scale = teacher.latents(distinct).std(0)
        with torch.no_grad():
            fresh.quantize.embedding.weight.copy_(teacher.codebook)
            # Encoder and decoder work on components of unit variance; these two 1x1 convolutions rescale them.
            fresh.quant_conv.weight.copy_(torch.diag(scale)[..., None, None])
            fresh.post_quant_conv.weight.copy_(torch.diag(1 / scale)[..., None, None])
            for module in fresh.modules():
                if isinstance(module, Resnet):
                    module.conv2.weight.mul_(0.1)  # close to the identity at first: the linear path trains in minutes
        return fresh

    def export(module: VQ, folder: Path) -> None:
        some = [sample("grid", "train", seed, i, DENSE) for i in range(200)]
        settle(module, dictionary(seed, images, kept)[0], pixels_of(some, 128))
        save_module(module, folder)

    return Recipe(
        name="mini.vq",
        model=model,
        source=Pictures(seed=seed, images=images, folder=kept),
        objective=Distilled(),
        optim=Optim(lr=1.5e-3, warmup=40, decay_from=0.4, floor=0.02, ema=0.998, beta2=0.99),
        training=Training(steps=5500, seed=seed, save_every=100),
        trainable=lambda name: not name.startswith("quantize"),
        export=export,
    )
