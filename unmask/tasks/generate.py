"""Text -> picture (spec 2.2, 4.2). Public idea: ``Generate(prompt=...)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Kind, Sequence
from unmask.tasks.parts import Parts
from unmask.tasks.rows import Extras
from unmask.tokens.build import LOOK, PLAN, PROMPT, FailedAttempt
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import Conditions


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A picture of ``prompt``; ``conditions``: properties that the prompt states as text (spec 2.4).

    ``plan``: the layout of its objects · ``attempts``: earlier pictures and their critiques · ``size``: width and height in
    pixels, for families that draw any shape.
    """

    prompt: str
    conditions: Conditions | None = None
    plan: Layout | None = None
    attempts: tuple[FailedAttempt, ...] = ()
    size: tuple[int, int] | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"und.joint", "gen", "vq.decoder"})

    def build(self, tokens: Parts) -> Sequence:
        extras = Extras(conditions=self.conditions, plan=self.plan, attempts=self.attempts, size=self.size)
        return tokens.rows.drawing(tokens, self.prompt, extras)

    def read(self, sequence: Sequence, tokens: Parts) -> Image.Image:
        return tokens.decode(picture_codes(sequence, "image")[None])[0]


def picture_codes(sequence: Sequence, name: str) -> Tensor:
    """The codes of a span as a grid [h, w]."""
    return picture_so_far(sequence, name)[0]


def picture_so_far(sequence: Sequence, name: str) -> tuple[Tensor, Tensor]:
    """The codes of a picture as a grid [h, w], and which of them are masked."""
    at, columns = picture_places(sequence, name)
    return sequence.ids[at].view(-1, columns), sequence.masked[at].view(-1, columns)


def picture_places(sequence: Sequence, name: str) -> tuple[Tensor, int]:
    """The token numbers of a picture's codes, row by row, and its columns. It has one span, or one for every row."""
    spans = [span for span in sequence.spans if span.name == name and span.kind == Kind.CODE]
    grids = [span.grid for span in spans if span.grid is not None]
    if not grids or len({columns for _, columns in grids}) > 1:
        sequence.span(name)  # KeyError
        raise ValueError(f"the spans {name!r} are no picture: grids {grids}")
    return torch.cat([torch.arange(span.start, span.stop) for span in spans]), grids[0][1]


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
