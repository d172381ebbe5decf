"""A region of a picture -> filled: masked models need no training for it. Public idea: ``Infill(region=...)``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from unmask.sequence import Sequence
from unmask.tasks.generate import Generate, picture_codes, picture_places
from unmask.tasks.parts import Parts, to_image, to_pixels
from unmask.tokens.layouts import Layout


@dataclass(frozen=True, kw_only=True)
class Infill:
    """``pixels [3, side, side]`` with ``region [side, side]`` (True: fill); ``prompt`` describes the whole picture.

    A code is masked if the region covers any of its pixels. All other codes keep their pixels in the result.
    """

    pixels: Tensor
    region: Tensor
    prompt: str = ""
    plan: Layout | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"und.joint", "gen", "vq.encoder", "vq.decoder"})

    def open_codes(self, tokens: Parts) -> Tensor:
        """Which codes are masked, [h, w]."""
        factor = tokens.vq.config.factor
        return self.region.unfold(0, factor, factor).unfold(1, factor, factor).flatten(2).any(2)

    def build(self, tokens: Parts) -> Sequence:
        open_ = self.open_codes(tokens)
        if not bool(open_.any()):
            raise ValueError("the region is empty; paint the part to fill in white")
        height, width = self.region.shape
        size = None if (width, height) == (tokens.side, tokens.side) else (width, height)
        sequence = Generate(prompt=self.prompt, plan=self.plan, size=size).build(tokens)
        at, _ = picture_places(sequence, "image")
        ids, masked = sequence.ids.clone(), sequence.masked.clone()
        ids[at] = tokens.encode(self.pixels).cpu().flatten()
        masked[at] = open_.flatten()
        return replace(sequence, ids=ids, masked=masked)

    def read(self, sequence: Sequence, tokens: Parts) -> Image.Image:
        filled = tokens.decode(picture_codes(sequence, "image")[None])[0]
        factor = tokens.vq.config.factor
        mask = self.open_codes(tokens).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        return to_image(torch.where(mask, to_pixels(filled), self.pixels))
