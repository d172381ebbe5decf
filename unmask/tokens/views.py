"""Split an image into views for the semantic encoder and select the features that the model reads (spec 1.9).

Public idea: ``AnyRes()(image) -> ImageViews``. A view has ``pooled * (pooled + 1)`` feature rows, row by row with the newline last, as
``models/vision.py`` returns them; a ``ImageViews`` lists the row that each of its tokens reads, so the model only gathers.

Sizes are (width, height) in pixels, as Pillow has them; maps are rows x columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unmask.tokens.pictures import square

GREY = (127, 127, 127)
PINPOINTS = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """An image for the semantic encoder: ``views [V, 3, H, W]`` in 0..1, ``rows [T]`` long: the feature row that each of T tokens reads.

    ``grid``: (rows, columns) of the tokens, where their positions have a row and a column · ``tokens [T, D]``: the tokens themselves, where
    they are not feature rows but computed from them (``Shrunk``).
    """

    views: Tensor
    rows: Tensor
    grid: tuple[int, int] | None = None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """One view of the whole image and tiles of ``size`` pixels, in the pinpoint (grid of tiles) that keeps most of the image.

    ``pooled``: features along one side of a view · ``squashed``: the view of a single whole image is resized without keeping its aspect
    ratio (LaViDa), not padded. ValueError if a pinpoint is not a grid of tiles.
    """

    size: int = 384
    pooled: int = 13
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS
    squashed: bool = False

    def __post_init__(self) -> None:
        wrong = [p for p in self.pinpoints if len(p) != 2 or min(p) < self.size or any(v % self.size for v in p)]
        if wrong or not self.pinpoints:
            raise ValueError(f"pinpoints must be multiples of the view's {self.size} pixels, got {wrong or 'none'}")

    def __call__(self, image: Image.Image) -> ImageViews:
        """A single image: the whole view, then its tiles with a newline after every row of the joined map."""
        wide, high = self.pinpoint(image.size)
        canvas = _centred(image, (wide, high))
        corners = [(x, y) for y in range(0, high, self.size) for x in range(0, wide, self.size)]
        tiles = [canvas.crop((x, y, x + self.size, y + self.size)) for x, y in corners]
        views = torch.stack([to_pixels(view) for view in (self._overview(image), *tiles)])
        kept = self.kept(image.size)
        newline = torch.full((len(kept), 1), self.pooled)
        return ImageViews(
            views=views, rows=torch.cat([self._view(0).flatten(), torch.cat([kept, newline], 1).flatten()])
        )

    def kept(self, size: tuple[int, int]) -> Tensor:
        """The feature rows of the tiles of an image of ``size``, joined and without padding, [rows, columns]."""
        wide, high = self.pinpoint(size)
        return unpad(self._map(wide // self.size, high // self.size), size)

    def one_of_several(self, image: Image.Image) -> ImageViews:
        """One of several images in a sample: the whole view and one newline."""
        rows = torch.cat([self._view(0).flatten(), torch.tensor([self.pooled])])
        return ImageViews(views=to_pixels(self._whole(image))[None], rows=rows)

    def pinpoint(self, size: tuple[int, int]) -> tuple[int, int]:
        """The grid that keeps most pixels of an image of ``size``; ties: least padding, then the first."""
        w, h = size

        def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            wide, high = pinpoint
            scale = min(wide / w, high / h)
            kept = min(int(w * scale) * int(h * scale), w * h)
            return kept, kept - wide * high

        return max(self.pinpoints, key=merit)

    def _overview(self, image: Image.Image) -> Image.Image:
        if self.squashed:
            return image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        return self._whole(image)

    def _whole(self, image: Image.Image) -> Image.Image:
        return square(image, self.size, GREY)[0]

    def _view(self, number: int) -> Tensor:
        """Feature rows of one view without its newlines, [pooled, pooled]."""
        n = self.pooled
        return number * n * (n + 1) + torch.arange(n)[:, None] * (n + 1) + torch.arange(n)

    def _map(self, columns: int, rows: int) -> Tensor:
        """Feature rows of all tiles joined, [rows * pooled, columns * pooled]; view 0 is the whole picture."""
        return torch.cat([torch.cat([self._view(1 + r * columns + c) for c in range(columns)], 1) for r in range(rows)])


def unpad(joined: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [rows, columns] of an image of ``size`` without padding: a centre crop of at least one row or column."""
    (w, h), (rows, columns) = size, joined.shape
    if w / h > columns / rows:
        p = (rows - max(1, int(h * columns / w))) // 2
        return joined[p : rows - p]
    p = (columns - max(1, int(w * rows / h))) // 2
    return joined[:, p : columns - p]


def _centred(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resized (bicubic) to fit into ``size`` with its aspect ratio kept, centred on black."""
    (w, h), (wide, high) = image.size, size
    if wide / w < high / h:
        fitted = (wide, min(math.ceil(h * wide / w), high))
    else:
        fitted = (min(math.ceil(w * high / h), wide), high)
    canvas = Image.new("RGB", size, (0, 0, 0))
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), ((wide - fitted[0]) // 2, (high - fitted[1]) // 2))
    return canvas


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> float32 [3, H, W] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """``AnyRes`` with the features of the joined tiles resized to about those of ``most`` views (LLaVA's anyres_max, as LLaDA-V has it)."""

    views: AnyRes
    most: int = 4

    def __call__(self, image: Image.Image) -> ImageViews:
        """The views, and the feature rows before they are resized."""
        return self.views(image)

    def one_of_several(self, image: Image.Image) -> ImageViews:
        """One of several images in a sample, which is not resized."""
        return self.views.one_of_several(image)

    def tokens(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The tokens of an image of ``size`` [T, D] from the feature rows of all its views [R, D]: those of the whole image, then the
        joined tiles, bilinearly resized where they are more than 1.1 times as wide and high as ``most`` views, a newline after each row.
        """
        n, kept = self.views.pooled, self.views.kept(size)
        rows, columns = kept.shape
        whole = features[: n * (n + 1)].view(n, n + 1, -1)[:, :n].flatten(0, 1)
        joined = features[kept.to(features.device)]
        times = math.sqrt(rows * columns / (self.most * n**2))
        if times > 1.1:
            target = (int(rows // times), int(columns // times))
            joined = F.interpolate(joined.permute(2, 0, 1)[None], target, mode="bilinear", align_corners=False)[0]
            joined = joined.permute(1, 2, 0)
        newline = features[n].expand(len(joined), 1, -1)
        return torch.cat([whole, torch.cat([joined, newline], dim=1).flatten(0, 1)])
