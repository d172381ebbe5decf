"""The published samplers of Lumina-DiMOO (Xin et al. 2025, arXiv 2510.06308), as its scripts call them.

Public idea: ``dimoo_image()``, ``dimoo_edit()`` and ``dimoo_text(..)``: functions that return a ``Sampler``.
"""

from __future__ import annotations

from collections.abc import Container

from unmask.sampling.kept import Kept
from unmask.sampling.other_prompts import OtherPrompts
from unmask.sampling.presets import shared_vocabulary_text
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical

_OWN = frozenset({"prompt", "source"})
NULL = (("null", _OWN),)
NULLS = (("null text", _OWN), ("null image", _OWN))


def dimoo_image(*, steps: int = 64, scale: float = 4.0) -> Sampler:
    """Text to image, and in- and outpainting: cosine schedule of the masked codes, guidance, and temperature 1 for code and confidence."""
    return Sampler(
        schedule=Kept(steps=steps),
        guidance=OtherPrompts(scale=scale, instead=NULL),
        token_sampler=Categorical(temperature=1.0),
        selection=Confident(noise=1.0),
    )


def dimoo_edit(*, steps: int = 64, scale: float = 2.5, image_scale: float = 4.0) -> Sampler:
    """Image to image: c + scale (c - u) + image_scale (c - v), where u has the pictures alone and v the text alone."""
    return Sampler(
        schedule=Kept(steps=steps),
        guidance=OtherPrompts(scale=scale, instead=NULLS, other_scale=image_scale),
        token_sampler=Categorical(temperature=1.0),
        selection=Confident(noise=1.0),
    )


def dimoo_text(
    *,
    text_ids: int,
    mask_id: int,
    drop: Container[str],
    end: tuple[int, ...] = (),
    block: int = 256,
    steps: int = 32,
    temperature: float = 0.0,
) -> Sampler:
    """Understanding: LLaDA's blocks from left to right; the script's 1,024 tokens in 128 steps are ``steps`` a block.

    Only ids below ``text_ids`` are written, and never the mask: the released sampler takes the best of all ids · ``end``: ids that end an
    answer; the released early stop fails.
    """
    return shared_vocabulary_text(
        text_ids=text_ids, mask_id=mask_id, drop=drop, end=end, block=block, steps=steps, temperature=temperature
    )
