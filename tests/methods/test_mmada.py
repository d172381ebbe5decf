"""UniGRPO: masks spread over time, the clipped ratio, the reference, and a toy policy whose reward rises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask.evaluation.verify import verify
from unmask.methods.mmada import EvenSteps, ToTheEnd, UniGRPO
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives.clipped import clipped_loss, divergence
from unmask.posttraining.likelihoods import log_probabilities
from unmask.posttraining.prompts import Prompt, PromptBatch
from unmask.posttraining.rewards import Sample, TokenShare, Weighted
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Loss

from ..packed import given_or_own

torch.set_num_threads(1)
CONFIG = replace(SIZES["tiny"], vision=None, gen_width=0, vocab_size=12)
SAMPLER = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(temperature=1.0), selection=Confident())


def model() -> Elastic:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator("policy"))
    return made


def row(number: int, answer: int = 6) -> Sequence:
    ids = torch.randint(2, 12, (3 + answer,), generator=generator("prompt", number))
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
        Span(name="answer", kind=Kind.TEXT, start=3, stop=3 + answer, writable=True),
    )
    return Sequence(ids=ids, masked=torch.arange(3 + answer) >= 3, spans=spans)


def given(*numbers: int) -> PromptBatch:
    return PromptBatch(tuple(Prompt(text=str(n)) for n in numbers), collate([row(n) for n in numbers], numbers))


def read(prompts: Any, rows: Any) -> list[Sample]:
    return [Sample(sequence=one, prompt=prompt.text) for prompt, one in zip(prompts, rows, strict=True)]


class Frozen:
    """A copy of the policy as the reference."""

    def __init__(self, policy: nn.Module) -> None:
        self.copy, self.asked = model(), 0
        self.copy.load_state_dict(policy.state_dict())

    @contextmanager
    def __call__(self, policy: Any) -> Iterator[Any]:
        self.asked += 1
        yield self.copy


def objective(policy: nn.Module, **more: Any) -> UniGRPO:
    reward = Weighted(parts=(("share", TokenShare(span="answer", token=7), 1.0),))
    return UniGRPO(**{"sampler": SAMPLER, "reward": reward, "read": read, "reference": Frozen(policy)} | more)


def losses(policy: Elastic, made: UniGRPO, seed: int = 0) -> list[Loss]:
    return list(made(policy, given(0, 1), torch.Generator().manual_seed(seed)))


def gradient(policy: Elastic, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


# -- masks over time --------------------------------------------------------------------------------------------------


def test_times_of_algorithm_1_run_to_the_end() -> None:
    shares = ToTheEnd()(torch.tensor([100, 0, 999]), 5)
    assert shares[:, 0].mul(1000).round().tolist() == [100, 325, 550, 775, 1000]
    assert shares[:, 1].tolist() == [0, 0.25, 0.5, 0.75, 1] and shares[-1].tolist() == [1, 1, 1]
    assert ToTheEnd()(torch.tensor([400]), 1).tolist() == [[pytest.approx(0.4)]]


def test_times_of_section_52_are_even_and_begin_again() -> None:
    shares = EvenSteps()(torch.tensor([100, 950, 0]), 5)
    assert shares[:, 0].mul(1000).round().tolist() == [100, 300, 500, 700, 900]
    assert shares[:, 1].mul(1000).round().tolist() == [950, 150, 350, 550, 750]
    assert shares[0, 2] == 1 and bool((shares > 0).all())


def test_exact_counts_of_the_answer_are_masked_and_never_the_prompt() -> None:
    policy = model()
    made = objective(policy, updates=4)
    answers = SAMPLER.sample(policy.eval(), given(0, 1, 2).rows)
    views = made.views(answers, torch.Generator().manual_seed(1))
    first = torch.randint(1000, (3,), generator=torch.Generator().manual_seed(1))
    for view, shares in zip(views, ToTheEnd()(first, 4), strict=True):
        assert not view.masked[:, :3].any()
        assert view.masked.sum(1).tolist() == [max(1, round(float(s) * 6)) for s in shares]


def test_nothing_after_the_end_of_an_answer_is_masked() -> None:
    policy = model()
    answers = SAMPLER.sample(policy.eval(), given(0).rows)
    ids = torch.tensor([[2, 2, 2, 5, 9, 4, 9, 9, 3]])
    last = objective(policy, updates=3, ends=(9,)).views(answers.replace(ids=ids), torch.Generator())[-1]
    assert last.masked[0].tolist() == [False] * 3 + [True, True] + [False] * 4
    assert objective(policy, updates=3).views(answers.replace(ids=ids), torch.Generator())[-1].masked[0, 3:].all()


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_first_update_has_ratio_1_and_no_divergence() -> None:
    policy = model()
    first, *_ = losses(policy, objective(policy))
    assert first.terms["kl"].abs() < 1e-6 and first.terms["ratio_clipped"] == 0


def test_equal_rewards_give_no_gradient() -> None:
    policy = model()
    same = Weighted(parts=(("same", lambda samples: [1.0] * len(samples), 1.0),))
    for loss in losses(policy, objective(policy, reward=same, kl=0.0)):
        assert gradient(policy, loss.total).abs().max() == 0


def test_the_divergence_alone_pulls_to_the_reference() -> None:
    policy = model()
    frozen = Frozen(policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator("away", p.shape)))
    same = Weighted(parts=(("same", lambda samples: [1.0] * len(samples), 1.0),))
    made = objective(policy, reward=same, kl=1.0, reference=frozen, updates=1)
    view = made.views(SAMPLER.sample(policy.eval(), given(0, 1).rows), torch.Generator().manual_seed(3))[0]

    def away() -> float:
        with torch.no_grad():
            return float(divergence(log_probabilities(policy, view), log_probabilities(frozen.copy, view), view.masked))

    before, optimiser = away(), torch.optim.SGD(policy.parameters(), lr=0.05)
    for seed in range(20):
        (loss,) = losses(policy, made, seed)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert frozen.asked == 20 and away() < 0.8 * before


def test_without_divergence_the_reference_is_not_asked() -> None:
    policy = model()
    frozen = Frozen(policy)
    assert all("kl" not in loss.terms for loss in losses(policy, objective(policy, reference=frozen, kl=0.0)))
    assert frozen.asked == 0


def test_divergence_is_the_mean_of_k3() -> None:
    new, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, -1.0]])
    counted = torch.tensor([[True, True, False]])
    d = (reference - new)[0, :2]
    torch.testing.assert_close(divergence(new, reference, counted), (d.exp() - 1 - d).mean())
    assert divergence(new, new, counted) == 0


def test_the_clip_ends_the_gain_of_a_good_answer() -> None:
    old, counted = torch.tensor([[-1.0]]), torch.tensor([[True]])
    for new, wanted in ((-0.95, True), (-0.5, False)):  # ratios 1.05 and 1.65
        value = torch.tensor([[new]], requires_grad=True)
        clipped_loss(value, old, torch.tensor([1.0]), counted, clip=0.2, kl=0.0).backward()
        assert value.grad is not None and bool(value.grad.abs().sum() > 0) == wanted


def test_limits_of_its_settings() -> None:
    policy = model()
    with pytest.raises(ValueError, match="a group of 2 or more"):
        objective(policy, group=1)
    with pytest.raises(ValueError, match="clip must be in 0..1"):
        objective(policy, clip=1.5)


def test_reward_rises() -> None:
    policy = model()
    made, optimiser = objective(policy, updates=3, kl=0.0), torch.optim.Adam(policy.parameters(), lr=3e-3)
    found = []
    for step in range(12):
        for loss in made(policy, given(2 * step, 2 * step + 1), torch.Generator().manual_seed(step)):
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
        found.append(float(loss.terms["reward"]))
    assert found[-1] > found[0] + 0.3


def test_every_measured_array_of_the_family(request: pytest.FixtureRequest) -> None:
    found = verify(given_or_own(request.config, "mmada_tiny"))
    assert {"rl.logp", "rl.loss", "rl.policy_loss", "rl.loss_at_old"} <= {d.name for d in found}
    assert all(d.ok for d in found), [d for d in found if not d.ok]
