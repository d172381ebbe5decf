"""Picture and question -> text, and gaps in a text -> text (spec 4.1). Public idea: ``Ask`` and ``FillText``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import Greedy, GumbelText
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tasks.results import answered
from unmask.tokens.build import looking
from unmask.tokens.text import EOS, EOT
from unmask.tokens.views import ImageViews

GAP = "[mask]"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question about a picture (``pixels [3, side, side]``, or its views; None: no picture); the answer has ``length`` tokens."""

    pixels: Tensor | ImageViews | None
    question: str
    length: int = 4
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        return tokens.rows.asking(tokens, self.pixels, self.question, self.length)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


@dataclass(frozen=True, kw_only=True)
class FillText:
    """A caption in which every ``[mask]`` is a gap of one token; given words stay."""

    target: str
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head"})

    def build(self, tokens: Parts) -> Sequence:
        if "[slot:" in self.target:
            raise ValueError("this model has no slots that it may leave empty; use [mask:N] for N tokens")
        if GAP not in self.target:
            raise ValueError(f"no {GAP} in {self.target!r}; write one for every missing word")
        b = looking(tokens.builder(), None)
        segment = b.first_segment
        b.say("question", tokens.wording.complete, *b.end_of_turn(), segment=segment)
        b.say("question", *b.header("assistant"), segment=segment)
        for piece in re.split(f"({re.escape(GAP)})", self.target):
            if piece == GAP:
                b.write("answer", 1, segment=segment)
            elif piece.strip():
                b.say("answer", piece.strip(), segment=segment)
        return b.say("end", *b.end_of_turn(), segment=segment).build(self.target)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


def sampler(tokens: Parts, *, block: int = 32) -> Sampler:
    """Low-confidence remasking (LLaDA): greedy, one token per step, blocks from left to right, early stopping at the end of turn."""
    return Sampler(
        schedule=Fixed(each=1),
        token_sampler=GumbelText(temperature=0.0),
        selection=Confident(),
        blocks=Blocks(length=block),
        stopping=EndOfTurn(ids=(tokens.text[EOT], tokens.text[EOS])),
        cache=PrefixCache(least=256),
    )


def fill_sampler(tokens: Parts) -> Sampler:
    """One gap per step, most confident first."""
    return Sampler(schedule=Fixed(each=1), token_sampler=Greedy(), selection=Confident())
