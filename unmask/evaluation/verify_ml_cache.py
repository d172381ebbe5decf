"""Parity of ML-Cache (Lumina-DiMOO, arXiv 2510.06308): a drawing in which most steps compute only the least certain places.

Public idea: ``MLCache(..).sample(net, batch, sampler, steps)``, for one row. Between full passes each view of guidance computes the places
with the lowest best code logit, of all of its row; the others lend keys, values and logits. Approximate: the drawing is another one.

Shapes: B = 1 row · L tokens · P places of a view · C codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.shared_vocabulary import CodeRows
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Progress, Reuse, Scored, State, apply


@dataclass(kw_only=True)
class _View:
    """What a view remembers: keys and values, and the logits [L, C] of every place. ``computed``: the places of each step, [P]."""

    state: State | None = None
    logits: Tensor | None = None
    chosen: Tensor | None = None
    computed: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class MLCache:
    """``ratio``: places that a partial step leaves out · ``warmup``: share of the steps that are full first · ``interval``: steps from one
    full pass to the next.
    """

    ratio: float = 0.9
    warmup: float = 0.3
    interval: int = 5

    def full(self, step: int, steps: int) -> bool:
        first = int(steps * self.warmup)
        return step <= first or (step - first) % self.interval == 0

    @torch.no_grad()
    def sample(
        self, net: Elastic, batch: Batch, sampler: Sampler, steps: int
    ) -> tuple[Batch, Tensor, list[list[Tensor]]]:
        """The finished batch, the step of each token [L] (-1: given), and the places that each view computed."""
        counts, views = sampler.schedule.counts(int(batch.masked.sum())), list[_View]()
        order, one = torch.full_like(batch.ids[0], -1), torch.ones(1, dtype=torch.long, device=batch.device)
        for step, count in enumerate(counts):
            progress = Progress(number=one * step, of=one * steps, length=batch.ids.shape[1])
            seen = sampler.guidance.views(batch, progress)
            views = views or [_View() for _ in seen]
            for view, own in zip(seen, views, strict=True):
                self._compute(net, view, own, full=self.full(step, steps))
            at = batch.masked.flatten().nonzero()[:, 0]
            found = [Prediction(scored={Kind.CODE: Scored(at=at, logits=_of(own)[at])}) for own in views]
            merged = sampler.guidance.merge(batch, found, progress)
            proposal = sampler.token_sampler(batch, merged, progress)
            move = sampler.selection(batch, proposal, batch.masked, one * count, progress)
            order[move.unmask[0]] = step
            for view, own in zip(seen, views, strict=True):
                least = _of(own).amax(1)[view.valid[0]]
                chosen = least <= torch.quantile(least, 1 - self.ratio)
                own.chosen = torch.zeros_like(view.valid).masked_scatter(view.valid, chosen)
            batch = apply(batch, move, proposal, one > 0)
        return batch, order, [own.computed for own in views]

    def _compute(self, net: Elastic, view: Batch, own: _View, *, full: bool) -> None:
        compute = view.valid if full or own.chosen is None else own.chosen
        own.computed.append(compute[view.valid])
        reuse = Reuse(compute=compute, keep=view.valid & compute, state=None if full else own.state)
        found, codes = net.hidden_states(view, predict=compute, reuse=reuse), net.config.codes
        head = CodeRows(head=net.text_head, first=net.config.first_code, codes=codes)
        logits = (
            net.embed.weight.new_zeros(view.ids.numel(), codes) if full or own.logits is None else own.logits.clone()
        )
        for scored in found.scored.values():
            if len(scored.at) and scored.hidden is not None:
                logits[scored.at] = head(scored.hidden)
        own.state, own.logits = found.state, logits


def _of(view: _View) -> Tensor:
    assert view.logits is not None
    return view.logits
