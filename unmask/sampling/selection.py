"""Which candidates are taken at this step.

Public idea: a selection is a value ``(batch, proposal, block, counts, progress) -> Move`` that unmasks at least one and at most
``counts`` tokens of each row that has any in the block. One that knows its tokens before candidates are drawn also has ``predict``,
so that the model scores those alone: the same distribution, at a fraction of the head's cost.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unmask.derived import counts_told, derived, remembered, tell_counts
from unmask.protocols import Bounded, Foreseeable, Selection
from unmask.rng import rows
from unmask.sampling.spans import SpanLayout, left, still_masked, wished, writable_spans
from unmask.sampling.temperature import Progress, Temperature, is_zero, of_rows
from unmask.sampling.token_sampler import gumbel
from unmask.sequence import Batch
from unmask.step import Move, Proposal


@dataclass(frozen=True, kw_only=True)
class Confident:
    """The highest score + noise * Gumbel. Noise 0 is LLaDA's low-confidence remasking; with noise, "mmada" of spec 4.2."""

    noise: Temperature = 0.0

    @property
    def foreseeable(self) -> bool:
        return True

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return move(first(_noisy(batch, proposal.score, self.noise, progress), block, counts))


@dataclass(frozen=True, kw_only=True)
class MaskGit:
    """A multinomial draw without replacement over softmax(p / temperature), p the candidate's probability (spec 4.2).

    Drawn as the top of p / temperature + Gumbel, which is the same distribution (Kool et al. 2019).
    """

    temperature: Temperature = 1.0

    @property
    def foreseeable(self) -> bool:
        return True

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return move(first(_noisy(batch, proposal.score.exp(), self.temperature, progress), block, counts))


@dataclass(frozen=True, kw_only=True)
class InOrder:
    """The next tokens of a fixed order over each writable span; ``order`` holds token numbers within the span."""

    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"an order must hold each of 0 .. {len(self.order) - 1} once, got {self.order[:8]} ...")

    @property
    def foreseeable(self) -> bool:
        return True

    def places(self, batch: Batch, open: Tensor) -> Tensor:
        """ValueError for an open token in a span of another size."""
        layout = writable_spans(batch)
        others = derived(
            ("others", len(self.order)), partial(_others, layout, len(self.order)), layout.span, layout.size
        )
        if others is not None and bool((others & open).any()):
            sizes = sorted(set(layout.size[open].tolist()))
            raise ValueError(f"an order of {len(self.order)} tokens does not fit spans of {sizes} tokens")
        place = _places(self.order).to(batch.device)
        return place[layout.offset.clamp(max=len(self.order) - 1)]

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        return first(-self.places(batch, block).float(), block, counts)

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return move(self.predict(batch, block, counts))


@dataclass(frozen=True, kw_only=True)
class RandomOrder:
    """Uniformly random tokens: the order under which masked diffusion is trained."""

    @property
    def foreseeable(self) -> bool:
        return True

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        return first(_noise(batch, (1.0,) * batch.rows), block, counts)

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        return move(self.predict(batch, block, counts))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Every candidate at least ``value`` probable, one at least (Fast-dLLM, Wu et al. 2025). Wants ``LogProbability`` scores.

    ``counts`` stays the most it may take: give it the schedule ``Equal(steps=1)`` for the paper's rule.
    """

    value: float

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        sure_B = (block & (proposal.score.exp() >= self.value)).sum(1)
        return move(first(proposal.score, block, torch.minimum(counts, sure_B.clamp(min=1))))


@dataclass(frozen=True, kw_only=True)
class SureOrCounted:
    """Every candidate more probable than ``value`` where these are at least ``counts``, else the ``counts`` most probable (LLaDA2, arXiv
    2512.15745). So ``counts`` is the least that it takes, and a block may end before its schedule. Wants ``LogProbability`` scores.
    """

    value: float

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        sure_B = (block & (proposal.score.exp() > self.value)).sum(1)
        return move(first(proposal.score, block, torch.maximum(counts, sure_B)))


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The longest run of the surest n candidates whose n-th probability is at least 1 - factor / (n + 1), one at least.

    Fast-dLLM's rule without a threshold to tune (Wu et al. 2025; spec 4.1). Wants ``LogProbability`` scores.
    """

    factor: float = 1.0

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        p_BL = torch.where(block, proposal.score.exp(), 0.0).sort(dim=1, descending=True).values
        n_L = torch.arange(1, p_BL.shape[1] + 1, device=p_BL.device)
        run_B = (p_BL >= 1 - self.factor / (n_L + 1)).long().cumprod(1).sum(1)
        return move(first(proposal.score, block, torch.minimum(counts, run_B.clamp(min=1))))


