"""M2DM: discrete diffusion of motion in which important tokens are corrupted last and restored first.

Paper: Kong et al., "Priority-Centric Human Motion Generation in Discrete Latent Space", ICCV 2023, arXiv 2308.14480. There is no code, and
the schedule below is reconstructed from the paper's beginning and from the "spindle" schedule of DiffusionBERT (arXiv 2211.15029).

Equations: a token is kept, masked, or replaced by any of the K symbols. With abar and gbar the probabilities of "kept" and "masked" by
step t and bbar = (1 - abar - gbar) / K that of each symbol,

    a_t = abar_t / abar_(t-1),   g_t = 1 - (1 - gbar_t) / (1 - gbar_(t-1)),   b_t = (1 - a_t - g_t) / K

Importance s of a token is how much the reconstruction suffers without it. F = 1 - mean(s) / s, centred in each row and divided by its
largest absolute value, bends the time of each token:

    kept(t) = clamp(1 - t + lambda sin(pi t) F, 0, 1)

Its mean over a row is 1 - t where nothing is clamped; it falls with t where lambda max|F| <= 1 / pi. A regulariser keeps the codebook
diverse: |n n' - I|^2 / K^2 of its normalised rows n.

What changes: the corruption, and the order in which tokens are unmasked (``ImportantFirst``). It helps where one step would draw tokens
together that depend on a third one: ``consistent`` computes that exactly for a small world.
What it costs: nothing in a step; the importance of all codes is measured once, with one decoding for each token of some pictures.

Shapes: B rows · L tokens · T steps · K symbols · S states of a world.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.corruption.schedules import Policy, Uniform
from unmask.methods.card import Card
from unmask.sampling.selection import first, move
from unmask.sequence import Batch, Kind
from unmask.step import Move, Progress, Proposal

# -- the chain ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Chain:
    """``kept``, ``masked``: abar and gbar by step, [T + 1], 1 and 0 at the start · ``symbols``: K."""

    kept: Tensor
    masked: Tensor
    symbols: int

    @staticmethod
    def straight(steps: int, symbols: int, *, kept: float = 0.001, masked: float = 0.9) -> Chain:
        """Both in a straight line to their values at the end (VQ-Diffusion, arXiv 2111.14822)."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        return Chain(kept=1 + (kept - 1) * t, masked=masked * t, symbols=symbols)

    @property
    def replaced(self) -> Tensor:
        """bbar by step."""
        return (1 - self.kept - self.masked) / self.symbols

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and g of every step, [T + 1]; at step 0 nothing happens."""
        a, g = torch.ones_like(self.kept), torch.zeros_like(self.masked)
        a[1:] = self.kept[1:] / self.kept[:-1]
        g[1:] = 1 - (1 - self.masked[1:]) / (1 - self.masked[:-1])
        return a, (1 - a - g) / self.symbols, g

    def matrix(self, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """Transitions [K + 1, K + 1] from columns to rows, the mask last."""
        size = self.symbols
        found = torch.zeros(size + 1, size + 1, dtype=a.dtype)
        found[:size, :size] = b + a * torch.eye(size, dtype=a.dtype)
        found[size, :size], found[size, size] = g, 1
        return found

    def by_steps(self) -> Tensor:
        """The product of the first t steps' transitions for every t from 1, [T, K + 1, K + 1]."""
        found: list[Tensor] = []
        for step in zip(*(part[1:] for part in self.steps()), strict=True):
            found.append(self.matrix(*step) @ found[-1] if found else self.matrix(*step))
        return torch.stack(found)

    def at_once(self, step: int) -> Tensor:
        """The same product in closed form."""
        return self.matrix(self.kept[step], self.replaced[step], self.masked[step])


# -- importance --------------------------------------------------------------------------------------------------------


def centred(score: Tensor, among: Tensor) -> Tensor:
    """F in -1..1 of positive importances [B, L], among some tokens of each row; 0 elsewhere, and where all are alike."""
    count = among.sum(1, keepdim=True).clamp(min=1)
    mean = (score * among).sum(1, keepdim=True) / count
    found = torch.where(among, 1 - mean / torch.where(among, score, 1.0), 0.0)
    found = torch.where(among, found - found.sum(1, keepdim=True) / count, 0.0)
    most = found.abs().amax(1, keepdim=True)
    return torch.where(most > 0, found / most.clamp(min=1e-12), 0.0)


