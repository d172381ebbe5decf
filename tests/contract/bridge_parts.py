"""Instances of the parts of methods in embedding spaces, bridges and searches; tests/methods has tests of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.corruption import schedules
from unmask.methods import deem, diffusion_link, dinoiser, gill, ladic, query_kontext, sur_adapter, x_streamer
from unmask.models.fake import FakeDenoiser

_SPACE = ladic.Latents(mean=torch.zeros(2), deviation=torch.ones(2), neutral=torch.zeros(2))
_WORDS = ladic.WordLoss(latents=_SPACE, decode=torch.tanh, full_stop=1, special=(0,))
_ONE = torch.zeros(1, 1, 1)


class _Language:
    def states(self, inputs: Tensor) -> Tensor:
        return inputs

    def logits(self, states: Tensor) -> Tensor:
        return states


_LANGUAGE = _Language()
_FEEDBACK = deem.CodeFeedback(generator=FakeDenoiser(), conditioned=lambda model, batch: batch)


PARTS: list[Any] = [
    schedules.Between(low=0.2, high=0.8),
    dinoiser.Power(),
    dinoiser.Geometric(),
    dinoiser.Integrated(),
    dinoiser.Clipped(),
    dinoiser.EmbeddingDiffusion(),
    ladic.CaptionDiffusion(words=_WORDS),
    ladic.Captions(
        states=torch.zeros(1, 2, 2), ids=torch.zeros(1, 2).long(), valid=torch.ones(1, 2), image=torch.zeros(1)
    ),
    ladic.BackAndRefine(confidence=torch.tanh, noise=torch.zeros),
    ladic.Strided(),
    ladic.Drawn(x0=torch.zeros(1, 2, 2), told=(1,), refined=ladic.Refined(t=1, positions=torch.zeros(1, 0).long())),
    sur_adapter.Distilled(denoising=lambda states, batch: states.mean()),
    sur_adapter.Triples(short=_ONE, long=_ONE, vector=_ONE, target=_ONE),
    gill.ThreePasses(language=_LANGUAGE, img=(1,), pad=0),
    gill.Writer(language=_LANGUAGE, img=(1,)),
    gill.Pictured(ids=_ONE[0].long(), length=_ONE[0, 0].long(), features=_ONE[0], target=_ONE),
    gill.Rows(inputs=_ONE, labels=_ONE[0].long(), row=_ONE[0].long(), place=_ONE[0].long()),
    query_kontext.Grid(rows=2, columns=3),
    query_kontext.Conditioned(clean=_ONE, condition=_ONE),
    query_kontext.FlowMatching(),
    *query_kontext.STAGES,
    diffusion_link.Pairs(audio=_ONE[0], text=_ONE[0]),
    diffusion_link.LinkDiffusion(),
    diffusion_link.Regression(),
    deem.Weights(),
    _FEEDBACK,
    deem.WithFeedback(objective=dinoiser.EmbeddingDiffusion(), feedback=_FEEDBACK),
    x_streamer.Pyramid(),
    x_streamer.Lowered(chunk=0, before=1, after=0),
]
