"""Values of the methods that bring continuous tokens or modalities of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.corruption import gaussian
from unmask.methods import ccdd, diffa, dplm2, mmar, unigenx, x_streamer
from unmask.objectives.answers import AnswerLoss
from unmask.objectives.diffusion import DiffusionLoss, VectorLoss
from unmask.sampling.continuous import ByDiffusion, GuidedHidden
from unmask.sampling.solver import Solver

_PAIRS = dplm2.Pairs(structure=dplm2.structure(4))
_TIMES = dplm2.Times(structure=torch.ones(1), letters=torch.ones(1), alone=torch.zeros(1).bool())
_IDS = torch.zeros(1, 4).long()
_NOISE = ccdd.TokenNoise(size=4)
_LEVELS = gaussian.cosine(20)
_LOSS = DiffusionLoss(levels=_LEVELS, target=gaussian.VELOCITY)


def _blank_head(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _no_rows(*given: Any, **more: Any) -> Any:
    raise AssertionError("no rows are asked for")


PARTS: list[Any] = [
    ccdd.Joint(logits=torch.zeros(1, 2, 4), latents=torch.zeros(1, 2, 3)),
    ccdd.JointLoss(noise=_NOISE),
    ccdd.JointSampler(noise=_NOISE, times=ccdd.even_times(2), token_step=_NOISE.posterior),
    ccdd.Latents(encode=Tensor.float, channels=3),
    gaussian.SAMPLE,
    _LOSS,
    VectorLoss(error=torch.zeros(2), bound=torch.zeros(2)),
    ByDiffusion(kind=9, channels=2, head=_blank_head, levels=_LEVELS),
    GuidedHidden(drop=frozenset({"prompt"}), null_id=0),
    Solver(levels=_LEVELS, steps=4),
    mmar.ContinuousTokens(kind=9, loss=_LOSS),
    mmar.GrowingScale(scale=3.0, tokens=4),
    unigenx.MixedLoss(vectors=_LOSS),
    unigenx.Stream(ids=torch.zeros(1, 2).long(), is_vector=torch.tensor([[False, True]]), vectors=torch.zeros(1, 3)),
    dplm2.PairLoss(pairs=_PAIRS),
    dplm2.Corrupted(ids=_IDS, clean=_IDS, hidden=_IDS.bool(), times=_TIMES),
    dplm2.Remasking(pairs=_PAIRS, steps=4, strategy=dplm2.Annealed()),
    dplm2.GumbelArgmax(),
    AnswerLoss(),
    diffa.HearingLoss(),
    diffa.STAGE_1,
    x_streamer.Streamer(net=_no_rows, rows=_no_rows, open=torch.ones(2).bool()),
    diffa.AboutSounds(rows=(), at=(), mel=torch.zeros(0, 8, 4), frames=torch.zeros(0).long()),
]
