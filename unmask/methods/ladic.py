"""LaDiC: captions by diffusion in the middle layers of a frozen text network, with a step back for uncertain words.

Paper: Wang et al., "LaDiC: Are Diffusion Models Really Inferior to Autoregressive Counterparts for Image-to-Text Generation?", 2024,
arXiv 2404.10763.

Equations: the lower half of a frozen text network maps a caption to states, which are standardised per feature, x0 = (state - m) / d. The
positions that hold no word ([CLS], [SEP], padding) all get one neutral state, that of a full stop, so that the length is implicit. A
denoiser that reads the picture predicts x0 from x_t = sqrt(a_t) x0 + 4 sqrt(1 - a_t) e and its last prediction:

    loss = mean over positions of |x0_hat - x0| + 0.2 cross-entropy of the words decoded from x0_hat by the upper half and a head

Sampling goes from t = 999 in strides of 30; each pass is told t + 5, predicts x0 (guided by 2 with - without the picture) and adds fresh
noise of t - 30. Back and Refine: once, between t = 600 and 300, the least confident third of the positions gets pure noise and t is
999 again.

What changes: the space in which captions are diffused, the objective and the sampler. The discrete counterpart, masking the least
confident tokens again, is a selection that remasks (``methods/remdm.py``).

What it costs: 34 passes of two forwards a caption, 48 passes with Back and Refine.

As released: the neutral state is not standardised, although all others are; Back and Refine is switched off by a constant; the positions
that it keeps have the noise of the earlier time, while the network is told the new one; the choice by minimum Bayes risk, with which the
paper's scores were measured, is absent.

Shapes: B captions · L positions · D width · V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.corruption.gaussian import linear_betas, noised, signal
from unmask.methods.card import Card
from unmask.sampling.gaussian import Net
from unmask.step import Loss

STEPS = 1000
Decode = Callable[[Tensor], Tensor]  # states [.., D] -> logits [.., V]: the upper half of the text network and its head


def betas(steps: int = STEPS) -> Tensor:
    """Linear, behind a 0: time 0 has no noise, and all others stand one place later than usual. Float64 [steps]."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), linear_betas(steps)])[:steps]


def levels(steps: int = STEPS) -> Tensor:
    """The noise level of each time, float64 [steps]."""
    return (1 - signal(betas(steps))).sqrt()


def time_waves(t: Tensor, width: int) -> Tensor:
    """Sinusoids [.., width] of times: sines in even columns, cosines in odd ones."""
    rate = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = t.double()[..., None] * rate.to(t.device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).float()


def wordless(valid_BL: Tensor) -> Tensor:
    """Positions without a word [B, L]: the first, the end mark, and padding. ``valid``: all but padding."""
    inner = valid_BL.roll(-1, 1).bool()
    inner[:, 0] = inner[:, -1] = False
    return ~inner


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Where captions are diffused. ``mean``, ``deviation`` [D]: of the states over a corpus · ``neutral`` [D]: x0 of positions without a
    word, in the release the state of a full stop without standardisation.
    """

    mean: Tensor
    deviation: Tensor
    neutral: Tensor

    def clean(self, states_BLD: Tensor, wordless_BL: Tensor) -> Tensor:
        """x0 of states."""
        x0 = (states_BLD - self.mean) / self.deviation
        return torch.where(wordless_BL[..., None], self.neutral, x0)

    def states(self, x0: Tensor) -> Tensor:
        """The states of a prediction, as the upper half reads them."""
        return x0 * self.deviation + self.mean


def fit(states_ND: Tensor, full_stop_D: Tensor, *, standardised: bool = True) -> Latents:
    """Latents from the states of a corpus. ``standardised``: False leaves the full stop's state as it is, as the release does."""
    mean, deviation = states_ND.mean(0), states_ND.std(0)
    neutral = (full_stop_D - mean) / deviation if standardised else full_stop_D
    return Latents(mean=mean, deviation=deviation, neutral=neutral)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """A batch. ``states`` [B, L, D]: of the lower half · ``ids``, ``valid`` [B, L] · ``image`` [B, ..]: what the denoiser reads."""

    states: Tensor
    ids: Tensor
    valid: Tensor
    image: Tensor


def distance(x_pred: Tensor, x0: Tensor) -> Tensor:
    """The mean length of the errors of all positions, padding included."""
    return (x_pred - x0).norm(dim=-1).mean()


