"""Rollouts in groups, rewards and advantages; and a toy policy whose reward rises under the one trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.posttraining.advantage import centred, group_normalised
from unmask.posttraining.likelihoods import log_probabilities
from unmask.posttraining.rewards import Sample, TokenShare
from unmask.posttraining.rollout import Rollout, rollout, sequences
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss
from unmask.training.train import train

CONFIG = dataclasses.replace(SIZES["tiny"], vision=None, gen_width=0, vocab_size=12)
SAMPLER = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(temperature=1.0), selection=Confident())
REWARD = TokenShare(span="answer", token=7)


def model() -> nn.Module:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator("policy"))
    return made


def prompt(number: int, length: int = 3) -> Sequence:
    ids = torch.randint(2, 12, (length + 4,), generator=generator("prompt", number))
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=length),
        Span(name="answer", kind=Kind.TEXT, start=length, stop=length + 4, writable=True),
    )
    return Sequence(ids=ids, masked=torch.arange(length + 4) >= length, spans=spans)


def prompts(*numbers: int) -> Batch:
    return collate([prompt(n, length=3 + n % 2) for n in numbers], numbers)


def answer(rolled: Rollout, prompt: int, member: int) -> list[int]:
    return list(sequences(rolled.answers))[member * rolled.prompts.rows + prompt].ids.tolist()


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_group_answers_its_own_prompt() -> None:
    given = prompts(0, 1)
    rolled = rollout(model(), SAMPLER, given, group=3)
    assert rolled.answers.rows == 6 and not rolled.answers.masked.any()
    for b, length in ((0, 3), (1, 4)):
        asked = given.ids[b, :length].tolist()
        answers = [answer(rolled, b, g) for g in range(3)]
        assert all(a[:length] == asked and len(a) == length + 4 for a in answers)
        assert len({tuple(a) for a in answers}) > 1


def test_a_sample_depends_on_its_prompt_and_number_alone() -> None:
    policy = model()
    both = rollout(policy, SAMPLER, prompts(0, 1), group=4)
    alone = rollout(policy, SAMPLER, prompts(1), group=2)
    assert [answer(both, 1, g) for g in range(2)] == [answer(alone, 0, g) for g in range(2)]
    later = rollout(policy, SAMPLER, prompts(1), group=2, purpose="later")
    assert [answer(later, 0, g) for g in range(2)] != [answer(alone, 0, g) for g in range(2)]


def test_the_model_keeps_its_modes_and_gets_no_gradient() -> None:
    policy = model()
    policy.norm.eval()
    seen = []
    policy.register_forward_hook(lambda part, given, out: seen.append((part.training, torch.is_grad_enabled())))
    rollout(policy, SAMPLER, prompts(0), group=1)
    assert set(seen) == {(False, False)} and policy.training and not policy.norm.training
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        rollout(policy, SAMPLER, prompts(0), group=0)


def test_rewards_and_their_rows() -> None:
    rolled = rollout(model(), SAMPLER, prompts(0, 1), group=3)
    rewards = rolled.rewards(lambda samples: [float(sample.sequence.ids.sum()) for sample in samples])
    assert rewards.shape == (2, 3)
    wanted = [[sum(answer(rolled, b, g)) for g in range(3)] for b in range(2)]
    assert rewards.tolist() == wanted
    sums = (rolled.answers.ids * rolled.answers.valid).sum(1)
    assert torch.equal(rolled.spread(rewards).long(), sums)


def test_token_share() -> None:
    made = prompt(0)
    made.ids[3:] = torch.tensor([7, 2, 7, 3])
    assert REWARD([Sample(sequence=made)]) == [0.5]
    with pytest.raises(KeyError, match="no span 'reply'"):
        TokenShare(span="reply", token=7)([Sample(sequence=made)])


def test_the_step_and_the_log_probability_of_each_token() -> None:
    policy = model()
    rolled = rollout(policy, SAMPLER, prompts(0, 1), group=2)
    open_ = rolled.answers.writable & rolled.answers.valid
    assert set(rolled.steps[open_].tolist()) == {1, 2} and not rolled.steps[~open_].any()
    assert (rolled.steps[open_].view(4, 4) == 1).sum(1).tolist() == [2] * 4
    # Before the first step everything is masked: the scores of its tokens are the model's log-probabilities there.
    clean = rolled.answers.replace(clean=rolled.answers.ids, masked=open_)
    with torch.no_grad():
        wanted = log_probabilities(policy.eval(), clean)
    early = open_ & (rolled.steps == 1)
    torch.testing.assert_close(rolled.scores[early], wanted[early], atol=1e-5, rtol=1e-4)
    assert (rolled.scores[~open_] == -torch.inf).all()


# -- advantages -------------------------------------------------------------------------------------------------------


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [4.0, 0.0, 0.0, 0.0]])
    assert centred(rewards).tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [3.0, -1.0, -1.0, -1.0]]
    normalised = group_normalised(rewards)
    assert normalised[1].tolist() == [0.0] * 4
    torch.testing.assert_close(normalised[0], torch.tensor([1.0, -1.0, -1.0, 1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalised[[0, 2]].std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)


# -- through the trainer ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """GRPO on masked tokens: ``updates`` clipped steps per rollout, each with its own mask (as UniGRPO draws them)."""

    group: int = 8
    updates: int = 3
    clip: float = 0.2

    def __call__(self, policy: nn.Module, given: Batch, rng: torch.Generator) -> Iterator[Loss]:
        purpose = int(torch.randint(2**31, (1,), generator=rng))
        rolled = rollout(policy, SAMPLER, given, group=self.group, purpose=purpose)
        rewards = rolled.rewards(REWARD)
        advantage = rolled.spread(group_normalised(rewards))
        clean = rolled.answers.replace(clean=rolled.answers.ids)
        times = [Absorbing().times(clean, rng) for _ in range(self.updates)]
        views = [Absorbing().corrupt(clean, time, rng) for time in times]
        with torch.no_grad():
            before = [self.score(policy, view)[0] for view in views]
        for view, old in zip(views, before, strict=True):
            new, rows = self.score(policy, view)
            ratio = (new - old).exp()
            gain = torch.minimum(ratio * advantage[rows], ratio.clamp(1 - self.clip, 1 + self.clip) * advantage[rows])
            terms = {"reward": rewards.mean(), "gain": gain.mean()}
            yield Loss(total=-gain.mean(), terms=terms, counts={"tokens": len(gain)})

    def score(self, policy: nn.Module, view: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each masked token, and its row."""
        text = policy(view).scored[Kind.TEXT]
        chosen = view.ids.flatten()[text.at]
        log = text.logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        return log, text.at // view.ids.shape[1]


def test_a_policy_with_several_updates_per_rollout_earns_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)

    def earned(policy: nn.Module, step: int) -> dict[str, float]:
        rolled = rollout(policy, SAMPLER, prompts(100, 101, 102, 103), group=8, purpose="held out")
        return {"reward": float(rolled.rewards(REWARD).mean())}

    made = Recipe(
        name="policy",
        model=model,
        source=lambda step: prompts(2 * step, 2 * step + 1),
        objective=Policy(),
        optim=Optim(lr=3e-3, warmup=1, ema=0.5),
        training=Training(steps=12, bf16=False, log_every=1),
        evals=(Eval(name="held_out", every=12, run=earned),),
    )
    before = earned(model(), 0)["reward"]
    done = train(made, tmp_path)
    after = earned(done, 12)["reward"]
    print(before, after)
    assert before < 0.3 and after > before + 0.4
    (last,) = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "held_out.reward" in line]
    assert f'"held_out.reward": {after}' in last
    assert '"updates": 36' in (tmp_path / "metrics.jsonl").read_text()
