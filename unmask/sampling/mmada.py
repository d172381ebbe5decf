"""The published samplers of MMaDA (Yang et al. 2025, arXiv 2505.15809), as its scripts call them.

Public idea: ``mmada_image(codes=..)`` and ``mmada_text(..)``: functions that return a ``Sampler``.
"""

from __future__ import annotations

from collections.abc import Container

from unmask.sampling.cooling import Cooling
from unmask.sampling.kept import Kept
from unmask.sampling.other_prompts import OtherPrompts
from unmask.sampling.presets import shared_vocabulary_text
from unmask.sampling.sampler import Sampler
from unmask.sampling.token_sampler import Categorical

NULL = (("null", frozenset({"prompt"})),)  # the span of the null prompt, and what it replaces


def mmada_image(*, codes: int, steps: int = 15, scale: float = 3.5) -> Sampler:
    """Text to image: cosine schedule, guidance, a code drawn at temperature 1, and confidence with noise that fades.

    ``codes``: of a whole picture; where some are given (infilling), the schedule counts those too.
    """
    return Sampler(
        schedule=Kept(steps=steps, of=codes),
        guidance=OtherPrompts(scale=scale, instead=NULL),
        token_sampler=Categorical(temperature=1.0),
        selection=Cooling(noise=1.0),
    )


def mmada_text(
    *,
    text_ids: int,
    mask_id: int,
    drop: Container[str],
    end: tuple[int, ...] = (),
    block: int = 128,
    steps: int = 64,
    temperature: float = 0.0,
) -> Sampler:
    """Text and understanding: LLaDA's blocks from left to right, the surest tokens first; 512 tokens in 256 steps, or ``steps`` a block.

    Only ids below ``text_ids`` are written, and never the mask: the released sampler takes the best of all ids, image codes too · ``end``:
    ids that end a turn.
    """
    return shared_vocabulary_text(
        text_ids=text_ids, mask_id=mask_id, drop=drop, end=end, block=block, steps=steps, temperature=temperature
    )
