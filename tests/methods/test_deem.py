"""DEEM against its measured arrays: times, the feedback, the picture loss; and that gradients reach the encoder alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.contract.instances import tiny
from unmask.methods.deem import (
    STEPS,
    CodeFeedback,
    Weights,
    WithFeedback,
    compressed,
    errors,
    frozen,
    over_region,
    picture_loss,
    replaced,
)
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("deem")


def latents(arrays: dict[str, Tensor]) -> Tensor:
    return torch.einsum("kc,bchw->bkhw", arrays["vae.K"], (arrays["image"] - 0.5) / 0.5)


def stand_in(arrays: dict[str, Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def net(x: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        told = conditions.mean(1) @ arrays["unet.Wc"] + torch.cos(t / 200)[:, None]
        return torch.tanh(x.flatten(1) @ arrays["unet.W"] + told).view_as(x)

    return net


def test_times_move_to_the_middle(arrays: dict[str, Tensor]) -> None:
    found = compressed(arrays["time.t"])
    assert torch.equal(found, arrays["time.compressed"])
    assert int(found.min()) == 200 and int(found.max()) == 799 and len(found) == STEPS
    assert torch.equal(compressed(arrays["t_drawn"]), arrays["t_used"])


def test_the_feedback(arrays: dict[str, Tensor]) -> None:
    given = {name: arrays[name].clone() for name in ("cond", "noise", "image")}
    each = errors(stand_in(arrays), latents(arrays), arrays["cond"], arrays["t_used"], arrays["noise"])
    assert torch.allclose(each, arrays["sd_loss"], atol=1e-5)
    mask = arrays["latent_mask"]
    assert torch.allclose(over_region(each, mask), arrays["sniffer_loss"], rtol=1e-5)
    assert torch.allclose(over_region(each, torch.ones_like(mask)), over_region(each), rtol=1e-5)
    assert all(torch.equal(arrays[name], before) for name, before in given.items()), "inputs were changed in place"


def test_the_picture_loss(arrays: dict[str, Tensor]) -> None:
    learned = arrays["dec.neg"]
    conditions = replaced(arrays["dec.context"][:, : learned.shape[1]], learned, arrays["dec.uncond_u"])
    each = errors(stand_in(arrays), latents(arrays), conditions, arrays["dec.t"], arrays["dec.noise"])
    assert torch.allclose(picture_loss(each, arrays["dec.context_mask"].sum(1)), arrays["dec.loss"], rtol=1e-5)
    assert torch.equal(replaced(conditions, learned, torch.zeros(len(conditions), 1, 1)), learned.expand_as(conditions))
    weights = Weights()
    assert [weights.feedback, weights.text, weights.picture] == arrays["weights.sniffer_text_image"].tolist()
    assert float(weights(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0))) == pytest.approx(33.0)


class Encoder(nn.Module):
    """Four condition tokens from a batch's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def conditioned(self, batch: Batch) -> Batch:
        assert batch.features is not None
        return batch.replace(features=self.linear(batch.features))


def pictures(width: int) -> Batch:
    spans = (
        Span(name="condition", kind=Kind.FEATURE, start=0, stop=4),
        Span(name="image", kind=Kind.CODE, start=4, stop=20, grid=(4, 4), fold=2, writable=True),
    )
    rng = generator("deem")
    rows = [
        Sequence(
            ids=torch.randint(0, 16, (20,), generator=rng),
            masked=torch.arange(20) > 3,
            spans=spans,
            features=torch.randn(4, width, generator=rng),
            feature_rows=4,
        )
        for _ in range(2)
    ]
    return collate(rows, [0, 1])


def zero(model: nn.Module, batch: Batch, rng: torch.Generator) -> Loss:
    return Loss(total=next(model.parameters()).sum() * 0, terms={}, counts={})


def test_the_gradient_of_a_frozen_generator_reaches_the_encoder_alone() -> None:
    net = tiny()
    encoder, batch = Encoder(net.config.width), pictures(net.config.width)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    feedback = CodeFeedback(generator=net, conditioned=lambda model, batch: model.conditioned(batch))
    loss = WithFeedback(objective=zero, feedback=feedback)(encoder, batch, generator(1))
    loss.total.backward()
    assert encoder.linear.weight.grad is not None and bool(encoder.linear.weight.grad.any())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert loss.total.item() == pytest.approx(5 * loss.terms["feedback"].item(), rel=1e-5)
    plain = WithFeedback(objective=zero, feedback=feedback, weight=0.0)(encoder, batch, generator(1))
    assert plain.total.item() == 0 and not plain.terms


def test_masked_pictures_get_middle_times() -> None:
    feedback = CodeFeedback(generator=tiny(), conditioned=lambda model, batch: batch)
    times = feedback.masked.corruption.times(pictures(8), generator(2))[:, 4:]
    assert bool(((times >= 0.2) & (times <= 0.8)).all())


def test_frozen_parameters_are_as_before_afterwards() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert module.weight.requires_grad and not module.bias.requires_grad


def test_an_objective_of_several_losses_is_refused() -> None:
    several = WithFeedback(objective=lambda model, batch, rng: iter(()), feedback=lambda *given: torch.zeros(()))
    with pytest.raises(ValueError, match="one loss for a batch"):
        several(nn.Linear(1, 1), pictures(4), generator(0))
