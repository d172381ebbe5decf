"""Values of the methods that bring continuous tokens or modalities of their own."""

from __future__ import annotations

from typing import Any

import torch

from unmask.methods import ccdd

_NOISE = ccdd.TokenNoise(size=4)

PARTS: list[Any] = [
    ccdd.Joint(logits=torch.zeros(1, 2, 4), latents=torch.zeros(1, 2, 3)),
    ccdd.JointLoss(noise=_NOISE),
    ccdd.JointSampler(noise=_NOISE, times=ccdd.even_times(2), token_step=_NOISE.posterior),
    ccdd.Latents(encode=torch.Tensor.float, channels=3),
]
