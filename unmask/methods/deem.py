"""DEEM: a frozen generator tells the vision encoder, through its denoising loss, what its features leave out.

Paper: Luo et al., "DEEM: Diffusion Models Serve as the Eyes of Large Language Models for Image Perception", 2024, arXiv 2405.15232.

Equations: the encoder's tokens c of a picture are the only condition under which a frozen generator denoises the same picture:

    feedback = |net(x_t, t, c) - e|^2        t <- round(0.6 (t - 500) + 500), so t in 200..799
    loss = text + 5 picture + 5 feedback

Its gradient passes through the generator and ends in the encoder. The picture term is the same loss for a picture in a document, with
conditions from the text before it, replaced by learned ones in one of ten pictures. With a region mask, the feedback is the mean over
the region of each picture, averaged.

What changes: the objective; nothing of the model in use. For masked pictures the feedback is the cross-entropy of masked codes at times
0.2..0.8 (``CodeFeedback``), with the encoder's features as FEATURE tokens.

What it costs: a forward and a backward of the generator for each picture of an update.

The release normalises the picture in place, so that the picture term trains on a wrong picture; nothing here changes its inputs.

Shapes: B pictures · C, h, w channels, rows, columns of latents · N condition tokens · W their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.gaussian import noised, scaled_linear_betas, std_of
from unmask.corruption.schedules import Between
from unmask.methods.card import Card
from unmask.objectives.masked import Masked, MaskedModel
from unmask.protocols import Objective
from unmask.sequence import Batch
from unmask.step import Loss

STEPS = 1000
Generator = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B, C, h, w], t [B], conditions [B, N, W]) -> the noise


def compressed(t: Tensor, *, share: float = 0.6, steps: int = STEPS) -> Tensor:
    """Times drawn evenly, moved towards the middle; halves are rounded to even."""
    middle = steps // 2
    return ((t - middle).double() * share + middle).round().long()


def levels(steps: int = STEPS) -> Tensor:
    """The generator's noise level at each time, float64 [steps]."""
    return std_of(scaled_linear_betas(steps))


def errors(generator: Generator, latents: Tensor, conditions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The squared errors of the predicted noise, [B, C, h, w]."""
    x = noised(latents, noise, levels()[t.cpu()].to(latents)[:, None, None, None])
    return (generator(x, t, conditions) - noise).square()


def over_region(each: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over a region of every picture, averaged. ``mask [B, 1, h, w]``: 1 inside; None: everything."""
    if mask is None:
        return each.mean()
    inside = mask.to(each)
    return (each * inside * (mask[0].numel() / (inside.sum((1, 2, 3), keepdim=True) + 1e-8))).mean()


def replaced(conditions: Tensor, learned: Tensor, u: Tensor, rate: float = 0.1) -> Tensor:
    """The conditions, or the learned ones [1, N, W] where a picture's ``u [B, 1, 1]`` is below the rate."""
    return torch.where(u < rate, learned, conditions)


def picture_loss(each: Tensor, context_B: Tensor, least: int = 2) -> Tensor:
    """The mean over all pictures, in which those with at most ``least`` tokens of context count as 0."""
    return (each * (context_B > least).to(each)[:, None, None, None]).mean()


@contextmanager
def frozen(module: MaskedModel | nn.Module) -> Iterator[None]:
    """Its parameters get no gradient as long as the context lasts, but gradients pass through to its inputs."""
    before = [parameter.requires_grad for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(wanted)


class Rows(Protocol):
    """A batch of any kind."""

    @property
    def rows(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Rows)


@dataclass(frozen=True, kw_only=True)
class CodeFeedback(Generic[BatchT]):
    """For masked pictures: the loss of a frozen denoiser that reads the features of the model in training.

    ``generator``: frozen · ``conditioned(model, batch)``: the batch with the model's features as FEATURE tokens · ``masked``: how pictures
    are masked, at times in 0.2..0.8.
    """

    generator: MaskedModel
    conditioned: Callable[[nn.Module, BatchT], Batch]
    masked: Masked = Masked(corruption=Absorbing(otherwise=Between(low=0.2, high=0.8)))

    def __call__(self, model: nn.Module, batch: BatchT, rng: torch.Generator) -> Tensor:
        with frozen(self.generator):
            loss = self.masked(self.generator, self.conditioned(model, batch), rng)
            if isinstance(loss, Iterator):
                raise ValueError("the feedback is one loss; use a Masked that yields one")
            return loss.total


@dataclass(frozen=True, kw_only=True)
class WithFeedback(Generic[BatchT]):
    """An objective plus ``weight`` times a feedback ``(model, batch, rng) -> loss``. Weight 0 is the objective alone."""

    objective: Objective[nn.Module, BatchT]
    feedback: Callable[[nn.Module, BatchT, torch.Generator], Tensor]
    weight: float = 5.0

    def __call__(self, model: nn.Module, batch: BatchT, rng: torch.Generator) -> Loss:
        loss = self.objective(model, batch, rng)
        if isinstance(loss, Iterator):
            raise ValueError("feedback is added to an objective with one loss for a batch; this one yields several")
        if not self.weight:
            return loss
        feedback = self.feedback(model, batch, rng)
        terms = {**loss.terms, "feedback": feedback.detach()}
        counts = {**loss.counts, "feedback": batch.rows}
        return Loss(total=loss.total + self.weight * feedback, terms=terms, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the three terms."""

    feedback: float = 5.0
    text: float = 1.0
    picture: float = 5.0

    def __call__(self, feedback: Tensor, text: Tensor, picture: Tensor) -> Tensor:
        return self.feedback * feedback + self.text * text + self.picture * picture


CARD = Card(
    title="DEEM: Diffusion Models Serve as the Eyes of Large Language Models for Image Perception",
    paper="arXiv 2405.15232",
    year=2024,
    changes="objective: a frozen generator's denoising loss, given the vision encoder's tokens, trains the encoder",
    claim="Feedback of a generator makes an encoder keep orientation, count and detail.",
    status="reference",
    figure="answers about pictures with distractors, 3 seeds, 250 updates: feedback at times .8 to 1 changes them by .111 [.094, .128] "
    "over classes alone and by .069 [-.034, .173] over the feedback of a random generator; at the paper's times by .071 [.008, "
    ".133]; the probe of places falls by .053 [.030, .076]",
    paper_figure="Pre-training only, without and with feedback: POPE 50.55 to 69.93, MMVP 20.30 to 28.74",
    recipe="deem.eyes",
    python="from unmask.methods.deem import CodeFeedback, WithFeedback, compressed, errors",
)
