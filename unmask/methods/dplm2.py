"""DPLM-2: a sequence and its structure, as two halves of one row, in one masked diffusion.

Paper: Wang et al., "DPLM-2: A Multimodal Diffusion Protein Language Model", 2024, arXiv 2410.13782.

Equations: the structure is quantised to the signs of a vector (``tokens/lfq.py``). A row is [structure | letters], of equal length; both
halves have the same positions, and each its own mask and its own time t in 1..T. A batch is a mixture of tasks: one half without the other
(attention is blocked between them), folding (letters at time 0), inverse folding (structure at time 0), and both at one time. A token is
masked with probability t / T. Loss of each half:

    sum of w CE over its masked tokens / their number,  w = 1 - (t - 1) / T  or 1

and the mean of both. Self-mixup: a prediction without gradient; a second input that has the predictions where the first had masks, and
masks where it showed the truth; the loss of that input over all tokens takes the place of the first.

Sampling, T iterations. Every token gets a candidate and a score. Then, for each half, rate = 1 - (s + 1) / T: the floor(rate n) tokens of
the lowest score plus X rate Gumbel are masked, even if they were unmasked before; masked tokens that are not among them take their
candidate, and unmasked ones stay. So an unmasked token is ranked by the score of a candidate drawn anew at its place, not by its own.

What changes: the rows, the objective and the sampler. Warm-up: the weights of a letters-only model, with LoRA (``models/lora.py``) and
whole embeddings (``widened``).

What it costs: rows twice as long; self-mixup a second forward; the sampler scores all tokens at every step, so nothing is cached.

Shapes: B rows · S slots of a half · L = 2 S tokens, structure first · V ids of both halves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods.card import Card
from unmask.rng import generator
from unmask.step import Loss

PAD = 1
Model = Callable[[Tensor, Tensor], Tensor]  # (ids [B, L], one half alone [B] bool) -> logits [B, L, V]
Strategy = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]  # (ln p, done, u) -> candidates, scores [B, L]


@dataclass(frozen=True, kw_only=True)
class Half:
    """The ids ``first``..``stop`` - 1 of one half. ``mask``: its mask · ``ends``: its begin and end · ``never``: ids that are not drawn."""

    first: int
    stop: int
    mask: int
    ends: frozenset[int]
    never: frozenset[int]

    def normal(self, ids: Tensor) -> Tensor:
        """Tokens that are not padding, begin or end."""
        return ~torch.isin(ids, torch.tensor([PAD, *sorted(self.ends)], device=ids.device))

    def allowed(self, size: int) -> Tensor:
        """The ids that may be drawn, [V] bool."""
        found = torch.zeros(size, dtype=torch.bool)
        found[self.first : self.stop] = True
        found[sorted(self.never)] = False
        return found


LETTERS = Half(first=0, stop=33, mask=32, ends=frozenset({0, 2}), never=frozenset({0, 1, 2, 3, 32, *range(24, 29)}))


def structure(codes: int) -> Half:
    """Begin, end, unknown, ``codes`` codes and the mask, after the letters."""
    first = LETTERS.stop
    mask = first + 3 + codes
    ends = frozenset({first, first + 1})
    return Half(first=first, stop=mask + 1, mask=mask, ends=ends, never=ends | {first + 2, mask})


# -- corruption --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of each row, [B]: time of either half, and whether each half is alone."""

    structure: Tensor
    letters: Tensor
    alone: Tensor


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the tasks; the rest has both halves at one time. ``independent``: both halves, at two times."""

    alone: float = 0.25
    folding: float = 0.25
    inverse: float = 0.25
    independent: float = 0.0

    def times(self, order: Tensor, structure: Tensor, letters: Tensor) -> Times:
        """From a permutation of the rows and two times drawn for each row."""
        names = [int(share * len(order)) for share in (self.alone, self.folding, self.inverse, self.independent)]
        alone, folding, inverse, _, together = order.split([*names, len(order) - sum(names)])
        structure, letters = structure.clone(), letters.clone()
        letters[folding], structure[inverse] = 0, 0
        letters[together] = structure[together]
        single = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        single[alone] = True
        return Times(structure=structure, letters=letters, alone=single)


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Rows [B, L] with masks. ``hidden [B, L]`` bool: what is masked."""

    ids: Tensor
    clean: Tensor
    hidden: Tensor
    times: Times


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows of two halves. ``steps``: T."""

    structure: Half
    letters: Half = LETTERS
    steps: int = 500

    @property
    def size(self) -> int:
        return max(self.structure.stop, self.letters.stop)

    def normal(self, ids: Tensor) -> Tensor:
        """Tokens of either half that are not padding, begin or end, [B, L]."""
        return self.structure.normal(ids) & self.letters.normal(ids)

    def masks(self, ids: Tensor) -> Tensor:
        """The mask of each token's half, [B, L]."""
        first = torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] // 2
        return torch.where(first, self.structure.mask, self.letters.mask).expand_as(ids)

    def corrupt(self, clean: Tensor, times: Times, u: Tensor) -> Corrupted:
        """Mask the normal tokens with ``u [B, L]`` below t / T."""
        slots = clean.shape[1] // 2
        at = torch.cat([t[:, None].expand(-1, slots) for t in (times.structure, times.letters)], dim=1)
        hidden = (u < at / self.steps) & self.normal(clean)
        return Corrupted(ids=torch.where(hidden, self.masks(clean), clean), clean=clean, hidden=hidden, times=times)

    def mixed_up(self, made: Corrupted, said: Tensor) -> Corrupted:
        """The second input of self-mixup: predictions ``said [B, L]`` where masks were, masks where the truth was. All is scored."""
        normal = self.normal(made.clean)
        shown = torch.where(made.hidden, said, torch.where(normal, self.masks(made.clean), made.clean))
        return dataclasses.replace(made, ids=shown, hidden=normal)


