"""Codes that are computed on the training device: batches and losses are those of a source that encodes by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unmask
from unmask.data.deferred import Deferred, References, Rendered
from unmask.data.sources import Drawings, Edits, Labelled, VisualQuestions, luminance_stats, pixels_of
from unmask.data.thinking import Critiques, EditCritiques, EditPlans, Illustrations, Retries
from unmask.data.world.scenes import sample
from unmask.objectives.encoded import Encoded, FromBytes, Tokenizer
from unmask.objectives.masked import Masked, Together
from unmask.recipes.mini import text
from unmask.rng import generator
from unmask.sequence import Kind
from unmask.step import Loss

from ..equal import same

LOOK = {"look_tokens": 20}
MAKES: list[tuple[type, dict[str, Any], bool]] = [
    (Drawings, {"conditions": 0.5}, True),
    (Edits, LOOK, True),
    (Retries, LOOK, True),
    (Illustrations, {**LOOK, "length": 44}, True),
    (VisualQuestions, LOOK, False),
    (Critiques, LOOK, False),
    (EditCritiques, LOOK, False),
    (EditPlans, {**LOOK, "length": 24}, False),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    model = unmask.load("mini")
    model.parts.require(frozenset({"vq.encoder", "vq.decoder"}))
    return Tokenizer(model.parts.vq)


def pair(make: type, more: dict[str, Any], encodes: bool, tokenizer: Tokenizer) -> tuple[Any, Deferred]:
    """A source that encodes by itself, and the same one that leaves it to the objective."""
    fields = {"text": text(), "seed": 3, "batch": 2, **more}
    references = References()
    direct = make(**fields, **({"encode": tokenizer.vq.encode} if encodes else {}))
    late = make(**fields, **({"encode": references} if encodes else {}), rendered=Rendered())
    return direct, Deferred(source=late, references=references)


@pytest.mark.parametrize(("make", "more", "encodes"), MAKES, ids=lambda value: getattr(value, "__name__", ""))
@torch.no_grad()
def test_batches_are_those_of_a_source_that_encodes(
    make: type, more: dict[str, Any], encodes: bool, tokenizer: Tokenizer
) -> None:
    direct, deferred = pair(make, more, encodes, tokenizer)
    encoded = Encoded(objective=Together(objectives=()), tokenizer=tokenizer)
    for step in (0, 3):
        sent = deferred(step)
        assert sent.pictures.dtype == torch.uint8 and bool(len(sent.pictures)) == encodes
        got = encoded.encoded(*sent)
        assert bool((got.kind == Kind.CODE).any()) == encodes
        same(got, direct(step))


@torch.no_grad()
def test_the_loss_is_that_of_the_objective_inside(tokenizer: Tokenizer) -> None:
    direct, deferred = pair(Drawings, {}, True, tokenizer)
    together = Together(objectives=(("draw", Masked(), 2.0),))
    model = unmask.load("mini").parts.net
    late = Encoded(objective=together, tokenizer=tokenizer)(model, {"draw": deferred(1)}, generator("loss"))
    wanted = together(model, {"draw": direct(1)}, generator("loss"))
    assert torch.equal(late.total, wanted.total) and late.counts == wanted.counts


def test_bytes_become_pixels_in_0_to_1() -> None:
    seen = []

    def objective(model: Any, batch: Any, rng: torch.Generator) -> Any:
        seen.append(batch)
        return Loss(total=torch.zeros(()), terms={}, counts={})

    source = Labelled(seed=0, batch=2, rendered=Rendered())
    FromBytes(objective=objective)(None, source(0), generator("bytes"))
    same(seen, [Labelled(seed=0, batch=2)(0)])


def test_luminance_of_bytes() -> None:
    scenes = [sample("free", "train", 0, i) for i in range(3)]
    for a, b in zip(Rendered()(scenes, 64), pixels_of(scenes, 64), strict=True):
        assert luminance_stats(a) == luminance_stats(b)
