"""Requests to image-token models: rows of a caption and codes in one vocabulary, and the sampler that draws code by code.

Public idea: ``ImageTokenRows(arrange=...)`` is the ``rows`` field of their ``Parts``; ``arrange`` says who reads whom in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import Tensor

from unmask.sampling.cache import PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import InOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tasks.rows import Extras, PlainRows
from unmask.tokens.image_tokens import drawn, reported
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import Conditions, Wording
from unmask.tokens.turns import Said
from unmask.tokens.views import ImageViews


@dataclass(frozen=True, kw_only=True)
class ImageTokenRows(PlainRows):
    """``arrange``: a row of masked codes -> the same with the attention of the model, for example ``methods.dida.canvas``."""

    arrange: Callable[[Sequence], Sequence]

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if extras != Extras():
            raise ValueError(
                "an image-token model draws from a prompt alone; leave out conditions, layouts, attempts and sizes"
            )
        return self.arrange(drawn(tokens.text, tokens.wording.read(prompt), tokens.grid))

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> NoReturn:
        _only_draws("plan layouts")

    def plan_in(self, tokens: Parts, ids: Items[int]) -> NoReturn:
        _only_draws("plan layouts")

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> NoReturn:
        _only_draws("edit pictures")

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> NoReturn:
        _only_draws("hold conversations")

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> NoReturn:
        _only_draws("answer questions")


@dataclass(frozen=True, kw_only=True)
class ReportRows(PlainRows):
    """Pictures with a report of ``length`` tokens behind them (``methods.medim``): a prompt is a report that is given."""

    length: int

    def canvas(self, length: int, max_tokens: int | None) -> int:
        return self.length

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if extras != Extras():
            raise ValueError("this model draws from a report alone; leave out conditions, layouts, attempts and sizes")
        return _given(reported(tokens.text, tokens.grid, tokens.wording.read(prompt), self.length), "report")

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> NoReturn:
        raise ValueError("this model cannot plan layouts; it has generate and describe")

    def plan_in(self, tokens: Parts, ids: Items[int]) -> NoReturn:
        raise ValueError("this model cannot plan layouts; it has generate and describe")

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> NoReturn:
        raise ValueError("this model cannot edit pictures; it has generate and describe")

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> NoReturn:
        raise ValueError("this model cannot hold conversations; it has generate and describe")

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence:
        """The report of a picture, whatever the question."""
        if not isinstance(picture, Tensor):
            raise ValueError("this model writes reports of pictures; give one")
        made = _given(reported(tokens.text, tokens.encode(picture).cpu(), None, self.length), "image")
        return replace(made, spans=(*made.spans[:-1], replace(made.spans[-1], name=name)))

    def both(self, tokens: Parts) -> Sequence:
        """A picture and its report, both masked."""
        return reported(tokens.text, tokens.grid, None, self.length)


def _given(sequence: Sequence, name: str) -> Sequence:
    """The row with a span that is not written."""
    spans = tuple(replace(s, writable=False) if s.name == name else s for s in sequence.spans)
    return replace(sequence, spans=spans)


def _only_draws(what: str) -> NoReturn:
    raise ValueError(f"this image-token model cannot {what}; it has generate")


def code_by_code(tokens: Parts) -> Sampler:
    """The sampler of a causal model: one code a forward, in reading order, over what earlier forwards kept."""
    return Sampler(
        schedule=Fixed(each=1),
        token_sampler=Categorical(temperature=0.7),
        selection=InOrder(order=tuple(range(tokens.grid[0] * tokens.grid[1]))),
        cache=PrefixCache(),
    )
