"""A third kind of token, and tokens with values: sampled end to end, and in forwards that several runs share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unmask import protocols
from unmask.models.fake import FakeDenoiser
from unmask.sampling import blocks, guidance, schedule, selection, token_sampler
from unmask.sampling.sampler import NothingPredicted, Sampler
from unmask.sequence import Batch, Kind, Sequence, Span, collate, sequence_at, stack
from unmask.serving.batching import join, part_of, shares

from .doubles import Continuous, ReadsHidden
from .instances import BASE, CODES, DROP, NULL, TEXT, assert_batch_invariant, misfits, row, sequence

THIRD, SIZE, CHANNELS = 7, 11, 3
THREE = FakeDenoiser(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES, THIRD: SIZE})
CONTINUOUS = Continuous(kind=THIRD, channels=CHANNELS, fake=FakeDenoiser(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES}))


def third(tokens: int, *before: tuple[str, int, int, bool], seed: int = 0) -> Sequence:
    return sequence(("prompt", Kind.TEXT, 3, False), *before, ("sound", THIRD, tokens, True), seed=seed)


def valued(tokens: int, *before: tuple[str, int, int, bool], seed: int = 0, given: tuple[int, ...] = ()) -> Sequence:
    one = third(tokens, *before, seed=seed)
    masked = one.masked.clone()
    masked[list(given)] = False
    values = torch.zeros(len(one.ids), CHANNELS)
    values[list(given)] = 0.5
    return dataclasses.replace(one, masked=masked, values=values)


def together(samplers: list[Sampler], rows: list[Sequence], model: Any) -> list[Batch]:
    """Every request in its own run, all queries of a step in one forward."""
    runs = [s.start(collate([one], [40 + n])) for n, (s, one) in enumerate(zip(samplers, rows, strict=True))]
    while going := [(r, part_of(r.query, 8)) for r in runs if r.query is not None]:
        shape = going[0][1].shape
        some = [(r, part) for r, part in going if part.shape == shape]
        query = join([part for _, part in some])
        prediction = model(query.batch, predict=query.predict, reuse=query.reuse)
        for (r, _), own in zip(some, shares(prediction, [part for _, part in some], query), strict=True):
            r.advance(own)
    return [r.batch for r in runs]


SAMPLERS = [
    BASE,
    dataclasses.replace(BASE, blocks=blocks.SpanBySpan()),
    dataclasses.replace(
        BASE, guidance=guidance.ClassifierFree(scale=2.0, drop=DROP, null_id=NULL, interval=(0.2, 0.7))
    ),
    dataclasses.replace(BASE, selection=selection.PerSpan(selection=selection.Confident())),
    dataclasses.replace(BASE, token_sampler=token_sampler.TopP(mass=0.7, token_sampler=token_sampler.Categorical())),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
def test_three_vocabularies_end_to_end(sampler: Sampler) -> None:
    rows = [
        third(6, seed=1),
        third(4, ("answer", Kind.TEXT, 5, True), seed=2),
        third(3, ("image", Kind.CODE, 16, True), seed=3),
    ]
    result = assert_batch_invariant(sampler, rows, THREE)
    assert not result.masked.any()
    sound = result.ids[(result.kind == THIRD) & result.writable]
    assert ((sound >= 0) & (sound < SIZE)).all() and len(sound.unique()) > 1


def test_three_vocabularies_share_forwards() -> None:
    rows = [third(6, seed=1), third(9, seed=2), third(4, ("answer", Kind.TEXT, 5, True), seed=3), third(3, seed=4)]
    samplers = [SAMPLERS[i % len(SAMPLERS)] for i in range(4)]
    found = together(samplers, rows, THREE)
    for n, (s, one) in enumerate(zip(samplers, rows, strict=True)):
        assert torch.equal(found[n].ids, s.sample(THREE, collate([one], [40 + n])).ids)


CONTINUOUS_SAMPLER = Sampler(
    schedule=schedule.Equal(steps=4), token_sampler=ReadsHidden(kind=THIRD), selection=selection.Confident()
)


def test_the_doubles_fit_their_protocols() -> None:
    assert not misfits(CONTINUOUS, protocols.Denoiser) and not misfits(ReadsHidden(kind=THIRD), protocols.TokenSampler)


def test_values_are_written_and_given_ones_stay() -> None:
    one = valued(6, ("answer", Kind.TEXT, 3, True), given=(7,))
    batch = collate([one], [5])
    result = CONTINUOUS_SAMPLER.sample(CONTINUOUS, batch)
    assert result.values is not None and not result.masked.any()
    opened = one.masked & (batch.kind[0] == THIRD)
    assert (result.values[0][opened].abs().sum(1) > 0).all()
    assert result.values[0, 7].tolist() == [0.5] * CHANNELS
    assert torch.equal(result.values[0, :3], torch.zeros(3, CHANNELS))
    finished = sequence_at(one, result, 0)
    assert finished.values is not None and torch.equal(finished.values, result.values[0])


def test_values_of_a_request_without_any_are_kept() -> None:
    """Fault: a batch without values dropped those of the proposal."""
    one = valued(6, ("answer", Kind.TEXT, 3, True))
    blank = dataclasses.replace(one, values=None)
    zeros = dataclasses.replace(one, values=torch.zeros_like(one.values))  # type: ignore[arg-type]
    result = CONTINUOUS_SAMPLER.sample(CONTINUOUS, collate([blank], [5]))
    wanted = CONTINUOUS_SAMPLER.sample(CONTINUOUS, collate([zeros], [5])).values
    found = sequence_at(blank, result, 0).values
    assert found is not None and wanted is not None and torch.equal(found, wanted[0]) and bool(found.ne(0).any())


def test_continuous_answers_are_batch_invariant() -> None:
    rows = [valued(6, seed=1), valued(4, ("answer", Kind.TEXT, 5, True), seed=2), valued(9, seed=3, given=(4, 5))]
    assert_batch_invariant(CONTINUOUS_SAMPLER, rows, CONTINUOUS)
    guided = dataclasses.replace(
        CONTINUOUS_SAMPLER, guidance=guidance.ClassifierFree(scale=1.0, drop=DROP, null_id=NULL)
    )
    assert_batch_invariant(guided, rows, CONTINUOUS)


def test_continuous_runs_share_forwards_with_text_runs() -> None:
    """Fault: where one run has values and another none, the shared batch lost them or could not be made."""
    text = sequence(("prompt", Kind.TEXT, 2, False), ("answer", Kind.TEXT, 5, True), seed=8)
    rows = [valued(6, ("answer", Kind.TEXT, 2, True), seed=1), text, valued(4, ("answer", Kind.TEXT, 7, True), seed=2)]
    samplers = [CONTINUOUS_SAMPLER, BASE, CONTINUOUS_SAMPLER]
    alone = []
    for n, (s, one) in enumerate(zip(samplers, rows, strict=True)):
        with_values = (
            one if one.values is not None else dataclasses.replace(one, values=torch.zeros(len(one.ids), CHANNELS))
        )
        alone.append(s.sample(CONTINUOUS, collate([with_values], [40 + n])))
    for order in ((0, 1, 2), (1, 0, 2)):
        runs = [samplers[i].start(collate([rows[i]], [40 + i])) for i in order]
        while going := [(r, part_of(r.query, 8)) for r in runs if r.query is not None]:
            for text_scored in (True, False):
                some = [(r, part) for r, part in going if part.shape.text is text_scored]
                if some:
                    query = join([part for _, part in some])
                    batch = query.batch
                    if batch.values is None:
                        batch = batch.replace(values=torch.zeros(*batch.ids.shape, CHANNELS))
                    prediction = CONTINUOUS(batch, predict=query.predict)
                    for (r, _), own in zip(some, shares(prediction, [part for _, part in some], query), strict=True):
                        r.advance(own)
        for i, r in zip(order, runs, strict=True):
            assert torch.equal(r.batch.ids, alone[i].ids)
            if rows[i].values is not None:
                assert torch.equal(r.batch.values, alone[i].values)


def test_stacking_says_which_field_some_batches_lack() -> None:
    batch = collate([third(3)], [0])
    with pytest.raises(ValueError, match="only 1 of 2 batches have 'target'"):
        stack([batch, batch.replace(target=batch.masked)])
    values = torch.ones(1, 6, CHANNELS)
    both = stack([batch, batch.replace(values=values)])
    assert both.values is not None and torch.equal(both.values, torch.cat([torch.zeros_like(values), values]))


def test_channels_of_one_batch_agree() -> None:
    other = dataclasses.replace(valued(3), values=torch.zeros(6, CHANNELS + 1))
    with pytest.raises(ValueError, match=r"as many channels, got \[3, 4\]"):
        collate([valued(3), other], [0, 1])


def test_a_continuous_token_cannot_take_an_id() -> None:
    """A kind without logits is skipped by samplers of ids, and that is a named error, not a silent answer."""
    with pytest.raises(NothingPredicted, match="kind 7"):
        BASE.sample(CONTINUOUS, collate([valued(4)], [0]))


def test_a_third_kind_may_use_either_branch() -> None:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
        Span(name="sound", kind=THIRD, start=3, stop=8, branch=1, writable=True),
    )
    assert collate([row(spans)], [0]).branch[0].tolist() == [0] * 3 + [1] * 5
