"""The published samplers of LLaDA2 (arXiv 2512.15745) and LLaDA2.0-Uni (arXiv 2604.20796), with an exact cache of finished blocks.

Public idea: ``llada2_text(..)``, ``llada2_image(..)``, ``llada2_edit(..)`` return a ``Sampler``. Blocks are the orders of the
tokens (``tokens.llada2.in_blocks``). A finished block reads no later one, so its keys and values are final, and ``PrefixCache`` gives
the results of a run without it; the released samplers compute the whole row at every step.
"""

from __future__ import annotations

from unmask.sampling.blocks import ByOrder
from unmask.sampling.cache import PrefixCache
from unmask.sampling.rescaled import Deviation, Rescaled
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import OfBlock
from unmask.sampling.selection import SureOrCounted
from unmask.sampling.stopping import EndOfTurn, Never
from unmask.sampling.token_sampler import Categorical, Truncated, Without

_OWN = frozenset({"prompt", "source"})
NULL = (("null", _OWN),)
NULLS = (("null text", _OWN), ("null image", _OWN))


def llada2_text(
    *,
    text_ids: int,
    mask_id: int,
    end: tuple[int, ...] = (),
    block: int = 32,
    steps: int = 32,
    threshold: float = 0.95,
    temperature: float = 0.0,
) -> Sampler:
    """Text and understanding, block after block. Only ids below ``text_ids`` are written, and never the mask; the released sampler takes
    the best of all ids, and a token that it "unmasks" as the mask stays masked · ``end``: ids that end a text.
    """
    words = Truncated(temperature=temperature, original=False)
    return Sampler(
        schedule=OfBlock(steps=steps, block=block),
        token_sampler=Without(ids=(mask_id,), token_sampler=words, size=text_ids),
        selection=SureOrCounted(value=threshold),
        blocks=ByOrder(),
        stopping=EndOfTurn(ids=end) if end else Never(),
        cache=PrefixCache(),
    )


def llada2_image(*, deviation: Deviation, block: int = 32, steps: int = 16, scale: float = 4.0) -> Sampler:
    """Text to codes, greedy: u + scale (c - u), rescaled; the threshold compares probabilities over codes alone."""
    return Sampler(
        schedule=OfBlock(steps=steps, block=block),
        guidance=Rescaled(scale=scale, instead=NULL, deviation=deviation),
        token_sampler=Categorical(temperature=0.0),
        selection=SureOrCounted(value=0.95),
        blocks=ByOrder(),
        cache=PrefixCache(),
    )


def llada2_edit(
    *, deviation: Deviation, block: int = 32, steps: int = 8, scale: float = 4.0, image_scale: float = 0.0
) -> Sampler:
    """Codes of a picture to codes: t + scale (c - t) + image_scale (t - i), where t has no instruction and i no picture."""
    guidance = Rescaled(scale=scale, image_scale=image_scale, instead=NULLS, deviation=deviation)
    drawn = llada2_image(deviation=deviation, block=block, steps=steps)
    return Sampler(
        schedule=drawn.schedule,
        guidance=guidance,
        token_sampler=drawn.token_sampler,
        selection=drawn.selection,
        blocks=drawn.blocks,
        cache=drawn.cache,
    )
