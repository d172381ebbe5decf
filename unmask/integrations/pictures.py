"""Prompts and pictures as image libraries pass them: one or several, as Pillow images, arrays or tensors in 0..1.

Public idea: ``pictures(given)`` reads what a caller gives, ``converted(images, "pt")`` returns what the caller wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.tokens.sources import Picture

Pictures = Picture | Tensor | Sequence[Picture | Tensor]
OUTPUTS = ("pil", "np", "pt")


def converted(images: Sequence[Image.Image], output_type: str) -> Any:
    """Pictures as a list of Pillow images ("pil"), an array [B, H, W, 3] ("np") or a tensor [B, 3, H, W] ("pt") in 0..1."""
    if output_type == "pil":
        return list(images)
    values = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images])
    return values if output_type == "np" else torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()


def texts(prompt: str | Sequence[str]) -> list[str]:
    """A list of prompts. ValueError for an empty one."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    return prompts


def pictures(given: Pictures) -> list[Picture]:
    """A list of pictures: one, several, or a tensor or array of several."""
    if isinstance(given, Tensor | np.ndarray):
        return [_picture(one) for one in given] if given.ndim == 4 else [_picture(given)]
    return [_picture(one) for one in given] if isinstance(given, list | tuple) else [_picture(given)]


def _picture(given: Any) -> Picture:
    """A picture as ``read_image`` takes it: a tensor [C, H, W] in 0..1 becomes a Pillow image."""
    if not isinstance(given, Tensor):
        return given
    if given.ndim != 3 or given.shape[0] not in (1, 3):
        raise ValueError(f"a picture has the shape {tuple(given.shape)}; give [3, H, W] in 0..1")
    values = (given.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values.expand(-1, -1, 3).numpy())


def paired(prompts: list[str], pictures: list[Picture], name: str) -> tuple[list[str], list[Picture]]:
    """As many prompts as pictures; one of either is used for all. ValueError for other numbers."""
    if len(prompts) == len(pictures):
        return prompts, pictures
    if len(pictures) == 1:
        return prompts, pictures * len(prompts)
    if len(prompts) == 1:
        return prompts * len(pictures), pictures
    raise ValueError(f"{len(prompts)} prompts came with {len(pictures)} of {name}; give as many, or one of either")
