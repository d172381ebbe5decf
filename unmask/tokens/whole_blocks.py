"""Pictures for a tower that reads any size made of whole blocks of patches (Qwen2-VL, arXiv 2409.12191).

Public idea: ``WholeBlocks(block=28, least=.., most=..)(image) -> ImageViews`` of one view, one token a block, with its grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image

from unmask.tokens.views import ImageViews, to_pixels


@dataclass(frozen=True, kw_only=True)
class WholeBlocks:
    """``block``: pixels along one side of a block · ``least``, ``most``: pixels of the resized picture."""

    block: int = 28
    least: int = 56**2
    most: int = 28**2 * 1280

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that a picture of ``size`` is resized to. ValueError for one more than 200 times as long as wide."""
        if max(size) > 200 * min(size):
            raise ValueError(f"a picture of {size[0]} x {size[1]} pixels is too narrow; its sides may differ 200 times")
        sides = [max(self.block, round(side / self.block) * self.block) for side in size]
        area = size[0] * size[1]
        if sides[0] * sides[1] > self.most:
            scale = math.sqrt(area / self.most)
            sides = [max(self.block, math.floor(side / scale / self.block) * self.block) for side in size]
        elif sides[0] * sides[1] < self.least:
            scale = math.sqrt(self.least / area)
            sides = [math.ceil(side * scale / self.block) * self.block for side in size]
        return sides[0], sides[1]

    def __call__(self, image: Image.Image) -> ImageViews:
        width, height = self.size(image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        grid = height // self.block, width // self.block
        return ImageViews(views=to_pixels(resized)[None], rows=torch.arange(grid[0] * grid[1]), grid=grid)

    def one_of_several(self, image: Image.Image) -> ImageViews:
        """One of several pictures is resized as a single one is."""
        return self(image)
