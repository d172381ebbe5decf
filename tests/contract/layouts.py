"""Layouts and runs that the suites of caches and of order share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.protocols import Predicting, TokenSampler
from unmask.sampling import blocks, schedule, selection, token_sampler
from unmask.sampling.sampler import Sampler
from unmask.sequence import ON_UNMASK, Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Proposal

from .instances import row, tiny

MODEL, TEXT_MODEL = tiny(), tiny("text", gen_width=0, vision=None)
ORDER = tuple(token for square in (0, 2, 8, 10) for token in (square, square + 1, square + 4, square + 5))
TOLERANCE = 5e-6  # of logits; other kernels for few rows or keys round differently


def spans(*given: dict[str, Any]) -> list[Span]:
    """Spans one after the other: name, tokens and what else differs from a writable text span."""
    table, at = [], 0
    for one in given:
        tokens = one.pop("tokens")
        kind = one.pop("kind", Kind.TEXT)
        picture: dict[str, Any] = {"grid": (4, tokens // 4), "fold": 2} if kind == Kind.CODE else {}
        table.append(
            Span(kind=kind, start=at, stop=at + tokens, writable=not one["name"].startswith("p"), **picture, **one)
        )
        at += tokens
    return table


def prompt(tokens: int, **more: Any) -> dict[str, Any]:
    return {"name": "prompt", "tokens": tokens, **more}


def answer(tokens: int, **more: Any) -> dict[str, Any]:
    return {"name": "answer", "tokens": tokens, **more}


def image(**more: Any) -> dict[str, Any]:
    return {"name": "image", "kind": Kind.CODE, "tokens": 16, **more}


def question(n: int, segment: int) -> list[dict[str, Any]]:
    """A question and its answer in a segment of their own."""
    return [prompt(n, segment=segment), answer(n + 2, segment=segment, order=1, name=f"answer{segment}")]


LAYOUTS: dict[str, list[list[Span]]] = {
    "prefix-LM": [spans(prompt(n), answer(m, order=1)) for n, m in ((9, 8), (4, 5), (12, 3))],
    "causal": [spans(prompt(n, order_step=1), answer(m, order=n, order_step=1)) for n, m in ((9, 8), (4, 5))],
    "block-causal": [spans(prompt(n), answer(m, order=1, order_step=4)) for n, m in ((5, 12), (9, 7))],
    "segments": [spans(prompt(5), *question(3, 1), *question(4, 2)), spans(prompt(4), *question(5, 1))],
    "codes": [spans(prompt(n), image(order=1)) for n in (3, 8)],
    "text, then codes": [spans(prompt(n), answer(4, order=1), image(order=2)) for n in (3, 6)],
    "order set when unmasked": [
        spans(prompt(n), answer(m, order=ON_UNMASK, segment=1)) for n, m in ((6, 8), (3, 5), (8, 2))
    ],
    "codes, order set when unmasked": [spans(prompt(n), image(order=ON_UNMASK, segment=1)) for n in (3, 6)],
}
CODES_ONLY = ("codes", "codes, order set when unmasked")


@dataclass(frozen=True, kw_only=True)
class Spy:
    """A token sampler that notes every prediction."""

    token_sampler: TokenSampler = token_sampler.Categorical(temperature=0.7)
    seen: list[dict[int, tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        self.seen.append({k: (s.at, prediction.logits(k)) for k, s in prediction.scored.items()})
        return self.token_sampler(batch, prediction, progress)


class PredictingSpy(Spy):
    """A spy on a token sampler that says which tokens to score."""

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        assert isinstance(self.token_sampler, Predicting)
        return self.token_sampler.predict(batch, block, counts)


def sampler_for(layout: str, **changes: Any) -> Sampler:
    one = Sampler(
        schedule=schedule.Equal(steps=4),
        token_sampler=token_sampler.Categorical(temperature=0.7),
        selection=selection.InOrder(order=ORDER) if layout in CODES_ONLY else selection.Confident(),
        blocks={"block-causal": blocks.Blocks(length=4), "text, then codes": blocks.SpanBySpan()}.get(
            layout, blocks.Whole()
        ),
    )
    return dataclasses.replace(one, **changes)


def requests(layout: str) -> list[Sequence]:
    return [row(table, seed=n) for n, table in enumerate(LAYOUTS[layout])]


def spied(
    sampler: Sampler, rows: list[Sequence], model: Any = MODEL
) -> tuple[Batch, list[dict[int, tuple[Tensor, Tensor]]]]:
    kind = PredictingSpy if isinstance(sampler.token_sampler, Predicting) else Spy
    spy = kind(token_sampler=sampler.token_sampler)
    result = dataclasses.replace(sampler, token_sampler=spy).sample(model, collate(rows, range(20, 20 + len(rows))))
    return result, spy.seen


def assert_equal_runs(one: Sampler, other: Sampler, rows: list[Sequence], model: Any = MODEL) -> None:
    (a, seen_a), (b, seen_b) = spied(one, rows, model), spied(other, rows, model)
    assert torch.equal(a.ids, b.ids) and len(seen_a) == len(seen_b)
    for step_a, step_b in zip(seen_a, seen_b, strict=True):
        for kind in step_a.keys() | step_b.keys():
            at_a, logits_a = step_a[kind]
            at_b, logits_b = step_b[kind]
            assert torch.equal(at_a, at_b)
            torch.testing.assert_close(logits_a, logits_b, atol=TOLERANCE, rtol=0)


def computed_rows(model: Elastic) -> tuple[list[int], list[Any]]:
    """How many rows enter the query projections of layer 0, understanding and generation branch together."""
    counts: list[int] = []
    block: Any = model.blocks[0]
    hooks = [
        branch.q.register_forward_pre_hook(lambda _, args: counts.append(args[0].numel() // args[0].shape[-1]))
        for branch in (block.und, block.gen)
    ]
    return counts, hooks
