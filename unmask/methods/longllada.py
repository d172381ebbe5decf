"""LongLLaDA: a longer context for a trained masked diffusion model by one number, the factor of its rotary base.

Paper: Liu, Li, Liu, Song, Zhang, Guo, He, Zhang, Huang and Qiu, "LongLLaDA: Unlocking Long Context Capabilities in Diffusion LLMs", 2025,
arXiv 2506.14429.

Equations: a rotary network of base b and head width d turns the pair of channels 2i, 2i + 1 with the wavelength 2 pi b^(2i/d). Pairs whose
wavelength is longer than the rows of the training, T, never completed a turn there, so larger distances show them angles that they have
not seen. The first of them belongs to the critical dimension

    d' = 2 ceil(d/2 log_b(T / 2 pi))

and the base is multiplied by the factor that gives this pair the wavelength of the target length T':

    factor = max(1, (T' / 2 pi)^(d/d') / b),    1 where T' <= T

For LLaDA (b = 500,000, d = 128, T = 4,096) it is 3.40, 13.6, 30.6 and 54.4 at 8, 16, 24 and 32 thousand tokens; the paper rounds up (4, 14,
31, 55). Faster pairs hardly change, so near tokens are told apart as before.

What changes: ``ElasticConfig.rope_factor`` of any rotary network (``models.rope.ntk_factor``, ``pipeline.context``). No weight changes and
nothing is trained. The released scripts multiply the base by a constant for each length instead of a formula.

What it costs: nothing by itself; attention over a longer row costs what it costs. The factor changes all distances a little, so use it
only where rows are longer than in training (it is 1 below). Dream is said to be trained on 32,768 positions in its config.json; the
paper's factor for it, 5, comes out for 2,048, which is what we take.

Pictures: text, picture features and codes of a row share one count of positions, so the factor holds for all of them. A factor for text
alone would tear apart the distances between a picture and its caption.

Shapes: none of its own.
"""

from __future__ import annotations

from unmask.methods.card import Card
from unmask.models.rope import critical_dimension, ntk_factor

__all__ = ["critical_dimension", "ntk_factor"]

CARD = Card(
    title="LongLLaDA: Unlocking Long Context Capabilities in Diffusion LLMs",
    paper="arXiv 2506.14429",
    year=2025,
    changes="network: the rotary base is multiplied by a factor for the target length",
    claim="LLaDA reads up to 6 times the trained length without training; a causal model without the factor fails beyond it.",
    status="reference",
    command="unmask ask QUESTION --model MODEL --context N",
)
