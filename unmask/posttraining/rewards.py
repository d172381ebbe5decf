"""What an answer is worth. Public idea: a ``Reward`` is any function from finished samples to one number each; larger is better.

``Weighted`` adds several; ``TokenShare``, ``AnswerMatch``, ``Pattern``, ``Format`` and ``Pictures`` are values that recipes combine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from unmask.sequence import Sequence

THINKING = r"\s*<think>.+?</think>.*\S.*"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished answer as rewards read it.

    ``sequence``: its tokens, on the CPU · ``prompt``: as the data states it · ``text``: of an answer in words, "" for a picture ·
    ``picture``: uint8 [H, W, 3], None for words · ``wanted``: the other fields of the prompt's row, such as ``answer``.
    """

    sequence: Sequence
    prompt: str = ""
    text: str = ""
    picture: np.ndarray | None = None
    wanted: Mapping[str, object] = field(default_factory=dict)


class Reward(Protocol):
    """(samples) -> a finite number for each, in their order. The number of a sample must not depend on the others."""

    def __call__(self, samples: Items[Sample]) -> list[float]: ...


@dataclass(frozen=True, kw_only=True)
class TokenShare:
    """The share of a span's tokens that have one id, 0..1. KeyError where a sequence lacks the span.

    A checkable reward for tests and first experiments, where the best answer is known.
    """

    span: str
    token: int

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return [self._share(sample.sequence) for sample in samples]

    def _share(self, answer: Sequence) -> float:
        span = answer.span(self.span)
        return float((answer.ids[span.start : span.stop] == self.token).float().mean())


@dataclass(frozen=True, kw_only=True)
class AnswerMatch:
    """1 where the answer equals the row's ``answer``, else 0. Case, outer spaces, a final full stop and the part in <think> do not count;
    numbers are compared by value. ValueError where a row has no ``answer``.
    """

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return [float(_plain(sample.text) == _plain(str(wanted_of(sample, "answer", "answer")))) for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """1 where the whole answer matches a regular expression (a dot matches every character), else 0."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is not a regular expression ({error}); see Python's re") from None

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return [float(re.fullmatch(self.pattern, sample.text, re.DOTALL) is not None) for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Format:
    """1 where an answer in words has the row's ``format`` (a regular expression), else 0; without one in the row, ``otherwise``, by default
    an answer after <think>…</think> (MMaDA section 4.2.1). A picture always has its format.
    """

    otherwise: str = THINKING

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return [1.0 if sample.picture is not None else self._has(sample) for sample in samples]

    def _has(self, sample: Sample) -> float:
        return Pattern(pattern=str(sample.wanted.get("format", self.otherwise)))([sample])[0]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A reward for pictures alone: ``score(pictures, samples) -> [float]``, such as a judge's verdict or the similarity of an encoder.
    ``name``: for errors. ValueError for an answer that is not a picture.
    """

    name: str
    score: Callable[[Items[np.ndarray], Items[Sample]], Items[float]]

    def __call__(self, samples: Items[Sample]) -> list[float]:
        pictures = [sample.picture for sample in samples if sample.picture is not None]
        if len(pictures) < len(samples):
            raise ValueError(f"the reward {self.name} scores pictures, and an answer has none; leave it out for words")
        return [float(value) for value in self.score(pictures, samples)]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A user's function of one sample. ValueError where it returns no finite number."""

    name: str
    function: Callable[[Sample], float]

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return [self._value(sample) for sample in samples]

    def _value(self, sample: Sample) -> float:
        value = self.function(sample)
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        raise ValueError(f"the reward {self.name} returned {value!r}; return a finite number")


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Several rewards and their weights: (name, reward, weight)."""

    parts: tuple[tuple[str, Reward, float], ...]

    def each(self, samples: Items[Sample]) -> dict[str, list[float]]:
        """Every reward by name, without its weight."""
        return {name: reward(samples) for name, reward, _ in self.parts}

    def total(self, each: Mapping[str, Items[float]]) -> list[float]:
        """The weighted sum for every sample."""
        weights = {name: weight for name, _, weight in self.parts}
        rows = zip(*(tuple(weights[name] * v for v in values) for name, values in each.items()), strict=True)
        return [sum(row) for row in rows]

    def __call__(self, samples: Items[Sample]) -> list[float]:
        return self.total(self.each(samples))


def wanted_of(sample: Sample, name: str, reward: str) -> object:
    """A field of a sample's row. ValueError where it is missing."""
    if name not in sample.wanted:
        raise ValueError(
            f"the reward {reward} needs {name!r} in every row, and {sample.prompt[:60]!r} has none; add it"
        )
    return sample.wanted[name]


def _plain(text: str) -> str | float:
    said = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip().rstrip(".").strip().lower()
    try:
        return float(said.replace(",", ""))
    except ValueError:
        return " ".join(said.split())
