"""InPO: preference training at states from which the model itself would make each of two answers.

Paper: Lu et al., "InPO: Inversion Preference Optimization with Reparametrized DDIM for Efficient Diffusion Model Alignment", 2025,
arXiv 2503.18454.

Equations: for a network that predicts noise, a pair is a winner x_w and a loser x_l of one prompt, with one time t for both. Each is
inverted by DDIM from its clean latents up a coarse grid of levels until one is at or above t, with the network being trained and without
gradient:

    x_s = sqrt(a_s) (x_t - sqrt(1 - a_t) e) / sqrt(a_t) + sqrt(1 - a_s) e + eta sigma z,   sigma^2 = (1 - a_t) / (1 - a_s) (1 - a_s / a_t)

The target is the noise that the latents contain by then, (x - sqrt(a_t) x_0) / sqrt(1 - a_t). With m and r the mean squared errors of the
network and of a frozen reference to it,

    loss = -ln sigmoid(-beta / 2 [(m_w - m_l) - (r_w - r_l)])

With plain noise, shared by both, in place of the inversion this is Diffusion-DPO (arXiv 2311.12908).

Port to masked models (not in the paper): a state is a set of masked tokens, and -m becomes the bound L / n sum ln p over the n masked
tokens of L. ``Replay`` fills the true tokens in the order in which the model is surest of them and stops with n masked; ``Backward``
masks, from the clean answer, the tokens of which it is least sure, which needs logits of visible tokens that masked models do not train;
``UniformMasks`` are those of DPO (VRPO of arXiv 2505.19223). Masks that the model chooses make the bound a surrogate.

What changes: the objective. What it costs: up to 10 forward passes before each update for the inversion; L - n for ``Replay`` with one
token at a time, fewer with several; and a forward pass of the reference.

The grid of the released code starts at -99: a first step from the clean latents to level 1. x ends at or above t, but at 901 where t is
larger. The noise takes a at t itself, so the distance between the two levels goes into it, most of it at small t. The released code
inverts a batch with the time of its first pair; here every pair has its own.

Shapes: B rows · L tokens · P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.corruption.signal import scaled_linear
from unmask.methods.card import Card
from unmask.objectives.distillation import Teacher
from unmask.objectives.masked import MaskedModel
from unmask.posttraining.likelihoods import log_probabilities
from unmask.protocols import Denoiser
from unmask.sequence import Batch
from unmask.step import Loss

Noise = Callable[[int], Tensor]  # number of a step -> normal noise of the latents' shape
NoiseNet = Callable[[Tensor, int], Tensor]  # (latents, time) -> the noise in them; the prompt is the network's own


# -- the loss ----------------------------------------------------------------------------------------------------------


def preference(inside: Tensor) -> Tensor:
    """-ln sigmoid(inside), of each pair: ln 2 where the network does not differ from its reference."""
    return -F.logsigmoid(inside)


def from_errors(model: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The inside of the loss from squared errors [.., 2] of winner and loser: [..]."""
    difference = (model[..., 0] - model[..., 1]) - (reference[..., 0] - reference[..., 1])
    return -0.5 * beta * difference


