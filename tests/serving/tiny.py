"""A tiny model to serve, sequences and samplers of every form, and the plain sampler on a batch of one to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling import blocks, cache, guidance, presets, schedule, selection, stopping, temperature, token_sampler
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.serving.engine import Engine, Limits
from unmask.serving.requests import Handle, Request
from unmask.step import Prediction, Progress, Proposal

# A CPU works on vectors of 16 or 32 numbers; narrower layers leave a remainder that rounds differently (docs/notes/0005-engine.md).
CONFIG, NULL = dataclasses.replace(SIZES["tiny"], mlp=64, gen_width=32), 3
LOOK = CONFIG.vision.tokens if CONFIG.vision else 0
TEXT, CODE, FEATURE = Kind.TEXT, Kind.CODE, Kind.FEATURE
DROP = frozenset({"prompt", "source"})


def net() -> Elastic:
    model = Elastic(CONFIG, mask_id=NULL).eval()
    init(model, generator("serving"))
    return model


@dataclass(frozen=True, kw_only=True)
class Spy:
    """A token sampler that records every prediction, to the last bit."""

    token_sampler: Any
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, batch: Batch, prediction: Prediction, at: Progress) -> Proposal:
        for kind in sorted(prediction.scored):
            scored = prediction.scored[kind]
            if len(scored.at):
                self.seen.extend([scored.at, prediction.logits(kind)])
        return self.token_sampler(batch, prediction, at)


def spied(sampler: Sampler) -> tuple[Sampler, list[Tensor]]:
    spy = Spy(token_sampler=sampler.token_sampler)
    return dataclasses.replace(sampler, token_sampler=spy), spy.seen


def sequence(*spans: tuple[Any, ...], seed: int = 0) -> Sequence:
    """(name, kind, tokens, segment) of each span. "answer" and "image" are masked. Seeds of equal parity show the same picture."""
    start, table, pictures = 0, [], 0
    for name, kind, tokens, segment in spans:
        more: dict[str, Any] = {"grid": (8, 8), "fold": 2} if kind == CODE else {}
        writable = name in ("answer", "image")
        table.append(
            Span(name=name, kind=kind, start=start, stop=start + tokens, segment=segment, writable=writable, **more)
        )
        start, pictures = start + tokens, pictures + (kind == FEATURE)
    ids = torch.randint(8, CONFIG.codes, (start,), generator=generator("ids", seed))
    masked = torch.cat([torch.full((len(span),), span.writable) for span in table])
    pixels = torch.rand(pictures, 3, 128, 128, generator=generator("picture", seed % 2)) if pictures else None
    return Sequence(ids=ids, masked=masked, spans=tuple(table), pixels=pixels, feature_rows=pictures * LOOK)


def text(tokens: int = 8, *, given: int = 20, seed: int = 0) -> Sequence:
    return sequence(("prompt", TEXT, given, 0), ("answer", TEXT, tokens, 0), seed=seed)


def drawing(*, given: int = 17, seed: int = 0) -> Sequence:
    return sequence(("prompt", TEXT, given, 0), ("image", CODE, 64, 0), ("end", TEXT, 1, 0), seed=seed)


def editing(*, seed: int = 0) -> Sequence:
    seen = ("look", FEATURE, LOOK, 0), ("source", CODE, 64, 0)
    return sequence(("prompt", TEXT, 5 + seed, 0), *seen, ("image", CODE, 64, 0), seed=seed)


def asking(tokens: int = 4, *, seed: int = 0) -> Sequence:
    seen = ("prompt", TEXT, 2, 0), ("look", FEATURE, LOOK, 0)
    return sequence(*seen, ("question", TEXT, 3 + seed, 1), ("answer", TEXT, tokens, 1), seed=seed)


def canvases(tokens: int = 12, *, given: int = 30, seed: int = 0) -> Sequence:
    """A prompt that does not read its answer, whose canvases of four tokens do not read later ones."""
    made = text(tokens, given=given, seed=seed)
    spans = (made.spans[0], dataclasses.replace(made.spans[1], order=1, order_step=4))
    return dataclasses.replace(made, spans=spans)


ONE_BY_ONE = Sampler(
    schedule=schedule.Fixed(each=1), token_sampler=token_sampler.Categorical(), selection=selection.Confident()
)
FAST = Sampler(
    schedule=schedule.Equal(steps=2), token_sampler=token_sampler.Categorical(), selection=selection.Confident()
)
CFG = guidance.ClassifierFree(scale=2.0, drop=DROP, null_id=NULL)
BOTH = guidance.EditGuidance(scale=1.2, image_scale=1.4, drop=DROP, keep=frozenset({"source"}), null_id=NULL)
DRAW = Sampler(
    schedule=schedule.Cosine(steps=5),
    guidance=CFG,
    token_sampler=token_sampler.Categorical(),
    selection=selection.Confident(noise=temperature.Linear(start=4.0, end=0.0)),
)  # fmt: skip
BLOCKS = dataclasses.replace(
    ONE_BY_ONE, blocks=blocks.Blocks(length=4), stopping=stopping.EndOfTurn(ids=tuple(range(600)))
)
HALF = dataclasses.replace(CFG, interval=(0.4, 0.8))
ORDERED = dataclasses.replace(DRAW, selection=selection.RandomOrder(), guidance=HALF)
POOL: list[tuple[Sequence, Sampler]] = [
    (text(9, given=20, seed=1), BLOCKS),
    (text(5, given=31, seed=2), ONE_BY_ONE),
    (text(1, given=24, seed=3), FAST),
    (text(12, given=70, seed=4), dataclasses.replace(presets.fast_dllm_text(threshold=0.01), guidance=CFG)),
    (asking(4, seed=0), BLOCKS),
    (asking(6, seed=1), ONE_BY_ONE),
    (asking(4, seed=2), FAST),
    (drawing(given=17, seed=5), DRAW),
    (drawing(given=26, seed=6), ORDERED),
    (
        drawing(given=40, seed=7),
        dataclasses.replace(DRAW, guidance=guidance.NoGuidance(), schedule=schedule.Shift(steps=3, shift=3.0)),
    ),
    (editing(seed=1), dataclasses.replace(DRAW, guidance=BOTH)),
    (editing(seed=2), dataclasses.replace(DRAW, guidance=BOTH, schedule=schedule.Fixed(each=17))),
    (asking(4, seed=3), dataclasses.replace(BLOCKS, cache=cache.PrefixCache())),
    (asking(6, seed=4), dataclasses.replace(ONE_BY_ONE, cache=cache.PrefixCache())),
    (asking(3, seed=5), dataclasses.replace(FAST, cache=cache.PrefixCache(), guidance=HALF)),
    (
        canvases(12, given=24, seed=6),
        dataclasses.replace(ONE_BY_ONE, cache=cache.PrefixCache(), blocks=blocks.ByOrder()),
    ),
    (
        canvases(8, given=21, seed=7),
        dataclasses.replace(FAST, cache=cache.PrefixCache(), blocks=blocks.ByOrder()),
    ),
]


def alone(model: Elastic, built: Sequence, sampler: Sampler, seed: int) -> tuple[Tensor, list[Tensor]]:
    """The reference: the plain sampler on a batch of one. (ids, all predictions that its token sampler got)."""
    spy, seen = spied(sampler)
    done = spy.sample(model, collate([built], [seed]))
    return done.ids[0], seen


def engine(model: Any, *, clock: Callable[[], float] = lambda: 0.0, **limits: int) -> Engine:
    return Engine(model, limits=Limits(**limits), clock=clock)


def request(built: Sequence, sampler: Sampler = ONE_BY_ONE, *, seed: int = 0, priority: int = 0) -> Request:
    return Request(sequence=built, sampler=sampler, seed=seed, priority=priority)


def ticks_until(served: Engine, *handles: Handle, most: int = 1000) -> int:
    """How many ticks it takes until all of these are done."""
    for number in range(most):
        if all(h.done for h in handles):
            return number
        assert served.tick()
    raise AssertionError(f"not done after {most} ticks")
