"""Prompt -> layout, before the picture (spec 2.2, 4.8). Public idea: ``PlanImage(prompt=...)`` and ``PlanEdit(instruction=...)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import GumbelText
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tokens.build import planning_edit
from unmask.tokens.layouts import Layout, from_ids
from unmask.tokens.prompts import Conditions
from unmask.tokens.text import EOS, EOT, EXP
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class PlanImage:
    """The layout of a prompt's objects, in ``length`` tokens; of families that describe a picture before they draw it, that text."""

    prompt: str
    length: int
    conditions: Conditions | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head"})

    def build(self, tokens: Parts) -> Sequence:
        return tokens.rows.planning(tokens, self.prompt, self.length, self.conditions)

    def read(self, sequence: Sequence, tokens: Parts) -> Layout:
        span = sequence.span("plan")
        return tokens.rows.plan_in(tokens, sequence.ids[span.start : span.stop].tolist())


@dataclass(frozen=True, kw_only=True)
class PlanEdit:
    """What an instruction changes in a picture (``pixels [3, side, side]``, or its views), in ``length`` tokens."""

    pixels: Tensor | ImageViews
    instruction: str
    length: int
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        return planning_edit(tokens.builder(), self.pixels, self.instruction, self.length)

    def read(self, sequence: Sequence, tokens: Parts) -> Layout:
        span = sequence.span("plan")
        return from_ids(sequence.ids[span.start : span.stop].tolist(), tokens.text, tokens.wording)


def sampler(tokens: Parts, *, temperature: float = 0.5) -> Sampler:
    """Blocks of 8 from left to right, one token per step, most confident first; the temperature makes layouts differ between attempts."""
    return Sampler(
        schedule=Fixed(each=1),
        token_sampler=GumbelText(temperature=temperature),
        selection=Confident(),
        blocks=Blocks(length=8),
        stopping=EndOfTurn(ids=(tokens.text[EOT], tokens.text[EOS], tokens.text[EXP])),
        cache=PrefixCache(least=256),
    )


def edit_sampler(tokens: Parts) -> Sampler:
    """``sampler`` at temperature 0: an edit has one right layout. Also decodes the text of conversations."""
    return sampler(tokens, temperature=0.0)
