"""Picture and phrases -> boxes, all in one pass (spec 4.7). Public idea: ``Ground(phrases=...)``."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from unmask.sampling.cache import PrefixCache
from unmask.sampling.presets import lavida_o_ground
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tokens.boxes import FractionBox, from_bins
from unmask.tokens.build import grounding, grounding_together, looking
from unmask.tokens.text import BINS
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The box of each of ``phrases`` in a picture: ``pixels [3, side, side]``, or its views.

    Phrases do not attend to each other, so a box is independent of the other phrases. In a model whose prompt is one segment they do:
    several phrases stand in its published prompt for several objects, one phrase in that for a referring expression (spec 2.2).
    """

    pixels: Tensor | ImageViews
    phrases: tuple[str, ...]
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        if not self.phrases or not all(p.strip() for p in self.phrases):
            raise ValueError("ground needs at least one phrase, and none may be empty")
        b = tokens.builder()
        if b.quirks.one_segment and len(self.phrases) > 1:
            return grounding_together(looking(b, self.pixels), self.phrases).build("; ".join(self.phrases))
        looking(b.say("prompt", "'") if b.quirks.stray_apostrophe else b, self.pixels)
        for i, phrase in enumerate(self.phrases):
            grounding(b, phrase, None, segment=i + b.first_segment)
        return b.build("; ".join(self.phrases))

    def read(self, sequence: Sequence, tokens: Parts) -> Items[FractionBox]:
        """One box per phrase, in fractions of the square picture."""
        first = tokens.text.first_location
        spans = [s for s in sequence.spans if s.name == "box"]
        return [from_bins([i - first for i in sequence.ids[s.start : s.stop].tolist()]) for s in spans]


def sampler(tokens: Parts, steps: int = 1) -> Sampler:
    """``steps`` 1 to 4 for the four coordinates of a box, most confident first; coordinate tokens only."""
    first = tokens.text.first_location
    return replace(lavida_o_ground(low=first, high=first + BINS + 1, steps=steps), cache=PrefixCache(least=256))
