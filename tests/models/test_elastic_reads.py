"""Who reads whom in the network: segments, masked ids, branches, positions and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from unmask.models.elastic import Elastic
from unmask.models.vision import Vision
from unmask.rng import generator
from unmask.sequence import Branch, Kind, Sequence

from .elastic_cases import (
    CASES,
    CONFIG,
    LOOK,
    agree,
    batch_of,
    by_token,
    changed,
    draw,
    edit,
    look,
    make,
)
from .reference import see

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Elastic:
    return make()


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("learns" in request.node.name):
        yield


def test_segments_read_the_context_and_themselves_alone(model: Elastic) -> None:
    sequence = look()
    batch = batch_of([sequence], [set()])
    predict = batch.kind == Kind.TEXT
    for segment in (0, 1, 2, 3):
        token = int(((batch.segment[0] == segment) & (batch.kind[0] == Kind.TEXT) & ~batch.masked[0]).nonzero()[0])
        ids = batch.ids.clone()
        ids[0, token] += 1 if ids[0, token] < CONFIG.vocab_size - 1 else -1
        moved = changed(model, batch, batch.replace(ids=ids), predict)
        reached = {int(batch.segment[0, t]) for t in moved}
        assert reached == ({0, 1, 2, 3} if segment == 0 else {segment})


def test_one_question_is_answered_as_if_alone(model: Elastic) -> None:
    sequence = look()
    whole = by_token(model(batch_of([sequence], [set()])))
    for segment in (1, 2, 3):
        kept = [s for s in sequence.spans if s.segment in (0, segment)]
        index = torch.cat([torch.arange(s.start, s.stop) for s in kept])
        spans, at = [], 0
        for s in kept:
            spans.append(dataclasses.replace(s, start=at, stop=at + len(s), segment=0))  # as a plain sequence
            at += len(s)
        # The context of a plain sequence sees the question, so it must be a segment too.
        spans = [dataclasses.replace(s, segment=int(o.segment > 0)) for s, o in zip(spans, kept, strict=True)]
        alone = Sequence(
            ids=sequence.ids[index], masked=sequence.masked[index], spans=tuple(spans), pixels=sequence.pixels
        )
        got = {int(index[t]): x for t, x in by_token(model(batch_of([alone], [set()]))).items()}
        agree(got, {t: whole[t] for t in got})


def test_a_masked_token_hides_its_id(model: Elastic) -> None:
    """Training batches carry the truth in ``ids``: it must not leak into any logit."""
    for case, (rows, dropped) in CASES.items():
        batch = batch_of(rows, dropped)
        other = torch.randint(8, CONFIG.codes, batch.ids.shape, generator=generator("leak", case))
        lied = batch.replace(ids=torch.where(batch.masked, other, batch.ids), clean=torch.zeros_like(batch.ids))
        agree(by_token(model(lied)), by_token(model(batch)))


def test_split_layers_keep_the_branches_apart() -> None:
    model = make(dataclasses.replace(CONFIG, joint_layers=0))
    batch = batch_of([edit(5, 2)], [set()])
    ids = batch.ids.clone()
    ids[0, 0] += 1
    moved = changed(model, batch, batch.replace(ids=ids), batch.valid)
    assert moved and {int(batch.kind[0, t]) for t in moved} == {int(Kind.TEXT)}


def test_every_position_matters(model: Elastic) -> None:
    """Moving a token changes its logits: RoPE is applied in both branches."""
    batch = batch_of([draw(5, 2)], [set()])
    shifted = batch.replace(position=batch.position + 3 * (batch.branch == Branch.GEN))
    moved = changed(model, batch, shifted, batch.valid)
    assert moved == set(by_token(model(batch, predict=batch.valid)))
    # Only distances count: all moved together is the same but for rounding.
    same = by_token(model(batch.replace(position=batch.position + 11), predict=batch.valid))
    for token, logits in by_token(model(batch, predict=batch.valid)).items():
        torch.testing.assert_close(same[token], logits, atol=1e-4, rtol=1e-4)


def test_pictures_go_to_their_own_rows(model: Elastic) -> None:
    rows = [edit(3, 2), draw(4, 2), edit(5, 2, seed=2)]
    batch = batch_of(rows, [set()] * 3)
    assert batch.pixels is not None and len(batch.pixels) == 2
    other = batch.pixels.clone()
    other[1] = 1 - other[1]
    moved = changed(model, batch, batch.replace(pixels=other), batch.masked)
    assert {t // batch.ids.shape[1] for t in moved} == {2}


def test_known_features_take_the_place_of_pixels() -> None:
    model = make()
    batch = batch_of([edit(3, 2)], [set()])
    first = model(batch)
    assert batch.pixels is not None
    known = batch.replace(pixels=None, features=model.features(batch.pixels))
    model.vision = None
    agree(by_token(model(known)), by_token(first))
    with pytest.raises(ValueError, match="without its vision part"):
        model(batch)


def test_vision_equals_the_slow_twin(model: Elastic) -> None:
    assert isinstance(model.vision, Vision)
    pixels = torch.rand(2, 3, 128, 128, generator=generator("pixels"))
    got = model.vision(pixels)
    wanted = torch.stack([see(dict(model.named_parameters()), CONFIG, p) for p in pixels])
    assert got.shape == (2, LOOK, CONFIG.width)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
