"""A small language for demonstrations of text models: some digits, a question about them, and an answer in one of several wordings.

Public ideas: ``questions(rng, count) -> Rows`` draws prompts, ``Lessons`` is a source of batches with answers, ``prompted(rows, canvas)`` a
batch to answer, ``right(rows, said) -> [bool]`` compares answers with all right ones, and ``trained(...)`` is the recipe of a network.

A prompt has up to six digits and a question, about one digit or about all of them. Each question has six right answers, all equally
probable, so tokens that are unmasked in one step can belong to different wordings. With six digits they have 1 to 12 tokens. Answers end
with ``END`` and are padded with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import torch
from torch import Generator, Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, key
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss

MOST_DIGITS, CANVAS = 6, 16
END, MASK, MARKER, FILLER = 0, 1, 2, 3
ALL = MOST_DIGITS  # the question about all digits; 0 .. 5 ask for one
_FIRST_DIGIT, _FIRST_ASKED, _FIRST_WORD = 4, 14, 21
_ONE = ("#", "it is #", "the answer is #", "number @ is # here", "i see # at place @", "at place @ you can see # today")
_EVERY = (
    "*",
    "they are *",
    "the answer is *",
    "i see * in order",
    "all six are * here",
    "in order you can see * today",
)
_PLACES = ("one", "two", "three", "four", "five", "six")
WORDS = tuple(sorted({*_PLACES, *(w for line in _ONE + _EVERY for w in line.split() if w not in ("#", "@", "*"))}))
WORDINGS = len(_ONE)
SIZE = text_config(vocab_size=64, width=64, heads=4, layers=2, mlp=192, rope_theta=1000.0)
Objective = Callable[[Elastic, Batch, Generator], Loss]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """``digits [B, D]`` · ``asked [B]``: a place from 0, or ``ALL`` · ``wording [B]``: of the drawn answer."""

    digits: Tensor
    asked: Tensor
    wording: Tensor

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def before(self) -> int:
        """Tokens of a prompt: the digits and the question."""
        return self.digits.shape[1] + 1

    def answers(self, wording: int | None = None) -> list[list[int]]:
        """The ids of each answer without ``END``, in one wording; None: in the drawn ones."""
        numbers = self.wording.tolist() if wording is None else [wording] * len(self)
        each = zip(self.digits.tolist(), self.asked.tolist(), numbers, strict=True)
        return [_answer(digits, asked, number) for digits, asked, number in each]


def _answer(digits: list[int], asked: int, wording: int) -> list[int]:
    shown, said = [_FIRST_DIGIT + d for d in digits], list[int]()
    for word in (_EVERY if asked == ALL else _ONE)[wording].split():
        if word == "*":
            said += shown
        elif word == "#":
            said.append(shown[asked])
        else:
            said.append(_FIRST_WORD + WORDS.index(_PLACES[asked] if word == "@" else word))
    return said


def questions(rng: Generator, count: int, digits: int = MOST_DIGITS) -> Rows:
    """Random digits; half of the questions are about one digit, half about all."""
    asked = torch.randint(0, 2 * digits, (count,), generator=rng)
    shown = torch.randint(0, 10, (count, digits), generator=rng)
    wording = torch.randint(0, WORDINGS, (count,), generator=rng)
    return Rows(digits=shown, asked=asked.masked_fill(asked >= digits, ALL), wording=wording)


def is_digit(i: int) -> bool:
    """Whether an id is that of a digit."""
    return _FIRST_DIGIT <= i < _FIRST_ASKED


def words(ids: list[int]) -> str:
    """Ids as words: ``.`` is END, ``_`` MASK, ``|`` the marker of a slot, ``~`` its filler."""
    names = {END: ".", MASK: "_", MARKER: "|", FILLER: "~"}
    names |= {_FIRST_DIGIT + d: str(d) for d in range(10)}
    names |= {_FIRST_WORD + n: word for n, word in enumerate(WORDS)}
    return " ".join(names.get(i, f"<{i}>") for i in ids)


# -- batches ----------------------------------------------------------------------------------------------------------


def prompted(rows: Rows, canvas: int = CANVAS, *, causal: bool = False) -> Batch:
    """The prompts, each followed by ``canvas`` masked tokens. ``causal``: a token attends to itself and to those before it."""
    batch = _empty(len(rows), rows.before, canvas, causal)
    ids = batch.ids.clone()
    ids[:, : rows.before - 1] = rows.digits + _FIRST_DIGIT
    ids[:, rows.before - 1] = rows.asked + _FIRST_ASKED
    return batch.replace(ids=ids, clean=ids)


@lru_cache(maxsize=256)
def _empty(rows: int, before: int, canvas: int, causal: bool) -> Batch:
    length, step = before + canvas, int(causal)
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=before, order_step=step),
        Span(
            name="answer",
            kind=Kind.TEXT,
            start=before,
            stop=length,
            writable=True,
            order=before * step,
            order_step=step,
        ),
    )
    masked = torch.arange(length) >= before
    row = Sequence(ids=torch.full((length,), MASK), masked=masked, spans=spans)
    return collate([row] * rows, seeds=range(rows))


def drafted(rows: Rows, drafts: list[list[int]], canvas: int) -> Batch:
    """Prompts followed by drafts: ids that stay, and ``MASK`` where the model writes. A draft ends in ``END``, up to ``canvas`` tokens."""
    batch = prompted(rows, canvas)
    ids = batch.ids.clone()
    ids[:, rows.before :] = torch.tensor([draft + [END] * (canvas - len(draft)) for draft in drafts])
    return batch.replace(ids=ids, masked=batch.writable & (ids == MASK))


def learned(rows: Rows, said: list[list[int]], lengths: list[int]) -> Batch:
    """Prompts with these answers, each padded with ``END`` to its length. Markers of slots are seen and not learned."""
    batch = prompted(rows, max(lengths))
    ids = batch.ids.clone()
    ids[:, rows.before :] = torch.tensor([answer + [END] * (max(lengths) - len(answer)) for answer in said])
    there = torch.arange(ids.shape[1]) < rows.before + torch.tensor(lengths)[:, None]
    open_ = batch.writable & there & (ids != MARKER)
    return batch.replace(ids=ids, clean=ids, valid=there, writable=open_, masked=torch.zeros_like(there))


def spoken(batch: Batch) -> list[list[int]]:
    """The ids of the answers before the first ``END``."""
    before = batch.span_table[0][0].stop
    return [row[: row.index(END) if END in row else len(row)] for row in batch.ids[:, before:].tolist()]


def right(rows: Rows, said: list[list[int]]) -> list[bool]:
    """Which answers, ids without ``END``, are one of the right ones, word for word."""
    wordings = [rows.answers(number) for number in range(WORDINGS)]
    return [said[row] in [known[row] for known in wordings] for row in range(len(rows))]


# -- training ---------------------------------------------------------------------------------------------------------


Padding = Callable[[int, Random], int]  # (tokens of an answer, random numbers) -> its length with ``END``


def to_canvas(tokens: int, rng: Random) -> int:
    """Always the whole canvas."""
    return CANVAS


def exactly(tokens: int, rng: Random) -> int:
    """One ``END`` and nothing behind it."""
    return tokens + 1


def at_random(tokens: int, rng: Random) -> int:
    """At least one ``END``, and up to as many as fill the canvas."""
    return rng.randint(tokens + 1, CANVAS)


Writing = Callable[[list[int], Random], list[int]]  # an answer -> the answer as it is learned


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Batches of ``rows`` questions with answers, another one at every step. ``padding``: their lengths · ``writing``: changes them."""

    rows: int
    seed: int
    digits: int = MOST_DIGITS
    padding: Padding = to_canvas
    writing: Writing = lambda answer, rng: answer

    def __call__(self, step: int) -> Batch:
        rows = questions(generator("lessons", self.seed, step), self.rows, self.digits)
        rng = Random(key("padding", self.seed, step))
        said = [self.writing(answer, rng) for answer in rows.answers()]
        return learned(rows, said, [max(len(answer), self.padding(len(answer), rng)) for answer in said])


def network(seed: int, *, shifted: bool = False) -> Elastic:
    """A network with random weights. ``shifted``: the position before a token predicts it."""
    made = Elastic(replace(SIZE, shifted=shifted), mask_id=MASK)
    init(made, generator("paraphrases", seed))
    return made


def trained(
    name: str, model: Callable[[], Elastic], source: Lessons, objective: Objective, steps: int, lr: float = 2e-3
) -> Recipe[Elastic, Batch]:
    """The training of a network: AdamW with a cosine decay to a tenth, gradient norm 1, float32 on the CPU."""
    return Recipe(
        name=name,
        model=model,
        source=source,
        objective=objective,
        optim=Optim(lr=lr, warmup=min(100, steps // 4), floor=0.1, clip=1.0, ema=0.0),
        training=Training(steps=steps, seed=source.seed, device="cpu", bf16=False, log_every=200, save_every=200),
    )
