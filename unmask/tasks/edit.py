"""Picture and instruction -> picture (spec 4.6). Public idea: ``Edit(instruction=...)``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from PIL import Image
from torch import Tensor

from unmask.sampling.guidance import EditGuidance
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence
from unmask.tasks.generate import picture_codes
from unmask.tasks.parts import Parts
from unmask.tokens.build import LOOK, PLAN, PROMPT, SOURCE
from unmask.tokens.layouts import Layout
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Edit:
    """``pixels [3, side, side]`` edited by ``instruction``.

    ``look``: the views that the vision tower reads, if not ``pixels`` · ``plan``: what changes, and where · ``codes``: VQ codes of
    ``pixels``, if known · ``kind``: of edit, by the name that the model's family gives it · ``references``: pixels of further pictures that
    it reads. Models with one kind of edit take neither (ValueError).
    """

    pixels: Tensor
    instruction: str
    look: Tensor | ImageViews | None = None
    plan: Layout | None = None
    codes: Tensor | None = None
    kind: str = ""
    references: tuple[Tensor, ...] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"und.joint", "gen", "vision", "vq.encoder", "vq.decoder"})

    def build(self, tokens: Parts) -> Sequence:
        source = (tokens.encode(self.pixels) if self.codes is None else self.codes).cpu()
        seen = self.pixels if self.look is None else self.look
        rows = tokens.rows
        if self.kind or self.references:
            rows = rows.of_kind(self.kind, [tokens.encode(pixels).cpu() for pixels in self.references])
        return rows.editing(tokens, seen, source, self.instruction, self.plan)

    def read(self, sequence: Sequence, tokens: Parts) -> Image.Image:
        return tokens.decode(picture_codes(sequence, "image")[None])[0]


def sampler(tokens: Parts) -> Sampler:
    """Edits of our own models: 32 steps of MaskGIT's cosine schedule, most confident code first.

    Guidance (mode 0 of spec 4.5, ``--guidance``) is available but off: it brought no gain on validation (docs/log.md).
    """
    return Sampler(
        schedule=Cosine(steps=32),
        guidance=EditGuidance(
            scale=0.0, image_scale=0.0, drop=PROMPT | LOOK | PLAN | SOURCE, keep=SOURCE, null_id=tokens.mask_id
        ),
        token_sampler=Categorical(temperature=0.3),
        selection=Confident(),
    )


def again(tokens: Parts) -> Sampler:
    """Sampler of further attempts at an edit, hotter: with ``sampler``, three seeds give only 1.03 different pictures on average."""
    return replace(
        sampler(tokens),
        token_sampler=Categorical(temperature=1.0),
        selection=Confident(noise=Linear(start=4.0, end=0.0)),
    )
