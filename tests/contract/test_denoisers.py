"""The contract of a denoiser: the shipped network in both shapes, the fake one, and the doubles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask import protocols
from unmask.models.fake import FakeDenoiser
from unmask.sequence import Batch, Kind, Span, collate
from unmask.step import Prediction, Reuse

from .doubles import Continuous, Recorded
from .instances import CODES, TEXT, fake, misfits, row, tensors, tiny

FAKE = FakeDenoiser(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES})
DENOISERS: dict[str, Any] = {
    "fake": fake,
    "elastic": tiny(),
    "text-only elastic": tiny("text", gen_width=0, vision=None),
    "shifted elastic": tiny("text", gen_width=0, vision=None, shifted=True, kv_heads=1, qkv_bias=True),
    "continuous double": Continuous(kind=7, channels=3, fake=FAKE),
    "recording double": Recorded(model=FAKE),
}
every_denoiser = pytest.mark.parametrize("name", DENOISERS)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def batch_for(name: str, prompts: tuple[int, ...] = (5, 3, 8)) -> Batch:
    """Text alone, text with codes, or text with values, as the denoiser knows them; rows of different length."""
    some = []
    for n in prompts:
        spans = [
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=n),
            Span(name="answer", kind=Kind.TEXT, start=n, stop=n + 6, writable=True),
        ]
        if name not in ("text-only elastic", "shifted elastic", "continuous double"):
            spans.append(
                Span(name="image", kind=Kind.CODE, start=n + 6, stop=n + 22, grid=(4, 4), fold=2, writable=True)
            )
        if name == "continuous double":
            spans.append(Span(name="sound", kind=7, start=n + 6, stop=n + 10, writable=True))
        one = row(spans, given=(n + 1, n + 4), seed=n)
        if name == "continuous double":
            one = dataclasses.replace(
                one, values=torch.rand(len(one.ids), 3, generator=torch.Generator().manual_seed(n))
            )
        some.append(one)
    return collate(some, range(len(some)))


def scores(prediction: Prediction) -> dict[int, Tensor]:
    """Flat token number -> its logits, or hidden state where its kind has none."""
    found = {}
    for scored in prediction.scored.values():
        read = scored.logits if scored.logits is not None else scored.hidden
        assert read is not None
        found |= dict(zip(scored.at.tolist(), read, strict=True))
    return found


def numbers(chosen: Tensor) -> list[int]:
    return chosen.flatten().nonzero().flatten().tolist()


@every_denoiser
def test_it_fits_the_protocol(name: str) -> None:
    assert not misfits(DENOISERS[name], protocols.Denoiser)


@every_denoiser
def test_it_scores_the_tokens_to_score(name: str) -> None:
    """By kind, in rising order; hidden states and logits of each; the masked tokens where none are named."""
    batch = batch_for(name)
    model = DENOISERS[name]
    some = batch.valid & (torch.arange(batch.ids.shape[1]) % 3 == 0)
    given = model(batch, predict=batch.masked) if name == "recording double" else model(batch)
    for prediction, wanted in ((given, batch.masked), (model(batch, predict=some), some)):
        assert sorted(scores(prediction)) == numbers(wanted)
        for kind, scored in prediction.scored.items():
            assert scored.at.tolist() == sorted(scored.at.tolist())
            assert (batch.kind.flatten()[scored.at] == kind).all()
            assert scored.hidden is not None and len(scored.hidden) == len(scored.at)
            assert scored.logits is None or len(scored.logits) == len(scored.at)


@every_denoiser
def test_some_tokens_are_scored_as_all_are(name: str) -> None:
    batch, model = batch_for(name), DENOISERS[name]
    everything = scores(model(batch, predict=batch.valid))
    for step in (2, 3, 7):
        some = batch.valid & (torch.arange(batch.ids.shape[1]) % step == 0)
        for token, found in scores(model(batch, predict=some)).items():
            torch.testing.assert_close(found, everything[token], atol=1e-5, rtol=1e-5)
    assert not scores(model(batch, predict=torch.zeros_like(batch.masked)))


@every_denoiser
def test_the_input_is_not_changed(name: str) -> None:
    batch = batch_for(name)
    before = {field: tensor.clone() for field, tensor in tensors(batch).items()}
    predict = batch.masked.clone()
    DENOISERS[name](batch, predict=predict)
    assert all(torch.equal(before[field], tensor) for field, tensor in tensors(batch).items())
    assert torch.equal(predict, batch.masked)


@every_denoiser
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    batch, model = batch_for(name), DENOISERS[name]
    together = scores(model(batch, predict=batch.masked))
    for index, prompt in enumerate((5, 3, 8)):
        alone = batch_for(name, (prompt,))
        for token, found in scores(model(alone, predict=alone.masked)).items():
            torch.testing.assert_close(found, together[token + index * batch.ids.shape[1]], atol=1e-5, rtol=1e-5)


@every_denoiser
def test_a_masked_id_and_the_truth_are_not_read(name: str) -> None:
    batch, model = batch_for(name), DENOISERS[name]
    other = batch.replace(
        ids=torch.where(batch.masked, (batch.ids + 1) % CODES, batch.ids), clean=torch.zeros_like(batch.ids)
    )
    for token, found in scores(model(other, predict=batch.masked)).items():
        assert torch.equal(found, scores(model(batch, predict=batch.masked))[token])


@every_denoiser
def test_what_a_row_shows_is_read(name: str) -> None:
    """So that the other tests here can fail."""
    batch, model = batch_for(name), DENOISERS[name]
    ids = batch.ids.clone()
    ids[:, 0] += 1
    one, other = (scores(model(b, predict=batch.masked)) for b in (batch, batch.replace(ids=ids)))
    assert any(not torch.equal(one[token], other[token]) for token in one)


@every_denoiser
def test_reuse_of_nothing_equals_no_reuse(name: str) -> None:
    """Everything computed, nothing held; a model with a state reports which tokens it holds."""
    batch, model = batch_for(name), DENOISERS[name]
    keep = batch.valid & ~batch.masked
    whole = model(batch, predict=batch.masked, reuse=Reuse(compute=batch.valid, keep=keep))
    plain = scores(model(batch, predict=batch.masked))
    for token, found in scores(whole).items():
        assert torch.equal(found, plain[token])
    if whole.state is not None:
        assert torch.equal(whole.state.held, keep)
        assert all(len(t) == batch.rows for t in whole.state.tensors.values())
    assert (whole.state is not None) == name.endswith("elastic")
