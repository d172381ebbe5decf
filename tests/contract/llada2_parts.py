"""Instances of the parts of LLaDA2 that no suite here runs; tests/pipeline/test_llada2_uni.py has tests of them."""

from __future__ import annotations

from typing import Any

import torch

from unmask.sampling.block_diffusion import Blocks, Candidates, Counted, Editing, Finished
from unmask.sampling.rescaled import HeadDeviation, Rescaled
from unmask.sampling.sprint import Adaptive, Keep

PARTS: list[Any] = [
    Blocks(block=4, steps=2, mask_id=0, reveal=Counted(threshold=0.9)),
    Blocks(block=4, steps=2, mask_id=0, reveal=Adaptive(threshold=0.9)),
    Editing(block=4, mask_id=0),
    Candidates(ids=torch.zeros(1), rank=torch.zeros(1), probability=torch.zeros(1)),
    Finished(ids=torch.zeros(1), order=torch.zeros(1), steps=1),
    Keep(first_code=8),
    Rescaled(scale=2.0, instead=(("null", frozenset({"prompt"})),), deviation=HeadDeviation(head=torch.nn.Identity())),
]
