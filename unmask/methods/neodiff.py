"""NeoDiff: text diffusion in the space of embeddings, in which every token has a noise level of its own.

Paper: Li et al., "Unifying Continuous and Discrete Text Diffusion with Non-simultaneous Diffusion Processes", 2025, arXiv 2505.22165.

Equations: a sentence has an extrinsic time t in 0..1, token i an intrinsic time tau_i in 0..N - 1 (N = 100 states):

    k_i ~ Poisson(lambda(t)),   tau_i = clamp(round((k_i - lambda) / sqrt(lambda) f(t) + lambda), 0, N - 1)
    x_i = sqrt(a) x0_i + sqrt(1 - a) s e_i,   a = abar(tau_i / (N - 1)),   abar(u) = 1 - sqrt(u + 1e-4)

with s = 6.5 in training and 1 in sampling. lambda(t) = mean (N - 1) t, and f(t) = spread (N - 1) min(pace t, 1)^power is the spread
(``Transition``). With tau in {0, N - 1} this is masked diffusion, with tau = (N - 1) t continuous diffusion.

    loss = mean over tokens of |x0_hat - x0|^2 / C + cross-entropy of x0_hat decoded (smoothing .1) + (time of token - label)^2

The label of the token with the j-th smallest loss is the j-th of n reference values: the formula of tau with the quantile of
Poisson(lambda(t)) at (j + 1/2) / n in place of k.

Sampling: from noise at t = 1; each step predicts x0, takes the next t' of a grid, lets the time predictor say each token's tau' at t', and
noises x0_hat to tau'. The grid is tuned by Bayesian optimisation of a score on validation data (``search``).

What changes: corruption, objective, network and sampler; words are vectors, and any number of steps may change them.
What it costs: one forward a step for all tokens; in training a second one in half of the batches (self-conditioning). The search decodes
the validation set once for each evaluation, 240 times in the paper.

In the released code tau is 1, nearly clean, where t > .99, although all noise is meant. ``released=True`` repeats that; otherwise tau
is drawn as for other t. The released length predictor and minimum-Bayes-risk choice are not built: answers end with a token.

Shapes: B rows · T tokens of the answer · S given tokens · C channels of an embedding · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.methods.card import Card
from unmask.step import Loss

Signal = Callable[[Tensor], Tensor]  # noise level u in 0..1 -> share of the signal abar(u)
_LEAST = 1e-8


# -- levels of noise ---------------------------------------------------------------------------------------------------


def linear(u: Tensor) -> Tensor:
    """exp(-9.95 u^2 - .1 u)."""
    return torch.exp(-9.95 * u.square() - 0.1 * u)


def cosine(u: Tensor) -> Tensor:
    """cos^2 of (u + .008) / 1.008 of a quarter turn."""
    return torch.cos((u + 0.008) / 1.008 * math.pi / 2).square().clamp(min=_LEAST)


def root(u: Tensor) -> Tensor:
    """1 - sqrt(u + 1e-4), the one that the paper uses."""
    return (1 - (u + 1e-4).sqrt()).clamp(min=_LEAST)


@dataclass(frozen=True, kw_only=True)
class Karras:
    """1 / (sigma^2 + 1), sigma from ``least`` to ``most`` (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""

    least: float
    most: float
    power: float = 7.0

    def __call__(self, u: Tensor) -> Tensor:
        low, high = self.least ** (1 / self.power), self.most ** (1 / self.power)
        sigma = (high + (1 - u) * (low - high)) ** self.power
        return 1 / (sigma.square() + 1)


EDM, CDCD = Karras(least=0.002, most=80.0), Karras(least=1.0, most=300.0)


def noised(x0: Tensor, noise: Tensor, level: Tensor, signal: Signal = root) -> Tensor:
    """sqrt(a) x0 + sqrt(1 - a) noise with a = signal(level). ``x0``, ``noise``: [B, T, C] · ``level [B, T]``: in 0..1."""
    a = signal(level)[..., None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def mixed(x0: Tensor, noise: Tensor, level: Tensor, signal: Signal = root) -> Tensor:
    """The same without the roots: a x0 + (1 - a) noise."""
    a = signal(level)[..., None]
    return a * x0 + (1 - a) * noise


def time_embedding(time: Tensor, width: int) -> Tensor:
    """[cos, sin] of the times [..] at ``width`` / 2 frequencies from 1 up to below 1000: [.., width]."""
    half = width // 2
    rates = 0.001 ** -(torch.arange(half, device=time.device) / half)
    angle = time[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], -1)


# -- times of tokens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Transition:
    """lambda = ``mean`` * last * t and f = ``spread`` * last * min(``pace`` t, 1)^``power``, where last = N - 1."""

    mean: float = 2.0
    spread: float = 2.0
    power: float = 1.0
    pace: float = 1.0

    def rate(self, t: Tensor, last: int) -> Tensor:
        """lambda, of the shape of ``t``."""
        return self.mean * last * t

    def factor(self, t: Tensor, last: int) -> Tensor:
        """f, of the shape of ``t``."""
        return self.spread * last * (self.pace * t).clamp(max=1.0) ** self.power


TRANSITIONS = {
    "constant": Transition(spread=1 / 3),
    "constant_sqrt": Transition(mean=4.0, spread=1.0, power=0.5),
    "constant_cbrt": Transition(mean=3.0, spread=2 / 3, power=1 / 3),
    "constant_clamp": Transition(spread=1 / 3, pace=2.0),
    "constant_double": Transition(spread=2 / 3),
    "constant_triple": Transition(spread=1.0),
    "constant_same_1": Transition(mean=1.0, spread=1.0),
    "constant_same": Transition(),  # of the released training script
    "constant_same_triple": Transition(mean=3.0, spread=3.0),
    "constant_same_4": Transition(mean=4.0, spread=4.0),
}


class TokenTimes(Protocol):
    """Noise levels of tokens, in 0..1, at the times ``t [B]`` of their sentences. ``draw``: for training, [B, T]."""

    def draw(self, t: Tensor, tokens: int, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class PoissonTimes:
    """The paper's. ``states``: N · ``released``: tau = 1 where t > .99, as the released code has it."""

    transition: Transition = Transition()
    states: int = 100
    released: bool = False

    @property
    def last(self) -> int:
        return self.states - 1

    def of_counts(self, k: Tensor, t: Tensor) -> Tensor:
        """tau of Poisson counts, of their shape. ``t``: broadcast against ``k``."""
        rate = self.transition.rate(t, self.last)
        tau = (k - rate) / (rate.sqrt() + _LEAST) * self.transition.factor(t, self.last) + rate
        return tau.round().clamp(0, self.last)

    def tau(self, k: Tensor, t: Tensor) -> Tensor:
        """tau in training: as ``of_counts``, with the released behaviour at the end."""
        found = self.of_counts(k, t)
        return torch.where(t > 0.99, torch.ones_like(found), found) if self.released else found

    def draw(self, t: Tensor, tokens: int, rng: torch.Generator) -> Tensor:
        t_B1 = t[:, None]
        k_BT = torch.poisson(self.transition.rate(t_B1, self.last).expand(-1, tokens), generator=rng)
        return self.tau(k_BT, t_B1) / self.last

    def labels(self, loss: Tensor, t: Tensor, valid: Tensor, pad: int = -100) -> Tensor:
        """The tau that each token deserves by its loss, long [B, T]: the larger the loss, the later. ``pad``: where not ``valid``."""
        found = torch.full(loss.shape, pad, dtype=torch.long, device=loss.device)
        for row, own in enumerate(valid):
            places = own.nonzero()[:, 0]
            time = t[row].double()
            share = (torch.arange(len(places), device=t.device) + 0.5).double() / max(len(places), 1)
            k = poisson_quantile(share.clamp(max=1.0), self.transition.rate(time, self.last))
            tau = self.of_counts(k.double(), time).long()
            found[row, places[loss[row, places].argsort(stable=True)]] = tau
        return found


def poisson_quantile(share: Tensor, rate: Tensor) -> Tensor:
    """The smallest k with P(Poisson(rate) <= k) >= share. ``share [n]``, float64 below 1; ``rate``: one number."""
    most = int(rate + 12 * rate.sqrt() + 40)
    k = torch.arange(most + 1, dtype=torch.float64, device=share.device)
    below = torch.special.gammaincc(k + 1, rate.double().expand_as(k)).contiguous()
    return torch.searchsorted(below, share.contiguous()).clamp(max=most)


@dataclass(frozen=True, kw_only=True)
class Simultaneous:
    """One level for all tokens of a sentence: continuous diffusion."""

    def draw(self, t: Tensor, tokens: int, rng: torch.Generator) -> Tensor:
        return t[:, None].expand(-1, tokens)


@dataclass(frozen=True, kw_only=True)
class AllOrNothing:
    """A token is all noise with probability t, else clean: masked diffusion."""

    def draw(self, t: Tensor, tokens: int, rng: torch.Generator) -> Tensor:
        return (torch.rand(len(t), tokens, generator=rng) < t[:, None]).float()


# -- training ----------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """``given [B, S]``, ``answer [B, T]``: ids; ``valid [B, T]`` bool: the tokens of the answer that count."""

    given: Tensor
    answer: Tensor
    valid: Tensor


class TextNet(Protocol):
    """``embedded``: clean vectors of ids [B, T] · a call predicts x0 from the given ids, x, levels and an earlier prediction ·
    ``logits``: words of vectors · ``times``: predicted levels of the tokens, [B, T] real, at the sentences' times [B].
    """

    def embedded(self, ids: Tensor) -> Tensor: ...
    def __call__(self, given: Tensor, x: Tensor, level: Tensor, before: Tensor) -> Tensor: ...
    def logits(self, x: Tensor) -> Tensor: ...
    def times(self, x: Tensor, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class NeoLoss:
    """``times``: levels of the tokens · ``labels``: of the time predictor, None for none · ``noise``: factor of the noise ·
    ``smoothing``: of the cross-entropy · ``reread``: probability of self-conditioning.
    """

    times: TokenTimes = PoissonTimes()
    labels: PoissonTimes | None = PoissonTimes()
    signal: Signal = root
    noise: float = 6.5
    smoothing: float = 0.1
    reread: float = 0.5

    def __call__(self, net: TextNet, batch: Pairs, rng: torch.Generator) -> Loss:
        rows, tokens = batch.answer.shape
        # 1. A time for each sentence, a level for each token.
        t_B = (torch.rand(rows, generator=rng) + torch.arange(rows)) / rows
        level_BT = self.times.draw(t_B, tokens, rng)
        x0 = net.embedded(batch.answer)
        x = noised(x0, self.noise * torch.randn(x0.shape, generator=rng), level_BT, self.signal)
        # 2. The prediction, in half of the batches from an earlier one.
        before = torch.zeros_like(x0)
        if float(torch.rand((), generator=rng)) < self.reread:
            with torch.no_grad():
                before = net(batch.given, x, level_BT, before)
        found = net(batch.given, x, level_BT, before)
        # 3. Distance, words, and the time that each token deserves.
        distance_BT = (found - x0).square().mean(-1)
        words_BT = F.cross_entropy(
            net.logits(found).transpose(1, 2), batch.answer, reduction="none", label_smoothing=self.smoothing
        )
        parts = {"distance": distance_BT, "words": words_BT}
        if self.labels is not None:
            label_BT = self.labels.labels((distance_BT + words_BT).detach(), t_B, batch.valid, pad=0)
            guess_BT = net.times(found.detach(), t_B)
            parts["times"] = (guess_BT - label_BT / self.labels.last).square()
        means = {name: part[batch.valid].mean() for name, part in parts.items()}
        total = torch.stack(list(means.values())).sum()
        return Loss(total=total, terms=means, counts=dict.fromkeys(means, int(batch.valid.sum())))


# -- sampling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """``times``: the times between 1 and 0, in any order; a run has one step more than there are times."""

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(not 0 <= time <= 1 for time in self.times):
            raise ValueError(f"times of a grid lie in 0..1, got {self.times}")

    @property
    def steps(self) -> int:
        return len(self.times) + 1

    def after(self, remaining: int) -> float:
        """The time after which ``remaining`` steps are left, 0 for none."""
        return sorted(self.times)[remaining - 1] if remaining else 0.0

    @staticmethod
    def even(steps: int) -> TimeGrid:
        """t - 1 / steps at each step."""
        if steps < 1:
            raise ValueError(f"a grid has at least 1 step, got {steps}")
        return TimeGrid(times=tuple(i / steps for i in range(1, steps)))


class NextLevels(Protocol):
    """(net, x0_hat [B, T, C], t [B] old, t [B] new) -> the tokens' levels at the new time, [B, T]."""

    def __call__(self, net: TextNet, x0: Tensor, old: Tensor, new: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """By the time predictor."""

    def __call__(self, net: TextNet, x0: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return net.times(x0, new).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Alike:
    """The new time for all tokens."""

    def __call__(self, net: TextNet, x0: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return new[:, None].expand(x0.shape[:2])


@dataclass(frozen=True, kw_only=True)
class ByConfidence:
    """The reference values, the surest token first, at the *old* time ("cmlm" in the released code)."""

    times: PoissonTimes = PoissonTimes()

    def __call__(self, net: TextNet, x0: Tensor, old: Tensor, new: Tensor) -> Tensor:
        sure_BT = confidence(net, x0)
        return self.of_confidence(sure_BT, old, torch.ones_like(sure_BT, dtype=torch.bool)) / self.times.last

    def of_confidence(self, confidence: Tensor, t: Tensor, valid: Tensor) -> Tensor:
        """tau [B, T], 0 where not valid."""
        return self.times.labels(-confidence, t, valid, pad=0)


@dataclass(frozen=True, kw_only=True)
class LeastSure:
    """All noise for the share t' of tokens that are least sure, none for the others: masked diffusion."""

    def __call__(self, net: TextNet, x0: Tensor, old: Tensor, new: Tensor) -> Tensor:
        rank_BT = confidence(net, x0).argsort(1).argsort(1)
        return (rank_BT < (new * x0.shape[1]).round()[:, None]).float()


def confidence(net: TextNet, x0: Tensor) -> Tensor:
    """The probability of each token's likeliest word, [B, T]."""
    return net.logits(x0).softmax(-1).amax(-1)


@torch.no_grad()
def sample(
    net: TextNet,
    given: Tensor,
    noises: Callable[[int], Tensor],
    *,
    grid: TimeGrid,
    levels: NextLevels = Predicted(),
    signal: Signal = root,
) -> Tensor:
    """Words [B, T] for the given ids [B, S]. ``noises(step)``: normal noise [B, T, C] of a step, 0 for the start."""
    x, t_B = noises(0), torch.ones(len(given))
    before, level_BT = torch.zeros_like(x), torch.ones(x.shape[:2])
    for step in range(grid.steps):
        before = net(given, x, level_BT, before)
        new_B = torch.full_like(t_B, grid.after(grid.steps - 1 - step))
        if step + 1 < grid.steps:
            level_BT = levels(net, before, t_B, new_B)
            x = noised(before, noises(step + 1), level_BT, signal)
        t_B = new_B
    return net.logits(before).argmax(-1)


CARD = Card(
    title="Unifying Continuous and Discrete Text Diffusion with Non-simultaneous Diffusion Processes",
    paper="arXiv 2505.22165",
    year=2025,
    changes="corruption, objective and sampler: words as vectors, with a noise level of its own for every token",
    claim="A noise level for each token, learned, and a searched grid of times beat continuous and masked text diffusion.",
    status="reference",
    figure="true captions, 3 networks, 2,000 updates: a level for each token .045 [.033, .057] in 5 steps and .073 [-.007, .153] in "
    "20, one level .068 and .055, all or nothing .112 and .397 [.314, .479]; times searched with 6,100 decoded captions change "
    "5 steps by +.030 [-.015, .075], with all or nothing by +.215 [-.018, .448]",
    recipe="neodiff.texts",
)
