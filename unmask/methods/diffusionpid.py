"""DiffusionPID: what each of two words of a prompt tells about a picture, what both tell, and what only the pair tells.

Paper: Rampal et al., "DiffusionPID: Interpreting Diffusion via Partial Information Decomposition", 2024, arXiv 2406.05191. The estimators
are those of Information-Theoretic Diffusion (Kong, Brekelmans and Ver Steeg 2023, arXiv 2302.03792; 2024, arXiv 2310.07972).

Equations: for continuous diffusion, z = sqrt(sigmoid(a)) x + sqrt(sigmoid(-a)) e at log-SNR a drawn with density 1 / weight(a):

    -ln p(x | y) + constant = 1/2 E[ weight (|e - e_hat(z | y)|^2 - D sigmoid(a)) ]
    i(x; y) = 1/2 E[ weight (|e - e_hat(z)|^2 - |e - e_hat(z | y)|^2) ]                                    (standard)
    i_o(x; y) = 1/2 E[ weight |e_hat(z) - e_hat(z | y)|^2 ]                                               ("orthogonal")

    r = min h_k - min (h_k - i_k),  h_k = -ln p(word k)   (as published; with equal priors max(i1, i2))
    u_k = i_k - r,  s = i12 - i1 - i2 + r

What changes: nothing in a model. For masked models ``analysis/information.py`` has the exact form per token (arXiv 2510.24088) and takes
r = min(i1, i2) per token, which gives the intended labels in the four worlds of the tests; the published r does not.

What it costs: four prompts times the number of masks in forward passes.

Not used: the "orthogonal" form is not pointwise information. It is right on average over x ~ p(x | y) only, and has the wrong sign for a
picture and a word that do not belong together. A uniform density of levels has weight 2 c scale; the released code divides by it.

Shapes: N levels · D numbers of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.methods.card import Card


@dataclass(frozen=True, kw_only=True)
class LogisticLevels:
    """Log-SNR levels from a logistic distribution, cut off at ``clip`` scales from ``loc``. Both methods take and return [N]."""

    loc: float = 1.0
    scale: float = 2.0
    clip: float = 4.0

    def levels(self, u: Tensor) -> Tensor:
        """Levels for numbers in 0..1."""
        low, high = (1 / (1 + math.exp(side * self.clip)) for side in (1, -1))
        return self.loc + self.scale * torch.logit(low + (high - low) * u.double())

    def weight(self, level: Tensor) -> Tensor:
        """1 / density of each level."""
        z = (level.double() - self.loc) / self.scale
        return self.scale * math.tanh(self.clip / 2) / (torch.sigmoid(z) * torch.sigmoid(-z))


@dataclass(frozen=True, kw_only=True)
class UniformLevels:
    """Log-SNR levels spread evenly over ``loc`` - clip scale .. ``loc`` + clip scale. ``released``: the inverted weight of the release."""

    loc: float = 1.0
    scale: float = 2.0
    clip: float = 3.0
    released: bool = False

    def levels(self, u: Tensor) -> Tensor:
        return self.loc + self.clip * self.scale * (2 * u.double() - 1)

    def weight(self, level: Tensor) -> Tensor:
        width = 2 * self.clip * self.scale
        return torch.full_like(level, 1 / width if self.released else width, dtype=torch.float64)


def noised(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """z [N, D] for a picture [D], noise [N, D] and levels [N]."""
    a = level.double()[:, None]
    return torch.sigmoid(a).sqrt() * x.double() + torch.sigmoid(-a).sqrt() * noise.double()


def squared_error(predicted: Tensor, noise: Tensor) -> Tensor:
    """|e - e_hat|^2 [N], summed over D. With two predictions: the square of their difference."""
    return (predicted.double() - noise.double()).square().sum(-1)


def negative_log_likelihood(error: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    """-ln p as the released code has it: right up to a constant that is the same for all conditions, as its first term counts one
    dimension and its second the sum over D.
    """
    return 0.5 * math.log(2 * math.pi * math.e) + 0.5 * (weight * (error - torch.sigmoid(level.double()))).mean(-1)


def pointwise_information(error_without: Tensor, error_with: Tensor, weight: Tensor) -> Tensor:
    """i(x; y), the standard form: of squared errors [N] without and with the condition."""
    return 0.5 * (weight * (error_without - error_with)).mean(-1)


def orthogonal_information(difference: Tensor, weight: Tensor) -> Tensor:
    """i_o, of squared differences [N] of two predictions. For an average over many pictures of their own words only."""
    return 0.5 * (weight * difference).mean(-1)


def published_redundancy(i1: Tensor, i2: Tensor, h1: Tensor, h2: Tensor) -> Tensor:
    """r of the paper; ``h``: minus the log-probability of each word."""
    return torch.minimum(h1, h2) - torch.minimum(h1 - i1, h2 - i2)


CARD = Card(
    title="DiffusionPID: Interpreting Diffusion via Partial Information Decomposition",
    paper="arXiv 2406.05191",
    year=2024,
    changes="analysis: the information of two words about each token, split into redundant, unique and synergistic parts",
    claim="Redundant, unique and synergistic maps of word pairs show how a model reads a prompt.",
    status="tiny-checked",
    figure="four worlds of two words and two tokens, 3 networks each: all parts within .017 nats of enumeration (mean largest error same "
    ".007, halves .0001, xor .002, irrelevant .001; ln 2 = .693). The published redundancy names other parts than are meant in two worlds, "
    "by enumeration too",
    recipe="diffusionpid.world",
)
