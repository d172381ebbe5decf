"""EDLM: whole candidates are drawn from the model's factorised prediction and picked by an energy that sees all of their tokens.

Paper: Xu, Geffner, Kreis, Nie, Xu, Leskovec, Ermon and Vahdat, "Energy-Based Diffusion Language Models for Text Generation", ICLR 2025,
arXiv 2410.21357.

Equations: p(x0 | xt) = mu(x0 | xt) exp(-E(x0, xt)) / Z, mu being the model's prediction, which takes the tokens as independent. With an
autoregressive model E = log mu(x0 | xt) - log p_AR(x0), so p is p_AR on what mu proposes; with carry-over, known tokens have no term.
A learned energy minimises the noise-contrastive loss -log sig(-E(x0)) - log sig(E(x-)), x- drawn from mu. Each step draws k candidates for
all masked tokens and picks one with probability softmax(-E / temperature); then the step unmasks what its selection takes of it.

What changes: the token sampler, which scores all masked tokens of a row at every step.

What it costs: k forwards of the energy's network over the whole row for each step inside the window of times; k = 1 is the sampler
without it, to the bit. The best of several finished answers by the same energy is the honest rival at equal forwards.

Not as in the released code: it weighs candidates by softmax(+E), and computes E of its sampler from probabilities instead of their
logarithms. ``temperature`` -1 has the sign of the release, for comparison. It also groups candidates wrongly for more than one row.

Shapes: B rows, K candidates, L tokens, V vocabulary (with the mask id in the plain functions of the equations).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.checkpoints.stream import CheckpointError, files_of
from unmask.methods.card import Card
from unmask.models.elastic import Elastic
from unmask.models.energy import EnergyNet
from unmask.pipeline.opening import load
from unmask.protocols import Denoiser, TokenSampler
from unmask.rng import key, rows
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.spans import still_masked, wished
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, stack
from unmask.step import Prediction, Progress, Proposal

_EPS = 1e-3
_NEVER = -1e6  # the logit of an id that cannot be

# -- the equations, on [B, L] ids -------------------------------------------------------------------------------------


def masking_probability(t: Tensor) -> Tensor:
    """Of a token at time t, (1 - eps) t: log-linear noise."""
    return (1 - _EPS) * t


def noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """sigma = -log(1 - (1 - eps) t) and its derivative."""
    return -torch.log1p(-masking_probability(t)), (1 - _EPS) / (1 - masking_probability(t))


def likelihood_weight(t: Tensor) -> Tensor:
    """dsigma / expm1(sigma), which is 1 / t, of the loss in the bound."""
    sigma, slope = noise(t)
    return slope / sigma.expm1()


def antithetic(uniform_B: Tensor) -> Tensor:
    """One time for each row, one in each of B strata, above eps."""
    size = len(uniform_B)
    return (1 - _EPS) * ((uniform_B / size + torch.arange(size) / size) % 1) + _EPS


def masked_at(x0_BL: Tensor, probability_B1: Tensor, uniform_BL: Tensor, mask_id: int) -> Tensor:
    """The ids after masking, xt."""
    return torch.where(uniform_BL < probability_B1, mask_id, x0_BL)


def log_mu(logits_BLV: Tensor, x_BL: Tensor, mask_id: int) -> Tensor:
    """log mu(. | xt): never the mask, and the visible ids where there are any."""
    barred = F.one_hot(torch.tensor(mask_id), logits_BLV.shape[-1]).to(logits_BLV) * _NEVER
    known = torch.where(F.one_hot(x_BL, logits_BLV.shape[-1]).bool(), 0.0, _NEVER).to(logits_BLV)
    return torch.where((x_BL == mask_id)[..., None], (logits_BLV + barred).log_softmax(-1), known)


def categorical(p: Tensor, uniform: Tensor) -> Tensor:
    """A draw for each distribution of the last axis, by the noise of exponential races."""
    return (p / (1e-10 - (uniform + 1e-10).log())).argmax(-1)


def of_ids(log_p_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    """The entries of these ids, [B, L]."""
    return log_p_BLV.gather(-1, ids_BL[..., None])[..., 0]


def autoregressive(logits_BLV: Tensor, ids_BL: Tensor, mask_id: int) -> Tensor:
    """log p of each token given those before, [B, L], from the logits of the token *after* each; the first token has none: 0."""
    barred = F.one_hot(torch.tensor(mask_id), logits_BLV.shape[-1]).to(logits_BLV) * _NEVER
    return F.pad(of_ids((logits_BLV + barred).log_softmax(-1)[:, :-1], ids_BL[:, 1:]), (1, 0))


def energy(log_mu_BL: Tensor, log_p_BL: Tensor, masked_BL: Tensor | None = None) -> Tensor:
    """E = log mu - log p_AR of whole rows, [B]. ``masked``: known tokens carry over, so that only these have a term of p_AR."""
    scored_BL = log_p_BL if masked_BL is None else torch.where(masked_BL, log_p_BL, 0.0)
    return log_mu_BL.sum(-1) - scored_BL.sum(-1)


def weights(energy_KB: Tensor, temperature: float = 1.0) -> Tensor:
    """The probability of each candidate, [K, B]."""
    return (-energy_KB / temperature).softmax(0)


def picked(weights_KB: Tensor, uniform_B: Tensor) -> Tensor:
    """A candidate for each row, [B], by its cumulative weights."""
    return (weights_KB.cumsum(0) <= uniform_B).sum(0).clamp(max=len(weights_KB) - 1)


def token_bound(log_mu_BL: Tensor, energy_B: Tensor, t_B: Tensor) -> Tensor:
    """The share of each token in the bound of -log p, [B, L] nats, an autoregressive energy being taken as normalised."""
    return -likelihood_weight(t_B)[:, None] * (log_mu_BL - energy_B[:, None] / log_mu_BL.shape[1])


def ancestral_step(
    x_BL: Tensor, mu_BLV: Tensor, t: float | Tensor, s: float | Tensor, u: Tensor, mask_id: int
) -> Tensor:
    """From time t to s: a masked token is drawn with probability (t - s) / t."""
    q_BLV = mu_BLV * (t - s)
    q_BLV[..., mask_id] = torch.as_tensor(s, dtype=q_BLV.dtype)
    return torch.where(x_BL == mask_id, categorical(q_BLV, u), x_BL)


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The paper's sampler over a grid of times, with all random numbers given (tests compare it with measured runs).

    ``mu(x) -> log mu`` · ``energies(x, candidates [K, B, L], log mu) -> [K, B]`` · ``k``, ``window``: candidates, and the times
    (end, start) in which they are drawn · ``caches``: mu, or the picked candidate, stays until a token changes (the release).
    """

    mu: Callable[[Tensor], Tensor]
    energies: Callable[[Tensor, Tensor, Tensor], Tensor]
    mask_id: int
    k: int = 2
    window: tuple[float, float] = (0.4, 1.0)
    temperature: float = 1.0
    caches: bool = False

    def candidates(self, log_mu_BLV: Tensor, uniform: Tensor) -> Tensor:
        """[K, B, L], from ``uniform`` [K B, L, V] in this order."""
        drawn = categorical(log_mu_BLV.exp().repeat(self.k, 1, 1), uniform)
        return drawn.view(self.k, *log_mu_BLV.shape[:2])

    def weights(self, x_BL: Tensor, candidates_KBL: Tensor, log_mu_BLV: Tensor) -> Tensor:
        return weights(self.energies(x_BL, candidates_KBL, log_mu_BLV), self.temperature)

    def acts(self, t: float) -> bool:
        return self.window[0] <= t <= self.window[1]

    def picked(self, candidates_KBL: Tensor, pick_B: Tensor, log_mu_BLV: Tensor) -> Tensor:
        """The candidates of the rows as a prediction that is sure of them, mu [B, L, V]."""
        ids_BL = candidates_KBL[pick_B, torch.arange(len(pick_B))]
        return F.one_hot(ids_BL, log_mu_BLV.shape[-1]).to(log_mu_BLV)

    def finished(self, x_BL: Tensor) -> Tensor:
        """The most probable ids in place of what is still masked."""
        return torch.where(x_BL == self.mask_id, self.mu(x_BL).argmax(-1), x_BL)


