"""Distillation: zero at the teacher, the KL divergence of every scored token, and a model that stays where it was."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.lora import LoRA, adapters, without_adapters
from unmask.models.sizes import SIZES
from unmask.objectives.distillation import Distillation
from unmask.objectives.masked import Dropout, Masked, MaskedModel
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)
CONFIG = dataclasses.replace(SIZES["tiny"], vision=None, vocab_size=40)
MASKED = Masked(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.5),))


def model(seed: str = "teacher") -> Elastic:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator(seed))
    return made


def batch(rows: int = 6) -> Batch:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
        Span(name="answer", kind=Kind.TEXT, start=3, stop=6, writable=True),
        Span(name="image", kind=Kind.CODE, start=6, stop=22, grid=(4, 4), fold=2, writable=True),
    )
    ids = torch.randint(2, 40, (rows, 22), generator=generator("rows"))
    return collate(
        [Sequence(ids=row, masked=torch.zeros(22, dtype=torch.bool), spans=spans) for row in ids], range(rows)
    )


def expected(student: Elastic, teacher: Elastic) -> dict[str, Tensor]:
    """The mean divergence of each kind, from logits of all masked tokens."""
    noisy = MASKED.noisy(student, batch(), generator("noise"))
    one, two = (net(noisy, predict=noisy.target) for net in (teacher, student))
    found = {}
    for kind, name in ((Kind.TEXT, "text"), (Kind.CODE, "code")):
        p, q = one.logits(kind).detach().softmax(-1), two.logits(kind).softmax(-1)
        found[name] = (p * (p / q).log()).sum(-1).mean()
    return found


def test_a_model_that_equals_its_teacher_has_no_loss_and_no_gradient() -> None:
    net = model()
    LoRA(where=lambda name: name.endswith(".q"), rank=2)(net)
    loss = Distillation(masked=MASKED, teacher=without_adapters)(net, batch(), generator("noise"))
    loss.total.backward()
    assert float(loss.total.detach()) == 0 and set(loss.terms) == {"text", "code"}
    found = [adapter.up.grad for _, _, adapter in adapters(net)]
    assert found and all(grad is not None and float(grad.abs().max()) < 1e-6 for grad in found)


@pytest.mark.parametrize("largest", [2**25, 16 * 40])
def test_the_loss_is_the_divergence_from_the_teacher(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all logits at once and in chunks; the gradient too, against that of logits of all masked tokens."""
    monkeypatch.setattr("unmask.objectives.distillation.LARGEST", largest)
    student, again, teacher = model("student"), model("student"), model()
    loss = Distillation(masked=MASKED, teacher=lambda _: nullcontext(teacher))(student, batch(), generator("noise"))
    wanted = expected(again, teacher)
    for name, term in loss.terms.items():
        torch.testing.assert_close(term, wanted[name], rtol=1e-4, atol=1e-6)
    loss.total.backward()
    torch.stack(list(wanted.values())).sum().backward()
    for (name, one), two in zip(student.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_model_returns_to_its_teacher() -> None:
    """Adapters that were stirred lose more than half of the divergence in 40 steps."""
    net = model()
    LoRA(where=lambda name: name.endswith((".q", ".v", ".up")), rank=4)(net)
    rng = generator("stir")
    trained = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.add_(torch.randn(p.shape, generator=rng) * 0.3)
    objective, adam, losses = (
        Distillation(masked=MASKED, teacher=without_adapters),
        torch.optim.Adam(trained, lr=0.03),
        [],
    )
    for step in range(40):
        loss = objective(net, batch(), generator("step", step))
        adam.zero_grad()
        loss.total.backward()
        adam.step()
        losses.append(float(loss.total.detach()))
    assert losses[0] > 0 and sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_the_teacher_sees_the_same_masked_batch() -> None:
    seen = []

    class Seeing(Elastic):
        def hidden_states(self, batch: Batch, **how: object):  # type: ignore[no-untyped-def, override]
            seen.append(batch)
            return super().hidden_states(batch, **how)  # type: ignore[arg-type]

    net = Seeing(CONFIG, mask_id=1)
    init(net, generator("teacher"))

    def teacher(model: MaskedModel) -> nullcontext[MaskedModel]:
        return nullcontext(model)

    Distillation(masked=MASKED, teacher=teacher)(net, batch(), generator("noise"))
    assert len(seen) == 2 and seen[0] is seen[1] and seen[0].masked.any()