@dataclass(frozen=True, kw_only=True)
class PerSpan:
    """A selection inside each writable span on its own; the row's count is divided among the spans by the masked tokens that each has left.

    With boxes of four tokens and 4 / steps a step, every box of a row advances alike and all finish together (spec 4.7).
    """

    selection: Selection

    @property
    def foreseeable(self) -> bool:
        return isinstance(self.selection, Foreseeable) and self.selection.foreseeable

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        parts = [wished(self.selection, batch, w, n) for w, n in _shares(batch, block, counts)]
        some = [part for part in parts if part is not None]
        return torch.stack(some).any(0) if some else None

    def extra_steps(self, tokens: int, planned: int) -> int | None:
        return self.selection.extra_steps(tokens, planned) if isinstance(self.selection, Bounded) else None

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        moves = [self.selection(batch, proposal, w, n, progress) for w, n in _shares(batch, block, counts)]
        unmask, remask, redraw = (
            torch.stack([getattr(m, f) for m in moves]).any(0) for f in ("unmask", "remask", "redraw")
        )
        return Move(unmask=unmask, remask=remask, redraw=redraw)


def _others(layout: SpanLayout, size: int) -> Tensor | None:
    """Tokens of writable spans of another size, [B, L]; None where there are none."""
    others_BL = (layout.span >= 0) & (layout.size != size)
    return others_BL if bool(others_BL.any()) else None


def move(unmask_BL: Tensor) -> Move:
    """A move that only unmasks."""
    nothing = torch.zeros_like(unmask_BL)
    return Move(unmask=unmask_BL, remask=nothing, redraw=nothing)


def first(score_BL: Tensor, block_BL: Tensor, counts_B: Tensor) -> Tensor:
    """The ``counts`` best scores of each row inside the block, earlier tokens first where equal; [B, L] bool."""
    finite_BL = torch.nan_to_num(score_BL, nan=-1e30, posinf=1e30, neginf=-1e30)
    order_BL = torch.where(block_BL, finite_BL, -torch.inf).argsort(dim=1, descending=True, stable=True)
    counts, left = remembered("numbers", counts_B), counts_told(block_BL)
    if counts is not None and len(set(counts)) == 1:
        found_BL = torch.zeros_like(block_BL).scatter_(1, order_BL[:, : counts[0]], True) & block_BL
    else:
        rank_BL, number_L = torch.empty_like(order_BL), torch.arange(order_BL.shape[1], device=order_BL.device)
        rank_BL.scatter_(1, order_BL, number_L.expand_as(order_BL))
        found_BL = block_BL & (rank_BL < counts_B[:, None])
    if counts is not None and left is not None:
        tell_counts(found_BL, tuple(map(min, counts, left)))
    return found_BL


def _noisy(batch: Batch, score_BL: Tensor, temperature: Temperature, progress: Progress) -> Tensor:
    if is_zero(temperature, progress):
        return score_BL
    return score_BL + _noise(batch, of_rows(temperature, progress))


def _noise(batch: Batch, temperatures: Sequence[float]) -> Tensor:
    """Gumbel noise for every masked token of each row, from that row's own generator, times the row's temperature; 0 elsewhere. [B, L]"""
    live_BL = still_masked(batch)
    noise_N = gumbel(rows(batch, "select"), left(batch), (), torch.float32, temperatures, batch.device)
    return torch.zeros(live_BL.shape, device=batch.device).masked_scatter(live_BL, noise_N)


@functools.lru_cache(maxsize=64)
def _places(order: tuple[int, ...]) -> Tensor:
    """The inverse permutation: the place of each token in the order."""
    return torch.tensor(order).argsort()


def _shares(batch: Batch, block_BL: Tensor, counts_B: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(block, counts) of each span: shares by tokens left, the largest remainders rounded up, earlier spans first."""
    layout = writable_spans(batch)
    blocks = [block_BL & (layout.span == s) for s in range(layout.most)]
    left_BS = torch.stack([w.sum(1) for w in blocks], dim=1)
    exact_BS = counts_B[:, None] * left_BS  # in units of 1 / total, so that nothing is rounded
    total_B1 = left_BS.sum(1, keepdim=True).clamp(min=1)
    share_BS, rest_BS = exact_BS // total_B1, exact_BS % total_B1
    missing_B = counts_B - share_BS.sum(1)
    share_BS = share_BS + first(rest_BS.float(), left_BS > share_BS, missing_B)
    return list(zip(blocks, share_BS.unbind(1), strict=True))