def spindle(t: Tensor, importance: Tensor, strength: float) -> Tensor:
    """The probability that a token is kept at time ``t`` in 0..1; ``importance``: F, broadcast against ``t``."""
    return (1 - t + strength * torch.sin(math.pi * t) * importance).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class CodeImportance:
    """The importance of tokens by their ids. ``tables``: kind -> positive importance of every id; tokens of other kinds are alike."""

    tables: Mapping[int, Tensor] = field(hash=False)

    def raw(self, batch: Batch, ids: Tensor) -> Tensor:
        """[B, L]; 1 for other kinds."""
        found = torch.ones(ids.shape, device=ids.device)
        for kind, table in self.tables.items():
            own = table.to(ids.device)[ids.clamp(0, len(table) - 1)]
            found = torch.where(batch.kind == kind, own.float(), found)
        return found

    def __call__(self, batch: Batch) -> Tensor:
        """F [B, L] of the writable tokens, centred in each kind of a row."""
        open_BL = batch.writable & batch.valid
        ids, found = (
            batch.ids if batch.clean is None else batch.clean,
            torch.zeros(batch.ids.shape, device=batch.device),
        )
        for kind in self.tables:
            among = open_BL & (batch.kind == kind)
            found = torch.where(among, centred(self.raw(batch, ids), among), found)
        return found


@dataclass(frozen=True, kw_only=True)
class PriorityMasking:
    """The forward process: one time a row, bent by importance for each token; then masked, or replaced by any id of its kind.

    ``strength``: lambda, 0 for the same time in all tokens · ``replaced``: share of corrupted tokens that are replaced instead of masked ·
    ``sizes``: ids of each kind, needed for those · ``policy``: of the times.
    """

    importance: Callable[[Batch], Tensor]
    strength: float = 0.3
    replaced: float = 0.0
    sizes: Mapping[int, int] = field(default_factory=dict, hash=False)
    policy: Policy = Uniform()

    def __post_init__(self) -> None:
        if not 0 <= self.replaced < 1 or self.strength < 0:
            raise ValueError(f"replaced is in 0..1 and strength from 0, got {self.replaced} and {self.strength}")

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        u = (torch.randperm(batch.rows, generator=rng) + torch.rand(batch.rows, generator=rng)) / batch.rows
        return self.of_tokens(batch, self.policy(u).to(batch.device))

    def of_tokens(self, batch: Batch, time: Tensor) -> Tensor:
        """The times of all tokens, [B, L], at the times [B] of the rows."""
        return 1 - spindle(time[:, None], self.importance(batch), self.strength)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """``time``: [B, L] as from ``times``, or [B]. ``weight``: the probability that a token is masked or gets another id; all corrupted
        tokens are scored. At least one token of a row is masked.
        """
        time = self.of_tokens(clean, time) if time.dim() == 1 else time
        open_BL = clean.writable & clean.valid
        u, v = (torch.rand(clean.ids.shape, generator=rng).to(clean.device) for _ in range(2))
        w = torch.rand(clean.ids.shape, generator=rng).to(clean.device)
        hit, size = (u < time) & open_BL, self._sizes(clean)
        redrawn = hit & (v < self.replaced) & (size > 1)
        ids = torch.where(redrawn, (w * size).long().clamp(max=size - 1), clean.ids)
        masked = hit & ~redrawn
        share = torch.where(size > 1, 1 - self.replaced / size.clamp(min=1), 1.0)
        forced = _least(u, open_BL) & ~masked.any(1, keepdim=True)
        weight = (time * share).clamp(min=1e-3).masked_fill(forced, torch.inf)
        ids = torch.where(forced, clean.ids, ids)
        masked, target = masked | forced, (hit | forced) if self.replaced else None
        return clean.replace(ids=ids, masked=masked, target=target, time=time, weight=weight)

    def _sizes(self, batch: Batch) -> Tensor:
        found = torch.zeros_like(batch.ids)
        for kind, size in self.sizes.items():
            found = torch.where(batch.kind == kind, size, found)
        return found


def _least(u: Tensor, among: Tensor) -> Tensor:
    """The token of each row with the smallest number, among some; none in a row without any."""
    found = torch.zeros_like(among).scatter(1, u.masked_fill(~among, 2.0).argmin(1, keepdim=True), True)
    return found & among