def squared_errors(x_pred: Tensor, x0: Tensor, valid_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors of valid positions and of padding, to be logged."""
    each = (x_pred - x0).square().mean(-1)
    return each[valid_BL.bool()].mean(), each[~valid_BL.bool()].mean()


@dataclass(frozen=True, kw_only=True)
class WordLoss:
    """Cross-entropy of the words that are decoded from a prediction, of all positions; the ids of ``special`` count as ``full_stop``."""

    latents: Latents
    decode: Decode
    full_stop: int
    special: tuple[int, ...]
    weight: float = 0.2

    def __call__(self, x_pred: Tensor, ids_BL: Tensor) -> Tensor:
        logits = self.decode(self.latents.states(x_pred))
        special = torch.isin(ids_BL, torch.tensor(self.special, device=ids_BL.device))
        wanted = torch.where(special, self.full_stop, ids_BL)
        return self.weight * F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


@dataclass(frozen=True, kw_only=True)
class CaptionDiffusion:
    """The objective; the model is (x_t, time [B], last prediction, image) -> x0.

    ``factor``: of the noise in training · ``again``: how often the network reads its own prediction · ``blind``: share of pictures that
    are replaced by zeros, for guidance.
    """

    words: WordLoss
    factor: float = 4.0
    again: float = 0.5
    blind: float = 0.1

    def __call__(self, model: nn.Module, batch: Captions, rng: torch.Generator) -> Loss:
        x0 = self.words.latents.clean(batch.states, wordless(batch.valid))
        t = torch.randint(STEPS, (len(x0),), generator=rng)
        level = levels()[t].to(x0)[:, None, None]
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        x = noised(x0, self.factor * noise, level)
        seen = torch.rand(len(x0), generator=rng) >= self.blind
        image = batch.image * seen.to(batch.image).view(-1, *[1] * (batch.image.dim() - 1))
        before, t = torch.zeros_like(x), t.to(x.device)
        if float(torch.rand((), generator=rng)) < self.again:
            before = model(x, t, before, image).detach()
        x_pred = model(x, t, before, image)
        terms = {"distance": distance(x_pred, x0), "words": self.words(x_pred, batch.ids)}
        count = batch.ids.numel()
        return Loss(
            total=torch.stack(list(terms.values())).sum(),
            terms={name: term.detach() for name, term in terms.items()},
            counts=dict.fromkeys(terms, count),
        )


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A step back: at time ``t`` the ``positions`` [B, n] of each caption, the least confident first, got fresh noise."""

    t: int
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class BackAndRefine:
    """``confidence``: predictions [B, L, D] -> [B, L], as ``confident(latents, decode)`` · ``noise(shape)``: fresh noise · the step back
    is at the first time between ``low`` and ``high``, for one position of ``of``.
    """

    confidence: Callable[[Tensor], Tensor]
    noise: Callable[[torch.Size], Tensor]
    low: int = 300
    high: int = 600
    of: int = 3

    def __call__(self, x: Tensor, x_pred: Tensor, t: int) -> tuple[Tensor, Refined]:
        """x with fresh noise at the least confident positions."""
        count = x.shape[1] // self.of
        places = self.confidence(x_pred).argsort(dim=1, stable=True)[:, :count]
        chosen = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, places, True)
        return torch.where(chosen[..., None], self.noise(x.shape), x), Refined(t=t, positions=places)


def confident(latents: Latents, decode: Decode) -> Callable[[Tensor], Tensor]:
    """The largest probability of a word at each position."""
    return lambda x_pred: decode(latents.states(x_pred)).softmax(-1).amax(-1)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """``x0``: the last prediction · ``told``: the time of every pass · ``refined``: the step back, if there was one."""

    x0: Tensor
    told: tuple[int, ...]
    refined: Refined | None = None

    def ids(self, latents: Latents, decode: Decode) -> Tensor:
        """The most probable word of every position, [B, L]."""
        return decode(latents.states(self.x0)).argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Strided:
    """``stride``: of the times · ``ahead``: how much later a time the network is told."""

    steps: int = STEPS
    stride: int = 30
    ahead: int = 5

    @torch.no_grad()
    def __call__(
        self, net: Net, x: Tensor, noise: Callable[[torch.Size], Tensor], *, refine: BackAndRefine | None = None
    ) -> Drawn:
        """From noise ``x``. ``net(x, time, last prediction) -> x0``: with its guidance · ``noise(shape)``: fresh noise for each move."""
        level, t, x0, told, refined = levels(self.steps).to(x), self.steps - 1, torch.zeros_like(x), list[int](), None
        while t > 0:
            told.append(min(self.steps - 1, t + self.ahead))
            x0 = net(x, torch.tensor(told[-1]), x0)
            if t > self.stride:
                x = noised(x0, noise(x.shape), level[t - self.stride])
            if refine is not None and refined is None and refine.low < t < refine.high:
                x, refined = refine(x, x0, t)
                t = self.steps - 1
            t -= self.stride
        return Drawn(x0=x0, told=tuple(told), refined=refined)


def collapsed(ids: Sequence[int]) -> list[int]:
    """The ids of a caption, each run of equal ones once."""
    return [key for key, _ in groupby(ids)]


def sentence(words: Sequence[str], full_stop: str = ".") -> str:
    """A caption from words: each run of equal ones once, full stops at the ends stripped, and one added."""
    text = " ".join(word for word, _ in groupby(words))
    return text.strip(f" {full_stop}") + full_stop


CARD = Card(
    title="LaDiC: Are Diffusion Models Really Inferior to Autoregressive Counterparts for Image-to-Text Generation?",
    paper="arXiv 2404.10763",
    year=2024,
    changes="space, objective and sampler: captions are diffused in the middle layers of a frozen text network",
    claim="Diffusion captioning reaches autoregressive captioners without large-scale pretraining.",
    status="reference",
    figure="true captions of the small world at 34 passes, 3 networks, 400 updates: .117 [.023, .211], a masked captioner .783 "
    "[.105, 1.462], a difference of -.667 [-1.325, -.008]; Back and Refine at equal passes +.013 [-.015, .042]; words of states at noise "
    ".9: embeddings .708 [.646, .770], middle layer .828 [.805, .851]",
    paper_figure="COCO: BLEU-4 38.2, CIDEr 126.2",
    recipe="ladic.captions",
    python="from unmask.methods.ladic import BackAndRefine, CaptionDiffusion, Latents, Strided, WordLoss",
)
