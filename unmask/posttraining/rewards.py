"""What an answer is worth. Public idea: a ``Reward`` is any function from a finished sequence to a number; larger is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from unmask.sequence import Sequence


class Reward(Protocol):
    """(finished sequence on the CPU) -> a finite number."""

    def __call__(self, answer: Sequence) -> float: ...


@dataclass(frozen=True, kw_only=True)
class TokenShare:
    """The share of a span's tokens that have one id, 0..1. KeyError where a sequence lacks the span.

    A checkable reward for tests and first experiments, where the best answer is known.
    """

    span: str
    token: int

    def __call__(self, answer: Sequence) -> float:
        span = answer.span(self.span)
        return float((answer.ids[span.start : span.stop] == self.token).float().mean())
