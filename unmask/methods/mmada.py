"""MMaDA: UniGRPO, policy gradients for masked diffusion in words and pictures, after tuning on mixed chains of thought.

Paper: Yang et al., "MMaDA: Multimodal Large Diffusion Language Models", NeurIPS 2025, arXiv 2505.15809.

Equations: for a prompt q the old policy samples G answers o_i with rewards r_i. The advantage of all tokens of o_i is
A_i = (r_i - mean) / std over the group (eq. 15). For each of mu updates, a share t_n of the tokens of o_i is masked, never of q, and

    J = mean over i of 1/M_i sum over the M_i masked tokens of [ min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) - beta KL(theta || ref) ]

with rho = p_theta(token | q, masked o_i) / p_old(token | q, masked o_i) under the same mask (eq. 3 to 5). The shares are spread over time:
t_1 is random for every answer, and t_n = floor((n - 1) / (mu - 1) (T - t_1) + t_1) of T = 1000 for the others (algorithm 1), so the
updates of one rollout see the answer from lightly masked to all masked.

Decided here where the paper leaves it open: exactly max(1, round(t len)) tokens are masked; the sum is divided by the number of masked
tokens (eq. 4), not by the length of the answer (eq. 5), whose gradient would shrink with t; the KL is the estimator ``divergence`` with
beta 1e-4 (arXiv 2511.09611), and 0 turns it and the reference off; equal rewards give an advantage of 0; after the end of an answer in
words nothing is masked or counted. The text of section 5.2 spaces the times by T / mu instead (``EvenSteps``). For pictures the answer is
its codes.

What changes: the objective. It samples, asks the rewards, and yields mu losses, one update each.

What it costs: G answers by the sampler for every prompt, and mu forward and backward passes over them, with two more forward passes for
the old policy (mu > 1) and for the reference (beta > 0).

Shapes: B prompts · G answers of each · R = G B rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.corruption.counted import Counted
from unmask.methods.card import Card
from unmask.objectives.clipped import clipped_loss, divergence
from unmask.objectives.distillation import Teacher
from unmask.objectives.masked import MaskedModel
from unmask.posttraining.advantage import group_normalised
from unmask.posttraining.likelihoods import log_probabilities
from unmask.posttraining.prompts import Prompt, PromptBatch
from unmask.posttraining.rewards import Sample, Weighted
from unmask.posttraining.rollout import Rollout, rollout, sequences
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Sequence
from unmask.step import Loss

Read = Callable[[Items[Prompt], Items[Sequence]], list[Sample]]  # (prompt of each answer, finished answers) -> samples
T = 1000  # diffusion steps of algorithm 1


class Spacing(Protocol):
    """(first times [R] in 0..T - 1, updates) -> the share to mask at each update, [updates, R] in 0..1."""

    def __call__(self, first: Tensor, updates: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ToTheEnd:
    """From the first time to T, where everything is masked (algorithm 1)."""

    def __call__(self, first: Tensor, updates: int) -> Tensor:
        share = torch.arange(updates)[:, None] / max(updates - 1, 1)
        return (share * (T - first) + first).floor() / T


@dataclass(frozen=True, kw_only=True)
class EvenSteps:
    """T / updates apart, beginning again after T (the text of section 5.2)."""

    def __call__(self, first: Tensor, updates: int) -> Tensor:
        time = first + torch.arange(updates)[:, None] * (T / updates)
        return ((time - 1) % T + 1).floor() / T  # 0 becomes T


@dataclass(frozen=True, kw_only=True)
class UniGRPO:
    """``read``: answers as rewards see them · ``group``: G · ``updates``: mu · ``clip``: eps · ``kl``: beta, 0 for none ·
    ``reference``: the frozen policy, for the KL · ``ends``: text ids that end an answer in words · ``advantage``: rewards [B, G] -> [B, G].
    """

    sampler: Sampler
    reward: Weighted
    read: Read
    reference: Teacher
    group: int = 8
    updates: int = 2
    clip: float = 0.2
    kl: float = 1e-4
    spacing: Spacing = ToTheEnd()
    ends: tuple[int, ...] = ()
    advantage: Callable[[Tensor], Tensor] = group_normalised

    def __post_init__(self) -> None:
        if self.group < 2 or self.updates < 1:
            raise ValueError(
                f"UniGRPO needs a group of 2 or more and 1 update or more, got {self.group}, {self.updates}"
            )
        if not 0 < self.clip < 1 or self.kl < 0:
            raise ValueError(f"clip must be in 0..1 and kl at least 0, got {self.clip} and {self.kl}")

    def __call__(self, model: MaskedModel, given: PromptBatch, rng: torch.Generator) -> Iterator[Loss]:
        assert isinstance(model, nn.Module)
        purpose = int(torch.randint(2**31, (1,), generator=rng))
        # 1. A group of answers for every prompt, their rewards, and the advantage of each.
        rolled = rollout(model, self.sampler, given.rows, group=self.group, purpose=purpose)
        rewards_BG, terms = self.rewarded(rolled, given.prompts)
        advantage_R = rolled.spread(self.advantage(rewards_BG))
        # 2. The masks of all updates, and what the old policy says under them.
        views = self.views(rolled.answers, rng)
        with torch.no_grad():
            old = [log_probabilities(model, view) for view in views[1:]]
        # 3. One update for each of them. At the first the policy is still the old one.
        for number, view in enumerate(views):
            new_RL = log_probabilities(model, view)
            old_RL = old[number - 1] if number else new_RL.detach()
            loss = clipped_loss(new_RL, old_RL, advantage_R, view.masked, clip=self.clip, kl=0.0)
            own = {"ratio_clipped": self._clipped(new_RL, old_RL, view.masked)}
            if self.kl:
                with torch.no_grad(), self.reference(model) as reference:
                    reference_RL = log_probabilities(reference, view)
                own["kl"] = divergence(new_RL, reference_RL, view.masked)
                loss = loss + self.kl * own["kl"]
            yield Loss(total=loss, terms={**terms, **own}, counts={"tokens": int(view.masked.sum())})

    def rewarded(self, rolled: Rollout, prompts: Items[Prompt]) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards [B, G], and what is recorded: their mean, the mean of each of them, and the share of groups whose rewards differ."""
        samples = self.read([*prompts] * self.group, list(sequences(rolled.answers)))
        each = self.reward.each(samples)
        rewards_BG = rolled.gathered(self.reward.total(each))
        terms = {f"reward_{name}": torch.tensor(values).mean() for name, values in each.items()}
        mixed = (rewards_BG.max(1).values > rewards_BG.min(1).values).float().mean()
        return rewards_BG, {"reward": rewards_BG.mean(), **terms, "groups_mixed": mixed}

    def views(self, answers: Batch, rng: torch.Generator) -> list[Batch]:
        """The answers with the masks of every update."""
        clean = answers.replace(clean=answers.ids, score=None, region=None, writable=self._answered(answers))
        first_R = torch.randint(T, (answers.rows,), generator=rng).to(answers.device)
        shares = self.spacing(first_R.cpu(), self.updates).to(answers.device)
        return [Counted(whole=torch.round).corrupt(clean, share_R, rng) for share_R in shares]

    def _answered(self, answers: Batch) -> Tensor:
        """Writable tokens up to and with the first end of an answer, [R, L]."""
        ends_RL = torch.zeros_like(answers.masked)
        for token in self.ends:
            ends_RL |= (answers.ids == token) & answers.writable
        return answers.writable & ((ends_RL.cumsum(1) - ends_RL.long()) == 0)

    def _clipped(self, new_RL: Tensor, old_RL: Tensor, counted_RL: Tensor) -> Tensor:
        ratio_RL = (new_RL.detach() - old_RL).exp()
        return (((ratio_RL - 1).abs() > self.clip) & counted_RL).sum() / counted_RL.sum().clamp(min=1)


CARD = Card(
    title="MMaDA: Multimodal Large Diffusion Language Models",
    paper="arXiv 2505.15809",
    year=2025,
    changes="objective: clipped policy gradients on masked tokens, with masks spread over time",
    claim="UniGRPO after mixed chain-of-thought tuning raises text reasoning and the quality of pictures.",
    figure="mini, 208 updates, 192 drawings of 96 unseen prompts at 16 steps: .646 to .807 right (+.161 [.099, .229]), variety .849 to "
    ".753; not better than supervised tuning with as many operations (.000 [-.073, .073], without other objects +.047 [-.037, .130])",
    paper_figure="GSM8K 65.2 to 73.4, ImageReward 0.84 to 1.15",
    status="reference",
    recipe="unigrpo",
)
