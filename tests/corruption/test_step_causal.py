"""The forward process of step-causal training: blocks, groups, whole positions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.corruption.step_causal import StepCausalMasking
from unmask.positions import of_position
from unmask.rng import generator
from unmask.sequence import ON_UNMASK, Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)
PROCESS = StepCausalMasking(corruption=Absorbing(otherwise=Uniform()), clean_blocks=3, text_groups=2, code_groups=4)


def batch(rows: int = 40, segments: tuple[int, ...] = (0, 0)) -> Batch:
    """A prompt, a text and a folded picture."""
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=5),
        Span(name="text", kind=Kind.TEXT, start=5, stop=17, writable=True, segment=segments[0]),
        Span(name="image", kind=Kind.CODE, start=17, stop=81, writable=True, grid=(8, 8), fold=2, segment=segments[1]),
    )
    one = Sequence(ids=torch.arange(81), masked=torch.zeros(81, dtype=torch.bool), spans=spans)
    return collate([one] * rows, range(rows))


def corrupted(clean: Batch) -> Batch:
    rng = generator("corrupt", 1)
    return PROCESS.corrupt(clean, PROCESS.times(clean, rng), rng)


def test_positions_are_masked_as_a_whole_and_have_one_block() -> None:
    noisy = corrupted(batch())
    for field in (noisy.masked, noisy.order, noisy.segment):
        assert torch.equal(field, of_position(noisy, field.long()).to(field.dtype))
    share = noisy.masked[:, 17:].float().mean(1)
    assert float(share.min()) < 0.2 and float(share.max()) > 0.8


def test_clean_tokens_are_in_blocks_and_masked_ones_in_groups_of_their_kind() -> None:
    noisy = corrupted(batch())
    clean = noisy.writable & ~noisy.masked
    assert set(noisy.order[clean].tolist()) == {1, 2, 3} and not noisy.segment[clean].any()
    assert (noisy.order[noisy.masked] == ON_UNMASK).all()
    text, code = noisy.kind == Kind.TEXT, noisy.kind == Kind.CODE
    assert set(noisy.segment[noisy.masked & text].tolist()) == {1, 2}
    assert set(noisy.segment[noisy.masked & code].tolist()) == {3, 4, 5, 6}
    given = ~noisy.writable
    assert not noisy.order[given].any() and not noisy.segment[given].any() and not noisy.masked[given].any()


def test_one_segment_is_dissolved_and_several_stay() -> None:
    one = corrupted(batch(segments=(1, 1)))
    assert not one.segment[one.writable & ~one.masked].any()
    several = corrupted(batch(segments=(1, 2)))
    assert torch.equal(several.segment, batch(segments=(1, 2)).segment)


def test_it_is_a_function_of_the_generator() -> None:
    a, b = corrupted(batch()), corrupted(batch())
    assert torch.equal(a.order, b.order) and torch.equal(a.segment, b.segment)


@pytest.mark.parametrize("field", ["clean_blocks", "text_groups", "code_groups"])
def test_no_group_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(PROCESS, **{field: 0})
