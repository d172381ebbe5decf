"""Self-distillation through time: targets step by step against a hand-written teacher, and zero at a model that needs no second step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.objectives.distillation import Distillation
from unmask.objectives.masked import Masked
from unmask.objectives.through_time import ThroughTime, sampled
from unmask.rng import generator
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Scored

from .test_distillation import MASKED, batch, model

torch.set_num_threads(1)
PLAIN = Masked()


class Counting:
    """A teacher whose logits say at which of its steps they were made, and which notes the rows that it sees."""

    mask_id = 1

    def __init__(self, vocabulary: int = 40) -> None:
        self.seen: list[Batch] = []
        self.vocabulary = vocabulary

    def __call__(self, noisy: Batch, *, predict: Tensor, **more: Any) -> Prediction:
        self.seen.append(noisy)
        scored = {}
        for kind in (Kind.TEXT, Kind.CODE):
            at = (predict & (noisy.kind == kind)).flatten().nonzero()[:, 0]
            logits = torch.zeros(len(at), self.vocabulary)
            logits[:, len(self.seen)] = 50.0
            scored[kind] = Scored(at=at, logits=logits)
        return Prediction(scored=scored)


def test_a_target_is_the_prediction_of_the_step_that_unmasks_the_token() -> None:
    teacher, noisy = Counting(), PLAIN.noisy(model(), batch(), generator("noise"))
    objective = ThroughTime(masked=PLAIN, teacher=lambda _: nullcontext(teacher), steps=3, share=0.1)
    found = objective.targets(teacher, noisy, generator("steps"))  # type: ignore[arg-type]
    first, second, third = teacher.seen
    assert first is noisy
    each = -(-19 * 0.1 // 1)  # of 19 writable tokens
    assert torch.equal((first.masked & ~second.masked).sum(1).float(), noisy.masked.sum(1).float().clamp(max=each))
    for kind, (at, log_p) in found.items():
        step = log_p.argmax(-1)
        gone = [
            now.masked.flatten()[at] & ~after.masked.flatten()[at] for now, after in ((first, second), (second, third))
        ]
        wanted = torch.full_like(step, 3)
        for number, some in enumerate(gone, start=1):
            wanted[some] = number
            assert (third.ids.flatten()[at][some] == number).all(), kind  # it continues with its own samples
        assert torch.equal(step, wanted)
    assert torch.equal(third.ids[~noisy.masked], noisy.ids[~noisy.masked])


def test_one_step_is_plain_distillation() -> None:
    student, teacher = model("student"), model()
    one = ThroughTime(masked=MASKED, teacher=lambda _: nullcontext(teacher), steps=1)(
        student, batch(), generator("noise")
    )
    plain = Distillation(masked=MASKED, teacher=lambda _: nullcontext(teacher))(student, batch(), generator("noise"))
    assert one.counts == plain.counts
    for name, term in plain.terms.items():
        torch.testing.assert_close(one.terms[name], term, rtol=1e-4, atol=1e-6)


def test_a_student_comes_closer_to_two_steps_of_its_teacher() -> None:
    student, teacher = model(), model().requires_grad_(False)
    objective = ThroughTime(masked=MASKED, teacher=lambda _: nullcontext(teacher), steps=2, share=0.5)
    optim = torch.optim.Adam(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        optim.zero_grad()
        loss = objective(student, batch(), generator("noise"))
        loss.total.backward()
        optim.step()
        losses.append(float(loss.total.detach()))
    assert losses[0] > 0 and losses[-1] < losses[0] / 2
    assert all(p.grad is None for p in teacher.parameters())


def test_samples_follow_the_probabilities() -> None:
    rows = batch(rows=200)
    log_p = torch.tensor([0.7, 0.2, 0.1, 0.0]).log().expand(200, -1)
    chosen = torch.zeros_like(rows.masked)
    chosen[:, 3] = True
    at = torch.arange(200) * rows.ids.shape[1] + 3
    ids = sampled(rows, {Kind.TEXT: (at, log_p)}, chosen, generator("draws"))
    share = torch.bincount(ids[:, 3], minlength=4) / 200
    assert share[3] == 0 and (share - torch.tensor([0.7, 0.2, 0.1, 0.0])).abs().max() < 0.1
    assert torch.equal(ids[:, 4:], rows.ids[:, 4:])


@pytest.mark.parametrize("given", [{"steps": 0}, {"share": 0.0}, {"share": 1.5}])
def test_wrong_values_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps="):
        ThroughTime(masked=PLAIN, teacher=lambda _: nullcontext(), **given)  # type: ignore[arg-type,return-value]


def test_a_row_without_masked_tokens_has_no_loss() -> None:
    net: Elastic = model()
    objective = ThroughTime(masked=Masked(), teacher=lambda _: nullcontext(net), steps=2)
    given = batch(rows=1)
    loss = objective(net, given.replace(writable=torch.zeros_like(given.writable)), generator("noise"))
    assert float(loss.total.detach()) == 0 and not loss.terms
