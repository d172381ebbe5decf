"""From losses to updates of the weights.

Public idea: ``Learner(...).learn(first, end)`` takes the source batches ``first..end`` and yields one ``Update`` for each loss that
the objective yields of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmask.objectives.masked import Together
from unmask.objectives.passes import Passes
from unmask.recipe import Recipe
from unmask.rng import generator
from unmask.sequence import Batch
from unmask.step import Loss
from unmask.training.device import move
from unmask.training.optim import Masters, NotFinite, rate
from unmask.training.parallel import Place
from unmask.training.replicated import Replicated
from unmask.training.sharded import Sharded, agree


def losses(made: Loss | Iterable[Loss]) -> Iterator[Loss]:
    """Every loss of one batch, in order. Each is one update of the weights.

    TypeError where the objective returned neither a ``Loss`` nor something that yields them.
    """
    if isinstance(made, Loss):
        yield made
        return
    if not isinstance(made, Iterable):
        raise TypeError(f"an objective returns a Loss or yields several, got {type(made).__name__}")
    for loss in made:
        if not isinstance(loss, Loss):
            raise TypeError(f"an objective returns a Loss or yields several, but it yielded {type(loss).__name__}")
        yield loss


def _on_cpu(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in terms.items()}


def weight(loss: Loss) -> int:
    """Weight of a batch among several that share an update: its counted tokens, or 1 where the objective counts none."""
    return sum(loss.counts.values()) if loss.counts else 1


def size(batch: object) -> int:
    """Positions of every ``Batch`` in what a source returned, elements of every other tensor. The work of a source's batches is about
    proportional to it.
    """
    if isinstance(batch, Batch):
        return int((batch.leader & batch.valid).sum())
    if isinstance(batch, Tensor):
        return batch.numel()
    if isinstance(batch, Passes):
        return sum(size(part.batch) for part in batch.passes)
    if isinstance(batch, dict):
        return sum(size(part) for part in batch.values())
    return sum(size(part) for part in batch) if isinstance(batch, tuple | list) else 0


def _one(loss: Loss) -> int:
    return 1


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update: ``terms`` and ``tokens`` of the loss of each source batch in it, and the gradient norm before clipping.

    ``skipped``: why the weights were left as they are; None for an update that was made.
    """

    terms: list[dict[str, Tensor]]
    tokens: int
    norm: float
    skipped: str | None = None


