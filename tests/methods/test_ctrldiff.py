"""CtrlDiff: the values derived from its formulas, and block lengths and guidance in the sampler."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.methods import ctrldiff as method
from unmask.methods.ctrldiff import Certainty, ChosenBlocks, Classified, Exact, Policy, Taylor, WordClassifier
from unmask.models.fake import FakeDenoiser
from unmask.sampling.blocks import Blocks
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]


@pytest.fixture
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("ctrldiff")


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.to(wanted.dtype), wanted, atol=1e-7, rtol=1e-6)


def classifier(arrays: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def log_p(x: Tensor) -> Tensor:
        pair = torch.einsum("nv,nw,vw->n", x[:, 0], x[:, 1], arrays["guide_pair"])
        return F.logsigmoid(arrays["guide_w0"] + (x * arrays["guide_w"]).sum((1, 2)) + pair)

    return log_p


@pytest.mark.usefixtures("double")
def test_guidance_exact_and_to_first_order(arrays: dict[str, Tensor]) -> None:
    x, guide, size = arrays["xt"], classifier(arrays), arrays["denoiser"].shape[1] + 1
    t, s = (round(float(arrays[name]), 6) for name in "ts")
    step = method.unguided(arrays["denoiser"], x, t, s)
    close(step, arrays["step_unguided"])
    single, taylor = method.exact_ratios(guide, x, size), method.taylor_ratios(guide, x, size)
    close(single, arrays["logratio_single"])
    close(taylor, arrays["logratio_taylor"])
    seen = 0
    for key, value in arrays.items():
        if match := re.fullmatch(r"(joint_exact|marginals_exact|step_single|step_taylor)_gamma([\d.]+)", key):
            gamma, whole = float(match[2]), method.joint(step, guide, float(match[2]))
            found = {
                "joint_exact": whole,
                "marginals_exact": method.marginals(whole),
                "step_single": method.guided(step, single, gamma),
                "step_taylor": method.guided(step, taylor, gamma),
            }[match[1]]
            close(found, value)
            assert gamma or match[1].startswith(("joint", "marginals")) or torch.equal(found, step)
            seen += 1
    assert seen >= 12


def test_the_policy_gradient(arrays: dict[str, Tensor]) -> None:
    state, theta, reward = (arrays[f"policy_{name}"] for name in ("state", "theta", "reward"))
    close(method.expected_gradient(state, theta, reward), arrays["policy_gradient"])
    pi = (state @ theta).softmax(1)
    total = torch.zeros_like(theta)
    for action in range(theta.shape[1]):
        taken = torch.full((len(state),), action)
        total += method.reinforce(state, theta, taken, pi[:, action] * (reward[:, action] - 0.37)) / len(state)
    close(total, arrays["policy_gradient_by_reinforce"])


# -- in the sampler ---------------------------------------------------------------------------------------------------

fake = FakeDenoiser()
BASE = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(), selection=Confident())


def answer(tokens: int, *, prompt: int = 2) -> Sequence:
    length = prompt + tokens
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
        Span(name="answer", kind=Kind.TEXT, start=prompt, stop=length, writable=True),
    )
    return Sequence(ids=torch.arange(length) % 8, masked=torch.arange(length) >= prompt, spans=spans)


@dataclasses.dataclass(frozen=True)
class Logged:
    """A rule that answers in turn, and notes what it was asked."""

    numbers: tuple[int, ...]
    states: list[Tensor]

    def __call__(self, batch: Batch, state: Tensor) -> Tensor:
        self.states.append(state)
        return torch.full((batch.rows,), self.numbers[len(self.states) - 1])


def steps_of(sampler: Sampler, sequence: Sequence) -> list[list[int]]:
    """The tokens that each step unmasks."""
    batch, seen = collate([sequence], [0]), []
    before = [batch.masked]

    def watch(step: object) -> None:
        now = step.batch.masked  # type: ignore[attr-defined]
        seen.append((before[0] & ~now)[0].nonzero()[:, 0].tolist())
        before[0] = now

    sampler.sample(fake, batch, on_step=watch)
    return seen


def test_blocks_have_the_lengths_that_the_rule_says() -> None:
    rule = Logged(numbers=(0, 2, 1, 0), states=[])
    sampler = dataclasses.replace(BASE, schedule=Equal(steps=1), blocks=ChosenBlocks(rule=rule, lengths=(2, 3, 5)))
    assert steps_of(sampler, answer(11)) == [[2, 3], [4, 5, 6, 7, 8], [9, 10, 11], [12]]
    shares = [float(state[0, 2]) for state in rule.states]
    assert shares == pytest.approx([0, 2 / 11, 7 / 11, 10 / 11]) and rule.states[0][0, 0] == 0
    assert all(state[0, 1] <= state[0, 0] < 0 for state in rule.states[1:])


def test_a_rule_with_one_length_is_the_fixed_schedule() -> None:
    batch = collate([answer(9), answer(6)], [1, 2])
    for length in (2, 4):
        chosen = dataclasses.replace(BASE, blocks=ChosenBlocks(rule=Certainty(above=0), lengths=(length,)))
        fixed = dataclasses.replace(BASE, blocks=Blocks(length=length))
        assert torch.equal(chosen.sample(fake, batch).ids, fixed.sample(fake, batch).ids)


def test_rows_do_not_depend_on_their_batch() -> None:
    rule, sequences = Policy(theta=torch.randn(4, 4), explores=True), [answer(9), answer(6), answer(13, prompt=4)]
    sampler = dataclasses.replace(BASE, blocks=ChosenBlocks(rule=rule))
    together = sampler.sample(fake, collate(sequences, [3, 4, 5]))
    for i, sequence in enumerate(sequences):
        alone = sampler.sample(fake, collate([sequence], [3 + i]))
        assert torch.equal(together.ids[i, : len(sequence.ids)], alone.ids[0])


def trained_on(word: int, size: int) -> WordClassifier:
    """A classifier of texts that have ``word`` at least twice, trained with any share of them masked (id ``size`` - 1)."""
    torch.manual_seed(0)
    net = WordClassifier(size)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        ids = torch.randint(size - 1, (64, 8)).where(torch.rand(64, 8) > 0.2, word)
        label = ((ids == word).sum(1) >= 2).float()
        ids = ids.where(torch.rand(64, 8) > torch.rand(64, 1), size - 1)
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net.logit(F.one_hot(ids, size).float()), label).backward()
        optimiser.step()
    return net.requires_grad_(False)


def test_guidance_raises_what_the_classifier_looks_for() -> None:
    net, batch = trained_on(5, 25), collate([answer(6)] * 40, range(40))

    def share(gamma: float, ratios: Exact | Taylor) -> float:
        guide = Classified(classifier=net, gamma=gamma, mask_id=24, size=25, ratios=ratios)
        done = dataclasses.replace(BASE, guidance=guide).sample(fake, batch)
        return float((done.ids[:, 2:] == 5).float().mean())

    none = share(0.0, Taylor())
    plain = BASE.sample(fake, batch)
    assert none == float((plain.ids[:, 2:] == 5).float().mean())
    for ratios in (Taylor(), Exact(most=24)):
        assert none < share(1.0, ratios) < share(6.0, ratios)


def test_a_folder_has_a_policy_and_a_classifier(tmp_path: Path) -> None:
    net, policy = WordClassifier(25), Policy(theta=torch.randn(4, 4))
    method.save_classifier(net, tmp_path, 24)
    method.save_policy(policy, tmp_path)
    for most in (0, 5):
        made = method.ctrldiff(BASE, policy=str(tmp_path), classifier=str(tmp_path), gamma=2.0, most=most)
        assert isinstance(made.blocks, ChosenBlocks) and isinstance(made.guidance, Classified)
        assert made.guidance.ratios == (Exact(most=5) if most else Taylor()) and made.guidance.mask_id == 24
        assert not made.sample(fake, collate([answer(7)], [0])).masked.any()
    with pytest.raises(ValueError, match="block lengths must be at least 1"):
        ChosenBlocks(rule=Certainty(), lengths=(0, 2))
