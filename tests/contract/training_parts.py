"""Instances of the parts that train the published families, for the contract suites."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from unmask.corruption import absorbing, counted, schedules
from unmask.methods import dida, medim, mmada
from unmask.objectives import importance, masked, masking, next_token, through_time
from unmask.posttraining.rewards import Weighted
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical

UNIFORM = absorbing.Absorbing(otherwise=schedules.Uniform())
CORRUPTIONS: list[Any] = [
    counted.Counted(),
    counted.Counted(policy=schedules.Uniform(), whole=torch.round, short=3, scored=frozenset({"begin"})),
]
OBJECTIVES: list[Any] = [
    masked.Masked(corruption=CORRUPTIONS[0], weight=importance.EachRow()),
    masked.Masked(corruption=UNIFORM, weight=importance.InverseMean()),
    masked.Masked(corruption=UNIFORM, weight=importance.Linear()),
    masked.Masked(corruption=UNIFORM, weight=importance.Neighbours(p=0.3), complementary=True),
]
POLICIES = [
    mmada.UniGRPO(
        sampler=Sampler(schedule=Equal(steps=2), token_sampler=Categorical(), selection=Confident()),
        reward=Weighted(parts=()),
        read=lambda prompts, answers: [],
        reference=nullcontext,
        spacing=spacing,
    )
    for spacing in (mmada.ToTheEnd(), mmada.EvenSteps())
]
# Batches by task, an objective without random numbers, and policies that sample.
OTHER_OBJECTIVES: list[Any] = [
    masked.Pooled(objectives=(("text", OBJECTIVES[0]),)),
    next_token.NextToken(),
    next_token.NextToken(dropouts=(masked.Dropout(spans=frozenset({"prompt"}), rate=0.5),)),
    dida.Adaptation(),  # of rows with two copies, whose given text is scored
    medim.JointLoss(),
    through_time.ThroughTime(masked=OBJECTIVES[0], teacher=nullcontext, share=0.5),
    *POLICIES,
]
TOGETHER = masked.Together(objectives=(("text", OBJECTIVES[1], 1.0),))
SOURCES: list[Any] = [masking.Masking(source=lambda step: {}, objective=TOGETHER, mask_id=0, seed=0)]