def from_bounds(model: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The same from bounds of ln p [.., 2], in nats."""
    return beta * ((model[..., 0] - reference[..., 0]) - (model[..., 1] - reference[..., 1]))


# -- continuous latents ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """``signal``: abar of every level · ``steps``: of the grid · ``eta``: noise of a step · ``offset``: added to the grid's levels."""

    signal: Tensor = field(default_factory=scaled_linear)
    steps: int = 10
    eta: float = 0.1
    offset: int = 1

    @property
    def stride(self) -> int:
        return len(self.signal) // self.steps

    def grid(self) -> list[int]:
        """The times at which steps are taken: each goes up one stride, the first one from below level 0, the clean latents."""
        return [self.stride * (i - 1) + self.offset for i in range(self.steps)]

    def times(self, t: int) -> list[int]:
        """The steps that lead to ``t`` or above, at least one."""
        return [at for at in self.grid() if at < t] or self.grid()[:1]

    def last_level(self, t: int) -> int:
        """The level at which an inversion to ``t`` ends."""
        return self.times(t)[-1] + self.stride

    @torch.no_grad()
    def __call__(self, net: NoiseNet, clean: Tensor, t: int, noise: Noise) -> Tensor:
        """The latents of ``clean`` at ``last_level(t)``."""
        x = clean
        for number, at in enumerate(self.times(t)):
            a, b = self._signal(at), self._signal(at + self.stride)
            e = net(x, at)
            x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
            sigma = ((1 - a) / (1 - b) * (1 - b / a)).sqrt()
            x = x + self.eta * sigma * noise(number)
        return x

    def implied(self, x: Tensor, clean: Tensor, t: int) -> Tensor:
        """The noise that ``x`` contains if it is at level ``t``."""
        a = self._signal(t)
        return (x - a.sqrt() * clean) / (1 - a).sqrt()

    def _signal(self, level: int) -> Tensor:
        return self.signal[max(level, 0)]


def errors(net: NoiseNet, x: Tensor, t: int, noise: Tensor) -> Tensor:
    """The mean squared error of each row of latents, [B]."""
    return (net(x, t) - noise).square().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class LatentPreference:
    """The loss of a pair of latents. ``inversion``: None for Diffusion-DPO · ``signal``: abar of every level."""

    beta: float = 5000.0
    inversion: Inversion | None = field(default_factory=Inversion)
    signal: Tensor = field(default_factory=scaled_linear)

    def state(self, net: NoiseNet, clean: Tensor, t: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Noisy latents and the noise in them. ``clean``: winner and loser, [2, ..]. Without inversion both get ``noise(0)``."""
        if self.inversion is None:
            a, e = self.signal[t], noise(0).expand_as(clean)
            return a.sqrt() * clean + (1 - a).sqrt() * e, e
        x = self.inversion(net, clean, t, noise)
        return x, self.inversion.implied(x, clean, t)

    def inside(self, net: NoiseNet, reference: NoiseNet, clean: Tensor, t: int, noise: Noise) -> Tensor:
        """The inside of the loss, with a gradient for ``net``."""
        x, target = self.state(net, clean, t, noise)
        with torch.no_grad():
            before = errors(reference, x, t, target)
        return from_errors(errors(net, x, t, target), before, self.beta)


# -- masked tokens -----------------------------------------------------------------------------------------------------


class PreferencePairs(NamedTuple):
    """Answers with their true ids in ``ids``: row i of ``winners`` is better than row i of ``losers``, for the same prompt."""

    winners: Batch
    losers: Batch


class States(Protocol):
    """(model, clean winners or losers, masked tokens of each row [B], random numbers) -> the tokens to mask, [B, L] bool. Winners and
    losers get generators with the same state.
    """

    def __call__(self, model: Denoiser, clean: Batch, counts: Tensor, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class UniformMasks:
    """Tokens at random places: the same in winner and loser where their answers have the same places."""

    def __call__(self, model: Denoiser, clean: Batch, counts: Tensor, rng: torch.Generator) -> Tensor:
        u = torch.rand(clean.ids.shape, generator=rng).to(clean.device)
        return _largest(u, _open(clean), counts)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """All masked, then the true tokens filled in, the most probable first. ``each``: tokens a forward pass."""

    each: int = 1

    def __post_init__(self) -> None:
        if self.each < 1:
            raise ValueError(f"a pass must fill at least 1 token, got {self.each}")

    @torch.no_grad()
    def __call__(self, model: Denoiser, clean: Batch, counts: Tensor, rng: torch.Generator) -> Tensor:
        masked = _open(clean)
        while bool((left := masked.sum(1) - counts).gt(0).any()):
            sure = log_probabilities(model, _at(clean, masked))
            masked = masked & ~_largest(sure, masked, left.clamp(0, self.each))
        return masked


@dataclass(frozen=True, kw_only=True)
class Backward:
    """The clean answer, of which the least probable tokens are masked. ``each``: tokens a forward pass."""

    each: int = 1

    @torch.no_grad()
    def __call__(self, model: Denoiser, clean: Batch, counts: Tensor, rng: torch.Generator) -> Tensor:
        masked = torch.zeros_like(clean.masked)
        while bool((left := counts - masked.sum(1)).gt(0).any()):
            visible = _open(clean) & ~masked
            noisy = _at(clean, masked)
            own = _own(model, noisy, visible)
            masked = masked | _largest(-own, visible, left.clamp(0, self.each))
        return masked


def _own(model: Denoiser, noisy: Batch, at: Tensor) -> Tensor:
    """ln p of the true ids of the tokens ``at``, [B, L]."""
    assert noisy.clean is not None
    found = torch.zeros(noisy.ids.numel(), device=noisy.device)
    for kind, scored in model(noisy, predict=at).scored.items():
        if len(scored.at):
            if scored.logits is None:
                raise ValueError(f"tokens of kind {kind} have no logits, so they have no probability")
            log_p = scored.logits.float().log_softmax(-1)
            found[scored.at] = log_p.gather(1, noisy.clean.flatten()[scored.at][:, None])[:, 0]
    return found.view_as(noisy.ids)


def bounds(model: Denoiser, noisy: Batch) -> Tensor:
    """L / n times the sum of ln p over the n masked tokens of the L of each row, [B], with gradients where they are enabled."""
    found = (log_probabilities(model, noisy) * noisy.masked).sum(1)
    return found * _open(noisy).sum(1) / noisy.masked.sum(1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class MaskedPreference:
    """The loss of pairs of answers under states of one count of masked tokens, the same for winner and loser.

    ``reference``: the frozen model · ``states``: which tokens are masked · ``beta``: of the difference of bounds, in nats · ``winners``:
    weight of the winners' own cross-entropy.
    """

    reference: Teacher
    states: States = Replay()
    beta: float = 0.1
    winners: float = 0.0

    def __call__(self, model: MaskedModel, pairs: PreferencePairs, rng: torch.Generator) -> Loss:
        sizes = [_open(rows).sum(1) for rows in pairs]
        share_P = torch.rand(pairs.winners.rows, generator=rng).to(pairs.winners.device)
        key = int(torch.randint(2**62, (), generator=rng))
        noisy = []
        for rows, size in zip(pairs, sizes, strict=True):
            counts = (share_P * size).floor().long() + 1
            chosen = self.states(model, rows, counts, torch.Generator().manual_seed(key))
            noisy.append(_at(rows, chosen))
        with torch.no_grad(), self.reference(model) as reference:
            before = torch.stack([bounds(reference, rows) for rows in noisy], -1)
        return self.of(torch.stack([bounds(model, rows) for rows in noisy], -1), before, sizes[0])

    def of(self, model: Tensor, reference: Tensor, tokens: Tensor) -> Loss:
        """The loss of bounds [P, 2] of winners and losers; ``tokens [P]``: of the winners."""
        inside = from_bounds(model, reference, self.beta)
        total = preference(inside).mean()
        words = -(model[:, 0] / tokens).mean()
        terms = {"preference": total, "margin": inside.mean(), "preferred": (inside > 0).float().mean(), "words": words}
        total = total + self.winners * words if self.winners else total
        return Loss(
            total=total, terms={k: v.detach() for k, v in terms.items()}, counts=dict.fromkeys(terms, len(model))
        )


def _open(batch: Batch) -> Tensor:
    return batch.writable & batch.valid


def _at(clean: Batch, masked: Tensor) -> Batch:
    share = masked.sum(1) / _open(clean).sum(1).clamp(min=1)
    return clean.replace(masked=masked, clean=clean.ids, target=None, time=share[:, None].expand(clean.ids.shape))


def _largest(score: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """The ``counts [B]`` largest scores of each row among some tokens, earlier ones first where equal: [B, L] bool."""
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(1) < counts[:, None]) & among


CARD = Card(
    title="InPO: Inversion Preference Optimization with Reparametrized DDIM for Efficient Diffusion Model Alignment",
    paper="arXiv 2503.18454",
    year=2025,
    changes="objective: preference loss at states that the model itself would pass through, found by inversion or replay",
    claim="Preference training at inverted latents aligns Stable Diffusion in 400 updates.",
    status="reference",
    figure="mini, 60 updates, 3 seeds, unseen prompts: replayed masks win .50 [.44, .56] against random masks at as many updates, .52 "
    "[.41, .63] at as many forwards, .57 [.49, .64] against supervised tuning on the winners; reward .51 before, .56 [.46, .65] after: "
    "not seen",
    recipe="inpo.pairs",
)
