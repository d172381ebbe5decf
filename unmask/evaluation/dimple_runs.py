"""The measured runs of Dimple's sampler: their settings as our samplers, by the name of their arrays.

Public idea: ``RUNS``: name -> ``DimpleRun``; each was measured with and without the prompt's keys and values kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.protocols import Selection
from unmask.sampling.aligned import Aligned, Leftmost
from unmask.sampling.cache import NoCache, PromptCache
from unmask.sampling.reverse_time import OnGrid
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import first, move
from unmask.sampling.token_sampler import Entropy, Margin, Probability, Score, Truncated
from unmask.sequence import Batch
from unmask.step import Move, Progress, Proposal

_TOP_K = 50  # in effect where none is given (spec 7)


@dataclass(frozen=True, kw_only=True)
class DimpleRun:
    """``new``: tokens of the answer · ``prompt``: "gen", "vqa" or "prior" (some of the answer is given)."""

    selection: Selection
    score: Score
    new: int = 16
    prompt: str = "gen"
    top_p: float = 1.0
    original: bool = True

    def sampler(self, *, cached: bool) -> Sampler:
        return Sampler(
            schedule=Fixed(each=2**31),  # the selection says how many
            token_sampler=Truncated(top_k=_TOP_K, top_p=self.top_p, score=self.score, original=self.original),
            selection=self.selection,
            cache=PromptCache() if cached else NoCache(),
        )


@dataclass(frozen=True, kw_only=True)
class Together:
    """A selection over the masked tokens of all rows as if they were one, as the released code has it for a batch."""

    selection: Selection

    def extra_steps(self, tokens: int, planned: int) -> int | None:
        own = getattr(self.selection, "extra_steps", None)
        return own(tokens, planned) if own else None

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        one = slice(0, 1)
        flat = {name: getattr(batch, name).view(1, -1) for name in ("region", "score", "masked", "ids")}
        joined = replace(batch.row(0), **flat, valid=batch.valid.view(1, -1), writable=batch.writable.view(1, -1))
        told = Proposal(ids=proposal.ids.view(1, -1), score=proposal.score.view(1, -1))
        at = Progress(number=progress.number[one], of=progress.of[one], length=block.numel())
        taken = self.selection(joined, told, block.view(1, -1), counts.sum()[None], at)
        return Move(**{name: getattr(taken, name).view_as(block) for name in ("unmask", "remask", "redraw")})


@dataclass(kw_only=True)
class InOrders:
    """Measured random orders of the masked tokens, one for each step that asks."""

    orders: Tensor
    at: int = 0

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        places = block.flatten().nonzero().flatten()
        order = self.orders[self.at][: len(places)].to(block.device)
        self.at += 1
        rank = torch.zeros(block.numel(), device=block.device)
        rank[places[order]] = torch.arange(len(places), 0, -1, device=block.device, dtype=rank.dtype)
        return move(first(rank.view_as(block), block, counts))


def runs(mask_id: int) -> Iterator[tuple[str, DimpleRun]]:
    """Every run that is measured with and without the cache, but for the batch of two rows."""
    p, m, e = Probability(), Margin(), Entropy()

    def dim(
        score: Score, steps: int = 16, threshold: float = 0.0, order: Selection | None = None, **more: object
    ) -> DimpleRun:
        aligned = Aligned(steps=steps, threshold=threshold, unwritten=mask_id)
        return DimpleRun(selection=replace(aligned, selection=order) if order else aligned, score=score, **more)  # type: ignore[arg-type]

    def dream(score: Score, steps: int = 16) -> DimpleRun:
        return DimpleRun(selection=OnGrid(steps=steps, unwritten=mask_id), score=score, original=False)

    for name, score in (("maskgit_plus", p), ("topk_margin", m), ("entropy", e)):
        yield f"dim.{name}", dim(score)
        yield f"dream.{name}", dream(score)
    yield "dim.autoregressive", dim(p, order=Leftmost())
    yield "dream.autoregressive", DimpleRun(selection=Leftmost(), score=p, original=False)
    yield "dim.steps6", dim(e, 6)
    yield "dream.steps6", dream(e, 6)
    for threshold in (0.95, 0.5, 0.2):
        yield f"dim.confident_{threshold}", dim(p, threshold=threshold)
    yield "dim.confident_entropy", dim(e, 8, 0.3)
    yield "dim.confident_ar", dim(p, threshold=0.3, order=Leftmost())
    yield "dim.filtered", dim(p, 8, top_p=0.8, original=False)
    yield "prior", dim(p, threshold=0.4, prompt="prior")
    yield "vqa.confident", dim(p, threshold=0.3, prompt="vqa")
    yield "vqa.entropy", dim(e, 8, prompt="vqa")
