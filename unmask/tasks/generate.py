"""Text -> picture (spec 2.2, 4.2). Public idea: ``Generate(prompt=...)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor

from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tasks.rows import Extras
from unmask.tokens.build import LOOK, PLAN, PROMPT, FailedAttempt
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import Conditions


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A picture of ``prompt``; ``conditions``: properties that the prompt states as text (spec 2.4).

    ``plan``: the layout of its objects · ``attempts``: earlier pictures and their critiques.
    """

    prompt: str
    conditions: Conditions | None = None
    plan: Layout | None = None
    attempts: tuple[FailedAttempt, ...] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"und.joint", "gen", "vq.decoder"})

    def build(self, tokens: Parts) -> Sequence:
        extras = Extras(conditions=self.conditions, plan=self.plan, attempts=self.attempts)
        return tokens.rows.drawing(tokens, self.prompt, extras)

    def read(self, sequence: Sequence, tokens: Parts) -> Image.Image:
        return tokens.decode(picture_codes(sequence, "image")[None])[0]


def picture_codes(sequence: Sequence, name: str) -> Tensor:
    """The codes of a span as a grid [h, w]."""
    return picture_so_far(sequence, name)[0]


def picture_so_far(sequence: Sequence, name: str) -> tuple[Tensor, Tensor]:
    """The codes of a span as a grid [h, w], and which of them are masked."""
    span = sequence.span(name)
    assert span.grid is not None
    part = slice(span.start, span.stop)
    return sequence.ids[part].reshape(span.grid), sequence.masked[part].reshape(span.grid)


def sampler(tokens: Parts) -> Sampler:
    """Pictures of our own models: 16 steps of MaskGIT's cosine schedule, guidance, confidence with decreasing noise.

    Chosen on validation prompts (bench/quality.py; see docs/log.md).
    """
    return Sampler(
        schedule=Cosine(steps=16),
        guidance=ClassifierFree(scale=1.0, drop=PROMPT | PLAN | LOOK, null_id=tokens.mask_id),
        token_sampler=Categorical(temperature=0.5),
        selection=Confident(noise=Linear(start=4.0, end=0.0)),
    )