@dataclass(frozen=True, kw_only=True)
class ImportantFirst:
    """Unmasks the candidates whose ids are most important. ``sure``: how much the score of a candidate counts besides."""

    importance: CodeImportance
    sure: float = 0.0

    @property
    def foreseeable(self) -> bool:
        return True

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        score = self.importance.raw(batch, proposal.ids)
        if self.sure:
            score = score + self.sure * proposal.score.clamp(min=-1e4)
        return move(first(score, block, counts))


def measured(errors_NL: Tensor, codes_NL: Tensor, size: int) -> Tensor:
    """The importance of every code, [size]: the mean error of the reconstructions in which a token of that code is missing.

    ``errors_NL``: error of reconstruction without each token · ``codes_NL``: its code. Codes that do not occur get the mean of all.
    """
    total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    flat = codes_NL.flatten()
    total.index_add_(0, flat, errors_NL.flatten().double())
    count.index_add_(0, flat, torch.ones(len(flat), dtype=torch.float64))
    mean = total.sum() / count.sum()
    found = torch.where(count > 0, total / count.clamp(min=1), mean)
    return found.clamp(min=1e-6 * float(mean.clamp(min=1e-12))).float()


def orthogonality(codebook: Tensor) -> Tensor:
    """|n n' - I|^2 / K^2 of the normalised rows of a codebook [K, D]: 0 where all are orthogonal."""
    n = torch.nn.functional.normalize(codebook, dim=-1)
    return (n @ n.T - torch.eye(len(n), dtype=n.dtype, device=n.device)).square().sum() / len(n) ** 2


# -- exact worlds ------------------------------------------------------------------------------------------------------


def consistent(states: Tensor, p: Tensor, order: Items[Items[int]]) -> float:
    """The probability that a sampler with the exact posterior ends in a possible state, if the tokens of a group are drawn together.

    ``states [S, n]``: different states with probabilities ``p [S]`` · ``order``: groups of token numbers, each once.
    """
    if sorted(token for group in order for token in group) != list(range(states.shape[1])):
        raise ValueError(f"an order has each of {states.shape[1]} tokens once, got {[list(group) for group in order]}")

    def ends(alive: Tensor, groups: Items[Items[int]]) -> float:
        """From the states that agree with what was drawn."""
        if not groups or not bool(alive.any()):
            return float(bool(alive.any()))
        now, found = torch.where(alive, p.double(), 0.0), 0.0
        now, group = now / now.sum(), list(groups[0])
        for values in torch.cartesian_prod(*(states[:, token].unique() for token in group)).view(-1, len(group)):
            agree = states[:, group] == values
            chance = float((now[:, None] * agree).sum(0).prod())
            if chance > 0:
                found += chance * ends(alive & agree.all(1), groups[1:])
        return found

    return ends(torch.ones(len(states), dtype=torch.bool), order)


_TABLE = CodeImportance(tables={Kind.CODE: 1.0 + torch.arange(16) % 3, Kind.TEXT: torch.ones(24)})

CARD = Card(
    title="Priority-Centric Human Motion Generation in Discrete Latent Space",
    paper="arXiv 2308.14480",
    year=2023,
    changes="corruption and order: important tokens are corrupted last and restored first; a codebook that stays diverse",
    claim="Corrupting and restoring tokens by their importance improves text-to-motion generation.",
    status="reference",
    figure="stick figures, 3 seeds: importance in training and order makes fewer motions right than confidence, -.108 [-.194, -.023] at 4 "
    "steps and -.235 [-.341, -.130] at 8; the regulariser uses no more codes (8.6 [6.4, 10.9] against 9.4 [7.7, 11.1])",
    paper_figure="R-precision 0.497 / 0.682 / 0.763 (HumanML3D)",
    parts={
        "selection": (ImportantFirst(importance=_TABLE), ImportantFirst(importance=_TABLE, sure=1.0)),
        "Corruption": (
            PriorityMasking(importance=_TABLE),
            PriorityMasking(importance=_TABLE, replaced=0.1, sizes={Kind.TEXT: 24, Kind.CODE: 16}),
        ),
    },
    recipe="m2dm.motions",
)
