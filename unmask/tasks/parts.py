"""The loaded pieces a task works with, and the steps between pixels and codes that several tasks share.

Public idea: ``Parts`` is handed to every task's ``build`` and ``read``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.tokens.build import Builder
from unmask.tokens.pictures import Placement, square
from unmask.tokens.prompts import Wording
from unmask.tokens.text import MASK, Text
from unmask.tokens.vq import VQ

PAPER = (250, 250, 250)  # what lies around a picture that is not square


@dataclass(frozen=True, kw_only=True)
class Parts:
    """``side``: pixels of the pictures that are drawn · ``fold``: codes a position along one side."""

    text: Text
    net: Elastic
    vq: VQ
    wording: Wording
    side: int
    fold: int

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of one picture: (rows, columns)."""
        n = self.side // self.vq.config.factor
        return (n, n)

    @property
    def mask_id(self) -> int:
        return self.text[MASK]

    @property
    def look_tokens(self) -> int:
        """Tokens of one picture as the understanding branch reads it."""
        return self.net.config.vision.tokens if self.net.config.vision else 0

    def builder(self) -> Builder:
        return Builder(text=self.text, wording=self.wording, look_tokens=self.look_tokens)

    def see(self, image: Image.Image) -> tuple[Tensor, Placement]:
        """A user's picture, padded to a square and resized: [3, side, side] in 0..1, and the way back to its own pixels."""
        padded, placement = square(image, self.side, PAPER)
        return to_pixels(padded), placement

    def encode(self, pixels_3HW: Tensor) -> Tensor:
        """One picture -> codes [h, w]."""
        with torch.no_grad():
            return self.vq.encode(pixels_3HW[None].to(self.vq.quant_conv.weight.device))[0]

    def decode(self, codes_Bhw: Tensor) -> list[Image.Image]:
        """Codes -> pictures."""
        with torch.no_grad():
            pixels = self.vq.decode(codes_Bhw.to(self.vq.quant_conv.weight.device))
        return [to_image(p) for p in pixels]

    def canvas(self, codes_hw: Tensor, masked_hw: Tensor) -> Image.Image:
        """A picture in the making: decided codes as they look so far, undecided ones as a grey grid."""
        factor = self.vq.config.factor
        pixels = np.asarray(self.decode(codes_hw.masked_fill(masked_hw, int(codes_hw[0, 0]))[None])[0]).copy()
        for row, column in masked_hw.nonzero().tolist():
            tile = pixels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            tile[:] = 190
            tile[1:-1, 1:-1] = 212
        return Image.fromarray(pixels)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> float32 [3, H, W] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def to_image(pixels_3HW: Tensor) -> Image.Image:
    """Pixels in 0..1 -> RGB picture."""
    array = (pixels_3HW.detach().float().cpu() * 255 + 0.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
