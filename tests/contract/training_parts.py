"""Instances of the parts that train the published families, for the contract suites."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from unmask.corruption import absorbing, counted, schedules
from unmask.objectives import importance, masked, masking, next_token, through_time

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
# Batches by task, and an objective without random numbers.
OTHER_OBJECTIVES: list[Any] = [
    masked.Pooled(objectives=(("text", OBJECTIVES[0]),)),
    next_token.NextToken(),
    through_time.ThroughTime(masked=OBJECTIVES[0], teacher=contextlib.nullcontext, share=0.5),
]
TOGETHER = masked.Together(objectives=(("text", OBJECTIVES[1], 1.0),))
SOURCES: list[Any] = [masking.Masking(source=lambda step: {}, objective=TOGETHER, mask_id=0, seed=0)]