class Learner:
    """Updates a module's masters from a recipe's batches. ``updates``: number of updates so far, earlier runs of the folder included;
    ``skipped``: how many were skipped in a row · ``size``: of all batches so far (``size``) · ``waited``: seconds that the source
    took for them · ``rate_at``: step -> learning rate (None: that of the recipe's settings).
    """

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module,
        masters: Masters | Sharded,
        place: Place,
        device: torch.device,
        updates: int,
        skipped: int = 0,
        rate_at: Callable[[int], float] | None = None,
    ) -> None:
        if isinstance(masters, Sharded) and isinstance(recipe.objective, Together):
            # Which rows share a forward pass depends on the batch, but sharded processes must run the same passes.
            recipe = replace(recipe, objective=replace(recipe.objective, joined=False))
        steps = recipe.training.steps
        self.rate_at = rate_at or (lambda step: rate(recipe.optim, step, steps))
        self.recipe, self.module, self.masters = recipe, module, masters
        self.place, self.device, self.updates, self.skipped = place, device, updates, skipped
        self.size, self.waited = 0, 0.0
        self.replicated = None
        if place.world > 1 and isinstance(masters, Masters):
            self.replicated = Replicated(module, masters)
        self.ended: set[int] = set()  # source batches that have no further loss

    def learn(self, first: int, end: int) -> Iterator[Update]:
        """Updates from the source batches ``first..end``: the k-th from the k-th loss of each of them.

        The gradients of several batches are averaged with the number of tokens in ``Loss.counts`` as weights. Where the loss is
        a mean over those tokens, the result is the gradient of the mean over all tokens of all batches, as if they were one
        large batch. A sum of several means (text and codes) keeps that property where their shares of the tokens are the same in
        every batch. A loss without counts has weight 1. The processes share the batches; the update is the same for any number of
        processes up to rounding, and its terms are those of all batches.
        """
        streams = {number: self._losses(number) for number in self.place.share(first, end)}
        lr = self.rate_at(end - 1)
        weigh = weight if end - first > 1 else _one
        self.ended = set()
        while len(self.ended) < len(streams) or self.place.world > 1:
            own = self._gather(streams, weigh)
            found = self.place.gather([(own, len(self.ended) < len(streams))])
            made = sorted((entry for entries, _ in found for entry in entries), key=lambda entry: entry[0])
            if not made:
                return
            terms, tokens = [found for _, found, _ in made], sum(count for *_, count in made)
            yield self._update(lr, terms, tokens)
            if not any(more for _, more in found):
                return

    def _gather(
        self, streams: Mapping[int, Iterator[Loss]], weigh: Callable[[Loss], float]
    ) -> list[tuple[int, dict[str, Tensor], int]]:
        """Gather the gradients of the next loss of each stream; (number, terms, tokens) of each."""
        made = []
        for left, (number, stream) in zip(reversed(range(len(streams))), streams.items(), strict=True):
            loss = self._take(stream, not left, weigh)
            if loss is None:
                self.ended.add(number)
                continue
            terms = {name: value.detach() for name, value in loss.terms.items()}
            made.append((number, terms if self.place.world == 1 else _on_cpu(terms), sum(loss.counts.values())))
        if not streams:
            self._take(iter(()), True, weigh)  # the others wait for this process
        return made

    def _take(self, stream: Iterator[Loss], last: bool, weigh: Callable[[Loss], float]) -> Loss | None:
        if self.replicated is not None:
            return self.replicated.take(stream, last, weigh)
        if (loss := next(stream, None)) is not None:
            self.masters.backward(loss.total, weigh(loss))
        return loss

    def _update(self, lr: float, terms: list[dict[str, Tensor]], tokens: int) -> Update:
        try:
            norm = self.masters.step(lr, self.updates, self.place.sum_)
        except NotFinite as error:
            return Update(terms=terms, tokens=tokens, norm=math.nan, skipped=self._skip(error, terms))
        self.updates += 1
        self.skipped = 0
        return Update(terms=terms, tokens=tokens, norm=norm)

    def _skip(self, error: NotFinite, terms: list[dict[str, Tensor]]) -> str:
        """Count a skipped update and say why. NotFinite where too many were skipped in a row."""
        self.skipped += 1
        bad = sorted({name for found in terms for name, value in found.items() if not math.isfinite(float(value))})
        why = f"{error} (loss {', '.join(bad)} is not finite either)" if bad else str(error)
        most = self.recipe.training.max_skipped
        if self.skipped > most:
            raise NotFinite(
                f"{why} at update {self.updates}, after {most} skipped in a row; the last checkpoint is intact: "
                "check the data, or continue from it with a smaller optim.lr and --allow-changes"
            ) from error
        return f"{why}; update {self.updates} is skipped, {self.skipped} of at most {most} in a row"

    def _losses(self, number: int) -> Iterator[Loss]:
        """Losses of one source batch, computed one at a time: one batch's graph is in memory at a time."""
        began = time.perf_counter()
        made = self.recipe.source(number)
        self.waited += time.perf_counter() - began
        self.size += size(made)
        batch = move(made, self.device)
        if isinstance(self.masters, Sharded):
            agree(batch)
        rng = generator("objective", self.recipe.training.seed, number)
        made = self.recipe.objective(self.module, batch, rng)
        if isinstance(made, Loss):
            self.ended.add(number)
        yield from losses(made)