def visible(valid: Tensor, alone: Tensor) -> Tensor:
    """Who reads whom, [B, L (query), L (key)] bool: no padding, and in rows ``alone`` no token of the other half."""
    slots = valid.shape[1] // 2
    half = torch.arange(valid.shape[1], device=valid.device) < slots
    return valid[:, None, :] & (~alone[:, None, None] | (half[:, None] == half[None, :]))


# -- objective ---------------------------------------------------------------------------------------------------------


def falling(t: Tensor, steps: int) -> Tensor:
    """1 - (t - 1) / T: the published weight; above 1 at t = 0, where nothing is masked but under self-mixup."""
    return (steps - (t - 1)) / steps


def constant(t: Tensor, steps: int) -> Tensor:
    """1."""
    return torch.ones_like(t, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """``weight(t, T)``: of the tokens of a row's half · ``mixup``: whether to train on the second input of self-mixup."""

    pairs: Pairs
    mixture: Mixture = Mixture()
    weight: Callable[[Tensor, int], Tensor] = falling
    mixup: bool = False

    def __call__(self, model: Model, clean: Tensor, rng: torch.Generator) -> Loss:
        rows = len(clean)
        drawn = [torch.randint(1, self.pairs.steps + 1, (rows,), generator=rng) for _ in range(2)]
        times = self.mixture.times(torch.randperm(rows, generator=rng), *drawn)
        made = self.pairs.corrupt(clean, times, torch.rand(clean.shape, generator=rng))
        if self.mixup:
            with torch.no_grad():
                said = model(made.ids, times.alone).argmax(-1)
            made = self.pairs.mixed_up(made, said)
        return self.of(model(made.ids, times.alone), made)

    def of(self, logits: Tensor, made: Corrupted) -> Loss:
        """The loss of given logits [B, L, V]."""
        each = F.cross_entropy(logits.flatten(0, 1), made.clean.flatten(), reduction="none").view_as(made.clean)
        slots, terms, counts = made.clean.shape[1] // 2, {}, {}
        for name, t, own in (
            ("structure", made.times.structure, slice(slots)),
            ("letters", made.times.letters, slice(slots, None)),
        ):
            hidden = made.hidden[:, own]
            count = hidden.sum()
            weight = self.weight(t, self.pairs.steps)[:, None]
            terms[name], counts[name] = (weight * each[:, own] * hidden).sum() / count.clamp(min=1), int(count)
        return Loss(total=(terms["structure"] + terms["letters"]) / 2, terms=terms, counts=counts)


def learning_rate(step: int, *, warmup: int = 2000, total: int = 100_000) -> float:
    """The published one: 1e-7 to 1e-4 in the warm-up, then linear to 1e-5 at ``total``."""
    first, most, last = 1e-7, 1e-4, 1e-5
    if step < warmup:
        return first + (most - first) * step / warmup
    return most + (last - most) * min(1.0, (step - warmup) / (total - warmup))


def widened(weight: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Embeddings [V', D] of a letters-only model for ``size`` ids; new rows have the mean and the covariance of the old ones."""
    mean, centred = weight.mean(0), weight - weight.mean(0)
    missing = size - len(weight)
    if missing < 0:
        raise ValueError(f"the model has {len(weight)} ids, and the pair {size}; the pair must have as many or more")
    mixing = torch.randn(missing, len(weight), generator=rng).to(weight) / math.sqrt(len(weight))
    return torch.cat([weight, mean + mixing @ centred])


# -- sampling ----------------------------------------------------------------------------------------------------------


def nucleus(logits: Tensor, mass: float) -> Tensor:
    """Logits [..., V], -inf outside the smallest set with this probability; the id that crosses it stays."""
    ordered, at = logits.softmax(-1).sort(dim=-1, descending=True)
    drop = ordered.cumsum(-1) - ordered > mass
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, at, drop), -torch.inf)


def gumbel(u: Tensor) -> Tensor:
    """-ln(-ln u), as published, with 1e-8 inside both."""
    return -(-(u + 1e-8).log() + 1e-8).log()


def argmax(log_p: Tensor, done: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable id, scored by its probability among all ids, the forbidden ones too."""
    score, ids = log_p.max(-1)
    return ids, score


@dataclass(frozen=True, kw_only=True)
class GumbelArgmax:
    """The best of ln p + ``temperature`` Gumbel; its score is the log-softmax of that sum."""

    temperature: float = 1.0

    def __call__(self, log_p: Tensor, done: float, u: Tensor) -> tuple[Tensor, Tensor]:
        score, ids = (log_p + self.temperature * gumbel(u)).log_softmax(-1).max(-1)
        return ids, score


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """A sample at a temperature that falls from ``first`` to ``last``; its score is its log-probability at that temperature."""

    first: float = 2.2
    last: float = 1.0

    def __call__(self, log_p: Tensor, done: float, u: Tensor) -> tuple[Tensor, Tensor]:
        ids = (self.log_probabilities(log_p, done) + gumbel(u)).argmax(-1)
        return ids, self.score(log_p, done, ids)

    def log_probabilities(self, log_p: Tensor, done: float) -> Tensor:
        return (log_p / (self.last + (self.first - self.last) * (1 - done))).log_softmax(-1)

    def score(self, log_p: Tensor, done: float, ids: Tensor) -> Tensor:
        """The score of candidates that are known."""
        return self.log_probabilities(log_p, done).gather(-1, ids[..., None])[..., 0]


def lowest(score: Tensor, count: Tensor) -> Tensor:
    """The tokens strictly below the ``count``-th smallest (from 0) score of their row, [B, L] bool; ``count [B]``."""
    cut = score.sort(1).values.gather(1, count[:, None].clamp(max=score.shape[1] - 1))
    return score < cut


@dataclass(frozen=True, kw_only=True)
class Remasking:
    """``steps``: T · ``strategy``: of candidates and scores · ``noise``: X, of the order in which tokens are masked again ·
    ``mass``: of the nucleus.
    """

    pairs: Pairs
    steps: int
    strategy: Strategy = argmax
    noise: float = 0.0
    mass: float = 0.95

    def candidates(self, logits: Tensor, step: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of every token, [B, L]: an id of its own half, and a score. ``u [B, L, V]``: uniform numbers."""
        return self.strategy(self.log_probabilities(logits), step / self.steps, u)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """ln p over all ids, -inf for those of the other half and those that are never drawn, and outside the nucleus."""
        slots, size = logits.shape[1] // 2, logits.shape[2]
        halves = (self.pairs.structure.allowed(size), self.pairs.letters.allowed(size))
        allowed = torch.cat([half.expand(slots, -1) for half in halves]).to(logits.device)
        return nucleus(logits.log_softmax(-1).masked_fill(~allowed, -torch.inf), self.mass)

    def moved(
        self, ids: Tensor, open: Tensor, candidates: Tensor, scores: Tensor, step: int, u: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The ids after a step. ``open [B, L]``: what may change · ``u``: uniform numbers [B, L] for letters, then for structure."""
        masks, rate = self.pairs.masks(ids), 1 - (step + 1) / self.steps
        first = torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] // 2
        for half, uniform in ((~first, u[0]), (first, u[1])):
            own = open & half
            count = (own.sum(1) * rate).floor().long()
            rank = scores.masked_fill(~own, 1000.0)
            if self.noise:
                rank = rank + self.noise * rate * gumbel(uniform)
            low = lowest(rank, count) & own
            taken = own & ~low & (ids == masks)
            ids = torch.where(low, masks, torch.where(taken, candidates, ids))
        return ids

    @torch.no_grad()
    def sample(self, model: Model, ids: Tensor, open: Tensor, seeds: list[int]) -> Tensor:
        """Rows [B, L] with all tokens of ``open [B, L]`` drawn: folding, inverse folding, both, or a motif's surroundings."""
        ids = torch.where(open, self.pairs.masks(ids), ids)
        rngs, together = [generator("dplm2", seed) for seed in seeds], torch.zeros(len(ids), dtype=torch.bool)
        for step in range(self.steps):
            logits = model(ids, together.to(ids.device))
            u = torch.stack([torch.rand(logits.shape[1:], generator=rng) for rng in rngs])
            found, scores = self.candidates(logits, step, u.to(logits))
            again = [torch.stack([torch.rand(ids.shape[1], generator=rng) for rng in rngs]).to(logits) for _ in "ls"]
            ids = self.moved(ids, open, found, scores, step, (again[0], again[1]))
        return ids


class WithHalves(nn.Module):
    """A network of ids and who reads whom, as a ``Model``. ``net``: (ids [B, L], position [L], attend [B, L, L]) -> logits.

    Both halves have the positions 0..S - 1 (``shared``), or 0..L - 1.
    """

    def __init__(self, net: Callable[[Tensor, Tensor, Tensor], Tensor], *, shared: bool = True) -> None:
        super().__init__()
        self.net, self.shared = net, shared

    def forward(self, ids: Tensor, alone: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        if self.shared:
            place = place % (ids.shape[1] // 2)
        return self.net(ids, place, visible(ids != PAD, alone))


CARD = Card(
    title="DPLM-2: A Multimodal Diffusion Protein Language Model",
    paper="arXiv 2410.13782",
    year=2024,
    changes="rows, objective and sampler: a sequence and its quantised structure share positions in one masked diffusion",
    claim="One model folds, inverts folding and generates both together, on a par with specialists.",
    status="reference",
    figure="folding by one model, 3 seeds: TM-like .512 [.405, .618], a specialist .553, difference -.041 [-.108, .027]; a warm start "
    "by LoRA .122, with all weights trained .309; letters recovered .184, specialist .190; both halves together agree .112 "
    "[.070, .154] less than in two stages",
    paper_figure="CAMEO 2022: RMSD 7.70, TM 0.79 (ESMFold 3.99, 0.85); motif scaffolding 18 of 24 problems",
    recipe="dplm2.proteins",
    python="from unmask.methods.dplm2 import Mixture, PairLoss, Pairs, Remasking, structure",
)
