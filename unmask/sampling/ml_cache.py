"""A cache that computes the least certain tokens alone (ML-Cache of Lumina-DiMOO, arXiv 2510.06308).

Public idea: ``MLCache()`` as the cache of a sampler. Between full steps only the tokens with the lowest best logit are computed, given ones
too; all others lend keys, values and logits of an earlier step. Approximate: what is lent may be that of a token that was masked then.

Shapes: B rows · L tokens · N tokens scored · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.sequence import Batch, Kind
from unmask.step import CachePlan, Prediction, Progress, Scored, State

# Logits so close are ties, as those of a view in which everything is masked: rounding, and so the rest of a batch, must not divide them.
_TIE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What a view lends besides its state. ``best [B, L]``: the best logit of every token, -inf where none was scored · ``known [B, L]``:
    the tokens whose logits are in ``scored``.
    """

    best: Tensor
    known: Tensor
    scored: Mapping[int, Scored]


@dataclass(frozen=True, kw_only=True)
class MLCache:
    """``ratio``: share of the tokens that a step between full ones leaves out · ``warmup``: share of the steps that are full first ·
    ``interval``: steps from one full step to the next · ``codes``: ids of a vocabulary that text and codes share (first, last + 1), in
    which the best logit of a text token is sought; None: they share none, and only tokens of the kinds that a row unmasks are compared. The
    released values are the defaults.
    """

    ratio: float = 0.9
    warmup: float = 0.3
    interval: int = 5
    codes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("warmup", self.warmup)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a share, got {value}; give a number from 0 to 1")
        if self.interval < 1:
            raise ValueError(f"interval counts steps, got {self.interval}; 1 makes every step full")

    @property
    def exact(self) -> bool:
        return False

    def full(self, progress: Progress) -> Tensor:
        """The rows that compute everything at a step, [B]."""
        first_B = (progress.of * self.warmup).long()
        return (progress.number <= first_B) | ((progress.number - first_B) % self.interval == 0)

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        compute_BL = batch.valid & (self.full(progress)[:, None] | ~held | predict)
        return CachePlan(compute=compute_BL, keep=compute_BL)

    def to_score(self, batch: Batch, wanted: Tensor, held: Tensor, lent: Lent | None, progress: Progress) -> Tensor:
        """The tokens of a view that are computed and scored, [B, L]: those that are not held, and wanted ones without logits."""
        known_BL = torch.zeros_like(held) if lent is None else lent.known
        compute_BL = batch.valid & (self.full(progress)[:, None] | ~held | (wanted & ~known_BL))
        return compute_BL & self._compared(batch, wanted)

    def completed(self, view: Prediction, lent: Lent | None, wanted: Tensor) -> tuple[Prediction, Lent]:
        """A view's prediction of the wanted tokens, some of them from an earlier step, and what the view lends now. Its state no longer
        holds the tokens that the next step computes.
        """
        best_BL = torch.full(wanted.shape, -torch.inf, device=wanted.device) if lent is None else lent.best.clone()
        for kind, fresh in view.scored.items():
            if len(fresh.at):
                best_BL.view(-1)[fresh.at] = self._best(kind, _logits(fresh))
        old = {} if lent is None else lent.scored
        scored = {kind: _merged(view.scored.get(kind), old.get(kind), wanted) for kind in {*view.scored, *old}}
        known_BL = torch.zeros_like(wanted)
        for one in scored.values():
            known_BL.view(-1)[one.at] = True
        state = view.state and _without(view.state, self._least(best_BL))
        return Prediction(scored=scored, state=state), Lent(best=best_BL, known=known_BL, scored=scored)

    def _compared(self, batch: Batch, wanted: Tensor) -> Tensor:
        """Text and codes; where they have no ids in common only those of the kinds that the row wants, which are comparable."""
        kinds = [batch.kind == kind for kind in (Kind.TEXT, Kind.CODE)]
        if self.codes is not None:
            return kinds[0] | kinds[1]
        text_BL, code_BL = (here_BL & (wanted & here_BL).any(1, keepdim=True) for here_BL in kinds)
        return text_BL | code_BL

    def _best(self, kind: int, logits_NV: Tensor) -> Tensor:
        if kind == Kind.TEXT and self.codes is not None:
            logits_NV = logits_NV[:, self.codes[0] : self.codes[1]]
        return logits_NV.amax(1).float()

    def _least(self, best_BL: Tensor) -> Tensor:
        """The tokens of each row with the lowest best logits, [B, L]."""
        least_BL = torch.zeros_like(best_BL, dtype=torch.bool)
        for row, best_L in enumerate(best_BL):
            some = best_L[best_L > -torch.inf]
            if len(some):
                least_BL[row] = best_L <= torch.quantile(some, 1 - self.ratio) + _TIE
        return least_BL


def _logits(scored: Scored) -> Tensor:
    if scored.logits is None:
        raise ValueError("ML-Cache compares logits, and these tokens have none; use another cache")
    return scored.logits


def _merged(fresh: Scored | None, old: Scored | None, wanted_BL: Tensor) -> Scored:
    """The wanted tokens of one kind: as scored now, or else as lent."""
    if fresh is None:
        assert old is not None
        fresh = Scored(at=old.at[:0], logits=_logits(old)[:0])
    wanted = wanted_BL.flatten()
    take = wanted[fresh.at]
    at, logits = fresh.at[take], _logits(fresh)[take]
    if old is not None and len(old.at):
        now = torch.zeros_like(wanted)
        now[fresh.at] = True
        kept = wanted[old.at] & ~now[old.at]
        at, order = torch.cat([at, old.at[kept]]).sort()
        logits = torch.cat([logits, _logits(old)[kept]])[order]
    return Scored(at=at, logits=logits)


def _without(state: State, gone_BL: Tensor) -> State:
    return dataclasses.replace(state, held=state.held & ~gone_BL)
