"""Parts of samplers of models with codes in the text vocabulary: the published numbers of codes, text alone, and fading noise."""

from __future__ import annotations

import itertools

import pytest
import torch

from unmask.sampling.cooling import Cooling
from unmask.sampling.kept import Kept, Power, cosine, linear, sigmoid
from unmask.sampling.mmada import mmada_text
from unmask.sampling.token_sampler import Greedy, Without
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Scored


def left(schedule: Kept, tokens: int) -> list[int]:
    return list(itertools.accumulate(schedule.counts(tokens), lambda a, b: a - b, initial=tokens))[1:]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (15, "1018 1001 973 935 886 828 760 685 601 511 416 316 212 107 0"),
        (12, "1015 989 946 886 812 724 623 511 391 265 133 0"),
    ],
)
def test_as_many_codes_stay_masked_as_published(steps: int, wanted: str) -> None:
    """MMaDA's scripts; float64 keeps 512 of 1,024 codes at two thirds of 15 steps, the released float32 one less."""
    assert left(Kept(steps=steps, of=1024), 1024) == [int(n) for n in wanted.split()]


def test_as_many_codes_are_drawn_as_published() -> None:
    """Lumina-DiMOO, 4,096 codes in 64 steps."""
    wanted = (
        "2 3 7 8 11 14 16 18 21 23 26 28 30 33 35 37 40 42 44 46 49 50 53 55 57 59 60 63 65 67 68 70 72 74 75 77 79 80 81 83 84 86 87 88 "
        "89 90 92 92 93 95 95 95 97 97 98 98 99 99 100 100 100 101 100 100"
    )
    assert Kept(steps=64).counts(4096) == [int(n) for n in wanted.split()]


def test_a_hole_waits_for_the_curve_of_the_whole_picture() -> None:
    assert left(Kept(steps=6, of=64), 27) == [26, 25, 24, 23, 16, 0]
    assert left(Kept(steps=6), 27)[0] == 26 and left(Kept(steps=6), 27)[3] == 13
    assert Kept(steps=9, of=64).counts(2) == [1, 1] and Kept(steps=3).counts(0) == []
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Kept(steps=0).counts(4)


@pytest.mark.parametrize("curve", [cosine, linear, sigmoid, Power(exponent=3.0)])
def test_curves_fall_from_one_to_zero(curve: object) -> None:
    values = [float(curve(torch.tensor(t))) for t in (0.0, 0.3, 0.6, 1.0)]  # type: ignore[operator]
    assert values[0] == pytest.approx(1, abs=1e-6) and values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=2e-6)


def test_the_noise_fades_as_if_the_temperature_were_lowered_in_place() -> None:
    numbers = torch.arange(4)
    progress = Progress(number=numbers, of=torch.full((4,), 4), length=8)
    assert Cooling(noise=2.0).temperature(progress).tolist() == pytest.approx([1.5, 0.75, 0.1875, 0.0])


def test_a_text_gets_no_code_and_no_mask() -> None:
    spans = (Span(name="answer", kind=Kind.TEXT, start=0, stop=2, writable=True),)
    batch = collate([Sequence(ids=torch.zeros(2, dtype=torch.long), masked=torch.ones(2).bool(), spans=spans)], [0])
    logits = torch.tensor([[0.0, 1, 2, 9, 8], [3.0, 1, 7, 9, 8]])  # id 2 is the mask, 3 and 4 are codes
    prediction = Prediction(scored={Kind.TEXT: Scored(at=torch.tensor([0, 1]), logits=logits)})
    progress = Progress(number=torch.zeros(1).long(), of=torch.ones(1).long(), length=2)
    found = Without(ids=(2,), token_sampler=Greedy(), size=3)(batch, prediction, progress)
    assert found.ids.tolist() == [[1, 0]] and Greedy()(batch, prediction, progress).ids.tolist() == [[3, 3]]
    preset = mmada_text(text_ids=3, mask_id=2, drop=frozenset({"prompt"})).token_sampler
    assert preset(batch, prediction, progress).ids.tolist() == [[1, 0]]
