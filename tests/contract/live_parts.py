"""Instances of what changes a run while it runs; tests/tasks/test_live.py has tests of them."""

from __future__ import annotations

from typing import Any

import torch

from unmask.sampling.live import LiveSampler, Patch
from unmask.sampling.schedule import Cosine, Rest
from unmask.sequence import Sequence
from unmask.tasks.live import Live

from .instances import SAMPLERS

_ROW = Sequence(ids=torch.zeros(0, dtype=torch.long), masked=torch.zeros(0, dtype=torch.bool), spans=())

PARTS: list[Any] = [
    Rest(schedule=Cosine(steps=4), total=16),
    Patch(sequence=_ROW),
    LiveSampler.of(SAMPLERS[0], Live(), _ROW),
]
