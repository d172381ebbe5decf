"""Instances of the parts of methods that no suite here runs; tests/methods has tests of each."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from unmask.methods import ctrldiff, diffusionpid, edlm, inpo, neodiff, qdlm, recurrent_depth, reflectdrive
from unmask.models.fake import FakeDenoiser
from unmask.models.waves import Judged
from unmask.objectives import contrastive
from unmask.sequence import Batch


def _mean(batch: Batch, ids: Tensor) -> Tensor:
    return ids.float().mean(1)


PARTS: list[Any] = [
    *qdlm.methods(4, 8).values(),
    edlm.CausalEnergy(net=FakeDenoiser()),
    edlm.LearnedEnergy(net=_mean),
    edlm.Ancestral(mu=torch.log, energies=lambda x, candidates, mu: mu.sum((1, 2)), mask_id=0),
    *(
        ctrldiff.Classified(classifier=torch.log, gamma=1.0, mask_id=0, size=2, ratios=ratios)
        for ratios in (ctrldiff.Exact(), ctrldiff.Taylor())
    ),
    contrastive.NoiseContrastive(denoiser=FakeDenoiser()),
    diffusionpid.LogisticLevels(),
    diffusionpid.UniformLevels(),
    reflectdrive.CoordinateCodebook(low=0.0, step=1.0, bins=8),
    reflectdrive.ChainPlanner(size=8, alpha=0.5, start=(0, 0), velocity=(1, 1)),
    reflectdrive.Repair(
        size=8, clearance=reflectdrive.Discs(discs=torch.tensor([[4.0, 4.0, 1.0]])), start=(0, 0), velocity=(1, 1)
    ),
    reflectdrive.Round(plan=torch.zeros(2, 2, dtype=torch.long)),
    inpo.LatentPreference(),  # with its Inversion
    inpo.UniformMasks(),
    inpo.Backward(),
    inpo.MaskedPreference(reference=nullcontext, states=inpo.Replay(each=2)),
    neodiff.EDM,
    neodiff.Simultaneous(),
    neodiff.AllOrNothing(),
    neodiff.NeoLoss(),  # with its Transition and PoissonTimes
    neodiff.TimeGrid.even(2),
    neodiff.Predicted(),
    neodiff.Alike(),
    neodiff.ByConfidence(),
    neodiff.LeastSure(),
    recurrent_depth.InWaves(passes=1, window=8, momentum=0.0, eps=0.1),
    recurrent_depth.Wavefront(),
    recurrent_depth.Round(start=0, headway=1, judged=Judged(keep=None), wave=None),  # type: ignore[arg-type]
]
