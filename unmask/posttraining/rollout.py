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

from unmask.posttraining.rewards import Reward
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Sequence, sequence_at, stack


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """``answers``: G * B finished rows, member by member (row g * B + b) · ``prompts``: the B rows they were sampled from."""

    prompts: Batch
    answers: Batch
    group: int

    def rewards(self, reward: Reward) -> Tensor:
        """The reward of every answer, float32 [B, G] on the CPU."""
        values = [float(reward(sequence)) for sequence in sequences(self.answers)]
        return torch.tensor(values).reshape(self.group, self.prompts.rows).T

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
    seeds = [key("rollout", purpose, seed, member) for member in range(group) for seed in prompts.seed.tolist()]
    repeated = stack([prompts] * group).replace(seed=torch.tensor(seeds, device=prompts.device))
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        answers = sampler.sample(model, repeated)
    finally:
        for part, training in modes:
            part.training = training
    return Rollout(prompts=prompts, answers=answers, group=group)


def sequences(batch: Batch) -> Iterable[Sequence]:
    """Every row of a batch without its padding, on the CPU. Pixels are left out."""
    for row, spans in enumerate(batch.span_table):
        length = int(batch.valid[row].sum())
        ids = torch.empty(length, dtype=torch.long)
        yield sequence_at(Sequence(ids=ids, masked=ids.bool(), spans=spans), batch, row)
