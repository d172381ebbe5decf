"""Groups of samples of one prompt, as group-relative methods (GRPO, UniGRPO) need them.

Public idea: ``rollout(model, sampler, prompts, group=8, purpose=step) -> Rollout``. Member g of a prompt's group is sampled with a seed
that follows from the prompt's own seed, ``purpose`` and g. A sample therefore does not depend on the other prompts of the batch
or on the size of the group, and two models that are given the same arguments sample with the same random numbers.

Shapes: B prompts · G members of a group · L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.posttraining.rewards import Reward, Sample
from unmask.rng import key
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Batch, Sequence, sequence_at, stack


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """``answers``: G * B finished rows, member by member (row g * B + b) · ``prompts``: the B rows they were sampled from ·
    ``steps [G * B, L]`` long: the step, from 1, at which each token got its id; 0 for tokens that were given.
    """

    prompts: Batch
    answers: Batch
    group: int
    steps: Tensor

    @property
    def scores(self) -> Tensor:
        """The score with which each token was taken, [G * B, L]; -inf for tokens that were given. A log-probability where the sampler
        scores tokens by it, as those of our own models do.
        """
        assert self.answers.score is not None
        return self.answers.score

    def rewards(self, reward: Reward) -> Tensor:
        """The reward of every answer by its tokens alone, float32 [B, G] on the CPU."""
        return self.gathered(reward([Sample(sequence=sequence) for sequence in sequences(self.answers)]))

    def gathered(self, values: Iterable[float]) -> Tensor:
        """One number per answer, in the order of its rows, as float32 [B, G] on the CPU."""
        return torch.tensor([float(value) for value in values]).reshape(self.group, self.prompts.rows).T

    def spread(self, values_BG: Tensor) -> Tensor:
        """One value per answer, [G * B] in the order of its rows, on their device."""
        return values_BG.T.flatten().to(self.answers.device)


def rollout(model: nn.Module, sampler: Sampler, prompts: Batch, *, group: int, purpose: object = 0) -> Rollout:
    """Sample ``group`` answers for each row of ``prompts``, whose masked writable tokens are to be filled.

    ``purpose``: anything printable that tells this rollout from others of the same prompts, such as the step. The model is in eval
    mode meanwhile, and no gradients are kept. ValueError for a group below 1.
    """
    if group < 1:
        raise ValueError(f"a group must have at least 1 sample, got {group}")
    repeated = stack([prompts] * group).replace(seed=member_seeds(prompts, group, purpose))
    steps = Steps(repeated)
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        answers = sampler.sample(model, repeated, on_step=steps)
    finally:
        for part, training in modes:
            part.training = training
    return Rollout(prompts=prompts, answers=answers, group=group, steps=steps.found)


def member_seeds(prompts: Batch, group: int, purpose: object) -> Tensor:
    """The seed of every answer of a rollout, [G * B]."""
    seeds = [key("rollout", purpose, seed, member) for member in range(group) for seed in prompts.seed.tolist()]
    return torch.tensor(seeds, device=prompts.device)


class Steps:
    """Follows a run of the sampler. ``found [B, L]``: the step, from 1, at which each token last got an id; 0 for given tokens.

    A token that is masked again counts from the step that fills it again; one that early stopping filled has the step after which it did.
    """

    def __init__(self, batch: Batch) -> None:
        self.before = batch
        self.found = torch.zeros_like(batch.ids)

    def __call__(self, step: Step) -> None:
        now, before = step.batch, self.before
        changed = (now.ids != before.ids) | (before.masked & ~now.masked)
        self.found = torch.where(changed & ~now.masked, step.number, self.found).masked_fill(now.masked, 0)
        self.before = now


def sequences(batch: Batch) -> Iterable[Sequence]:
    """Every row of a batch without its padding, on the CPU. Pixels are left out."""
    for row, spans in enumerate(batch.span_table):
        length = int(batch.valid[row].sum())
        ids = torch.empty(length, dtype=torch.long)
        yield sequence_at(Sequence(ids=ids, masked=ids.bool(), spans=spans), batch, row)