# -- in the sampler ---------------------------------------------------------------------------------------------------


class Energy(Protocol):
    """(batch, candidates [K, B, L], masked [B, L], log mu of the candidates [K, B]) -> E [K, B], up to a constant of each row."""

    def __call__(self, batch: Batch, ids: Tensor, masked: Tensor, mu: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class CausalEnergy:
    """E = log mu - log p_AR of a network that predicts each token from those before it (``ElasticConfig.shifted``)."""

    net: Denoiser = dataclasses.field(repr=False)

    @torch.no_grad()
    def __call__(self, batch: Batch, ids: Tensor, masked: Tensor, mu: Tensor) -> Tensor:
        found = self.log_p(batch, ids, masked)
        return mu - found

    def log_p(self, batch: Batch, ids: Tensor, masked: Tensor) -> Tensor:
        """log p_AR of the tokens in ``masked``, summed over each row, [K, B]. The first token of a row has no prediction: 0."""
        count, rows_, length = ids.shape
        order = torch.arange(length, device=ids.device).expand(rows_, length)
        scored = masked & (batch.kind == Kind.TEXT) & (order > 0)
        causal = batch.replace(order=order, masked=torch.zeros_like(batch.masked))
        views = stack([causal.replace(ids=one) for one in ids])
        prediction = self.net(views, predict=scored.repeat(count, 1))
        log_p = torch.zeros(count * rows_ * length, device=ids.device)
        for one in [prediction.scored[Kind.TEXT]] if Kind.TEXT in prediction.scored else []:
            assert one.logits is not None
            log_p[one.at] = of_ids(one.logits.float().log_softmax(-1), ids.flatten()[one.at])
        return log_p.view(count, rows_, length).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Reweighted:
    """``token_sampler``'s candidates for all masked tokens of a row, drawn ``k`` times; one of them by softmax(-E / temperature).

    ``start``, ``end``: it acts while the masked share of the row's block is between them (1 .. 0: always).
    """

    token_sampler: TokenSampler
    energy: Energy
    k: int = 4
    temperature: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature:
            raise ValueError(f"k must be at least 1 and temperature not 0, got {self.k} and {self.temperature}")
        if not 0 <= self.end <= self.start <= 1:
            raise ValueError(f"the window from start {self.start} to end {self.end} must lie in 1 .. 0")

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return still_masked(batch) if self.k > 1 else wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        first = self.token_sampler(batch, prediction, progress)
        acts_B = self._acts(batch)
        if self.k == 1 or not bool(acts_B.any()):
            return first
        others = [self.token_sampler(_reseeded(batch, c), prediction, progress) for c in range(1, self.k)]
        proposals, masked_BL = [first, *others], still_masked(batch)
        ids_KBL = torch.stack([torch.where(masked_BL, one.ids, batch.ids) for one in proposals])
        mu_KB = _log_mu(ids_KBL, prediction)
        weights_KB = weights(self.energy(batch, ids_KBL, masked_BL, mu_KB), self.temperature)
        uniform_B = torch.cat([torch.rand(1, generator=g) for g in rows(batch, "edlm")]).to(batch.device)
        pick_B = torch.where(acts_B, picked(weights_KB, uniform_B), 0)
        row_B = torch.arange(batch.rows, device=batch.device)
        return dataclasses.replace(
            first,
            ids=torch.stack([one.ids for one in proposals])[pick_B, row_B],
            score=torch.stack([one.score for one in proposals])[pick_B, row_B],
        )

    def _acts(self, batch: Batch) -> Tensor:
        if batch.time is None:
            return torch.ones(batch.rows, dtype=torch.bool, device=batch.device)
        share_B = batch.time.amax(1)
        return (share_B <= self.start) & (share_B >= self.end)


def _reseeded(batch: Batch, candidate: int) -> Batch:
    """The batch with other random numbers for every row, which do not depend on other rows."""
    return batch.replace(
        seed=torch.tensor([key("edlm", seed, candidate) for seed in batch.seed.tolist()]).to(batch.seed)
    )


def _log_mu(ids_KBL: Tensor, prediction: Prediction) -> Tensor:
    """log mu of the scored tokens of every candidate, [K, B]."""
    flat_KN = ids_KBL.flatten(1)
    found = torch.zeros(flat_KN.shape, device=flat_KN.device)
    for one in prediction.scored.values():
        if one.logits is not None and one.at.numel():
            log_p_NV = one.logits.float().log_softmax(-1)
            found[:, one.at] = log_p_NV.gather(1, flat_KN[:, one.at].T).T
    return found.view(ids_KBL.shape).sum(-1)


# -- the energy's network ---------------------------------------------------------------------------------------------

HEAD = "energy"  # energy.safetensors beside a model: the head of a learned energy


@dataclass(frozen=True, kw_only=True)
class LearnedEnergy:
    """The energy of a trained ``EnergyNet``."""

    net: Callable[[Batch, Tensor], Tensor] = dataclasses.field(repr=False)

    @torch.no_grad()
    def __call__(self, batch: Batch, ids: Tensor, masked: Tensor, mu: Tensor) -> Tensor:
        views = stack([batch] * len(ids))
        return self.net(views, ids.flatten(0, 1)).view(mu.shape)


def save_energy(net: EnergyNet, folder: Path) -> None:
    """Write the head of a learned energy into the model folder of its trunk, which exists."""
    save_tensors({name: t for name, t in net.state_dict().items() if not name.startswith("trunk.")}, folder, name=HEAD)


@functools.lru_cache(maxsize=2)
def folder_energy(folder: str, device: str = "cpu") -> Energy:
    """The energy of a model folder: learned, if it holds ``energy.safetensors``, else that of an autoregressive network.

    CheckpointError for a folder that is neither.
    """
    opened = load(folder, device=device)
    net = opened.parts.net
    if not isinstance(net, Elastic):
        raise CheckpointError(
            f"{folder} is opened by a recipe, which gives no energy; use a text model of Dream's layout"
        )
    if files_of(Path(folder), HEAD):
        made = EnergyNet(net).to(device)
        made.load_state_dict({**made.state_dict(), **read_tensors(Path(folder), HEAD)})
        return LearnedEnergy(net=made.eval())
    if not net.config.shifted:
        raise CheckpointError(
            f"{folder} predicts tokens where they stand, so it is not an autoregressive model, and it has no {HEAD}.safetensors; "
            "use a model in Dream's layout that was trained on the next token, or train an energy"
        )
    return CausalEnergy(net=net.eval())


def edlm(
    base: Sampler,
    net: Denoiser,
    *,
    energy: str = "",
    k: int = 4,
    temperature: float = 1.0,
    start: float = 1.0,
    end: float = 0.0,
) -> Sampler:
    """Whole candidates at each step, one of them picked by the energy of a folder."""
    if not energy:
        raise ValueError("edlm needs the folder of an energy; add --energy FOLDER, for example --energy runs/causal")
    chosen = folder_energy(energy, _place(net))
    _refuse_other_ids(chosen, net, energy)
    reweighted = Reweighted(
        token_sampler=base.token_sampler, energy=chosen, k=k, temperature=temperature, start=start, end=end
    )
    return dataclasses.replace(base, token_sampler=reweighted)


def _place(net: Denoiser) -> str:
    return str(net.embed.weight.device) if isinstance(net, Elastic) else "cpu"


def _refuse_other_ids(energy: Energy, net: Denoiser, folder: str) -> None:
    read = energy.net if isinstance(energy, CausalEnergy | LearnedEnergy) else None
    own = read.trunk if isinstance(read, EnergyNet) else read
    if isinstance(net, Elastic) and isinstance(own, Elastic) and own.config.vocab_size != net.config.vocab_size:
        raise ValueError(
            f"{folder} has {own.config.vocab_size} token ids and the model {net.config.vocab_size}; "
            "an energy needs the model's own tokenizer"
        )


def _tiny(batch: Batch, ids: Tensor, masked: Tensor, mu: Tensor) -> Tensor:
    """An energy for the contract tests: low where tokens repeat their left neighbour."""
    return -(ids[..., 1:] == ids[..., :-1]).float().sum(-1)


CARD = Card(
    title="Energy-Based Diffusion Language Models for Text Generation",
    paper="arXiv 2410.21357",
    year=2025,
    changes="token sampler: a step picks one of k whole candidates by an energy that sees all of their tokens",
    claim="Generative perplexity of a diffusion language model near an autoregressive one's, and 1.3 times faster at equal quality.",
    status="tiny-checked",
    figure="true captions, 3 networks, k = 16: at 1 step .104 [.063, .144] above the best finished answer at equal forwards with "
    "temperature .2 and .049 [.017, .081] with 1; at 2 steps -.100 [-.205, .005] and -.144 [-.260, -.028], at 4 and 8 (temperature 1) "
    "-.304 [-.343, -.265] and -.381 [-.490, -.273]; in the first step of two alone worse still; an energy learned in 400 updates is "
    "-.325 [-.418, -.232] at 1 step; the flipped sign loses",
    parts={
        "token_sampler": (Reweighted(token_sampler=Categorical(), energy=_tiny, k=3),),
        "sampler": (
            Sampler(
                schedule=Equal(steps=3),
                token_sampler=Reweighted(token_sampler=Categorical(), energy=_tiny, k=3, end=0.3),
                selection=RandomOrder(),
            ),
            Sampler(
                schedule=Equal(steps=3),
                token_sampler=Reweighted(token_sampler=Categorical(), energy=_tiny, k=2),
                selection=Confident(),
            ),
        ),
    },
    sampler=("edlm",),
)
