"""Texts about rows of coloured objects, small networks that write them, and whether a text is true of its row.

Public idea: ``rows(Caption(), count, seed) -> [Row]``; ``network(..)`` and ``trained(..)`` give a masked or an autoregressive network. A
caption relates two of three objects. There are six true ones, whose words depend on each other: a model that samples them independently
mixes two captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import OftenAll, Uniform
from unmask.evaluation.demonstration import Work
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.objectives.next_token import NextToken
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Span, collate
from unmask.sequence import Sequence as Tokens

NOUNS = ("apple", "ball", "boat", "book", "cat", "chair", "clock", "dog", "hat", "key", "lamp", "tree")
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
PLACES = ("first", "second", "third", "fourth")  # in no caption, as some of the others
OTHERS = ("the", "is", "left", "right", "of", "then", "there", "a", "at", ";")
WORDS = (*NOUNS, *COLOURS, *PLACES, *OTHERS)
MASK_ID = len(WORDS)
Thing = tuple[str, str]  # colour, noun


class Form(Protocol):
    """``objects``: in a row · ``answer(things, rng)``: the words of a true answer · ``is_true(things, words)``."""

    @property
    def objects(self) -> int: ...
    def answer(self, things: Sequence[Thing], rng: Random) -> list[str]: ...
    def is_true(self, things: Sequence[Thing], words: Sequence[str]) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Caption:
    """ "the red cat is left of the blue dog": two objects of the row and how they lie, 9 words."""

    objects: int = 3

    def answer(self, things: Sequence[Thing], rng: Random) -> list[str]:
        first, second = rng.sample(range(len(things)), 2)
        side = "left" if first < second else "right"
        return ["the", *things[first], "is", side, "of", "the", *things[second]]

    def is_true(self, things: Sequence[Thing], words: Sequence[str]) -> bool:
        ends, inner = (tuple(words[1:3]), tuple(words[7:9])), [*words[:1], *words[3:4], *words[5:7]]
        if inner != ["the", "is", "of", "the"] or any(end not in things for end in ends) or ends[0] == ends[1]:
            return False
        first, second = (list(things).index(end) for end in ends)  # type: ignore[arg-type]
        return words[4] == ("left" if first < second else "right")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of objects, and its sequence with the answer masked (``ids`` hold a true one)."""

    things: tuple[Thing, ...]
    sequence: Tokens

    def answer(self, ids: Tensor) -> list[str]:
        """The words that a finished row [L] has in its answer; "?" for the mask."""
        span = self.sequence.span("answer")
        return [WORDS[i] if i < MASK_ID else "?" for i in ids[span.start : span.stop].tolist()]


def rows(form: Form, count: int, seed: object) -> list[Row]:
    """Rows of different nouns, each with one true answer."""
    rng = Random(f"scene text/{seed}")
    return [_row(form, rng) for _ in range(count)]


def _row(form: Form, rng: Random) -> Row:
    nouns = rng.sample(NOUNS, form.objects)
    things = tuple((rng.choice(COLOURS), noun) for noun in nouns)
    given, answer = [word for thing in things for word in thing], form.answer(things, rng)
    length = len(given) + len(answer)
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=len(given)),
        Span(name="answer", kind=Kind.TEXT, start=len(given), stop=length, writable=True),
    )
    ids = torch.tensor([WORDS.index(word) for word in (*given, *answer)])
    return Row(things=things, sequence=Tokens(ids=ids, masked=torch.arange(length) >= len(given), spans=spans))


def batch_of(some: Sequence[Row], seed: int = 0) -> Batch:
    """Rows with their answers masked; row i has the random numbers of seed + i."""
    return collate([row.sequence for row in some], [seed * 100_003 + i for i in range(len(some))])


@dataclass(frozen=True, kw_only=True)
class Source:
    """Training rows; batch number ``step`` is a pure function of seed and step."""

    form: Form
    batch: int
    seed: int

    def __call__(self, step: int) -> Batch:
        return batch_of(rows(self.form, self.batch, f"{self.seed}/{step}"), self.seed + step)


def network(*, shifted: bool, seed: int, width: int = 64, layers: int = 3) -> Elastic:
    """A new text network over ``WORDS``; ``shifted``: for the next token."""
    config = text_config(
        vocab_size=len(WORDS) + 1,
        width=width,
        heads=4,
        layers=layers,
        mlp=3 * width,
        rope_theta=10_000.0,
        shifted=shifted,
    )
    net = Elastic(config, mask_id=MASK_ID)
    init(net, generator("scene text", seed, shifted))
    return net


def recipe(form: Form, *, autoregressive: bool, steps: int, seed: int, batch: int = 64) -> Recipe[Elastic, Batch]:
    """Masked diffusion with uniform ratios, a third of the rows all masked, or the next token."""
    masked = Masked(corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Uniform(), all=0.3)}))
    return Recipe(
        name="scene text",
        model=lambda: network(shifted=autoregressive, seed=seed),
        source=Source(form=form, batch=batch, seed=seed),
        objective=NextToken() if autoregressive else masked,
        optim=Optim(lr=3e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", save_every=500, log_every=200),
    )


def trained(work: Work, name: str, form: Form, *, autoregressive: bool, steps: int, seed: int) -> Elastic:
    """A network that a demonstration trains; it continues one that was stopped."""
    made = work.train(
        f"{name}/{seed}", recipe(form, autoregressive=autoregressive, steps=work.steps(steps, 2), seed=seed)
    )
    assert isinstance(made, Elastic)
    return made
