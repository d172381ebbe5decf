"""The masked-diffusion objective (spec 3.1, 3.2): cross-entropy of masked tokens per kind of token, guidance dropout.

Public idea: ``Masked(...)(model, clean, rng) -> Loss``. The released code takes the plain mean over masked tokens (``Plain``), the
paper weights each token by 1/t (``InverseTime``). The default is ``Plain``, as in the released code.

Shapes: B rows · L tokens · N masked tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.objectives.joining import TokenLosses, apart, joined_losses, kind_name
from unmask.objectives.passes import Passes, score
from unmask.protocols import Corruption, Denoiser
from unmask.sequence import Batch
from unmask.step import Loss


class Weight(Protocol):
    """The loss of one kind of token, from that of ``each`` masked token and what ``per_token`` says of it, both [N].

    ``per_token(noisy)``: [B, L], the probability of being masked, or a number that depends on the row too (``objectives.importance``) ·
    ``tokens``: number of tokens of that kind that could have been masked.
    """

    def per_token(self, noisy: Batch) -> Tensor: ...
    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The mean over masked tokens."""

    def per_token(self, noisy: Batch) -> Tensor:
        return _probability(noisy)

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return each.mean()


@dataclass(frozen=True, kw_only=True)
class InverseTime:
    """1/t, the weight of the likelihood bound (LLaDA eq. 3): with ``Uniform`` times the mean is at least -ln p(sequence) per token.

    The sum over masked tokens is divided by ``tokens``. A token that was masked only because its group had no masked token is not part of
    the bound (its probability is infinite). ``least``: the largest weight is 1 / least.
    """

    least: float = 1e-3

    def per_token(self, noisy: Batch) -> Tensor:
        return _probability(noisy)

    def __call__(self, each: Tensor, per_token: Tensor, tokens: int) -> Tensor:
        return (each / per_token.clamp(min=self.least)).sum() / tokens


def _probability(noisy: Batch) -> Tensor:
    assert noisy.weight is not None
    return noisy.weight


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """With probability ``rate`` a row loses these spans (they become the null embedding): the unconditional branch of guidance."""

    spans: frozenset[str]
    rate: float

    def __call__(self, batch: Batch, null_id: int, rng: torch.Generator) -> Batch:
        hit = (torch.rand(batch.rows, generator=rng) < self.rate).tolist()
        if not any(hit):
            return batch
        gone = torch.zeros_like(batch.masked)
        for row, table in enumerate(batch.span_table):
            for span in table if hit[row] else ():
                if span.name in self.spans:
                    gone[row, span.start : span.stop] = True
        return batch.drop_tokens(gone, null_id)


class MaskedModel(Denoiser, Protocol):
    """A denoiser with an embedding for masked and dropped tokens, and parameters to train."""

    mask_id: int

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Masks(Protocol):
    """What knows the id of the masked token and of the null embedding: a model, or a source that masks for it."""

    @property
    def mask_id(self) -> int: ...


class Scores(Protocol):
    """An objective with one loss for a batch."""

    def __call__(self, model: MaskedModel, batch: Batch, rng: torch.Generator, /) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Cross-entropy of the tokens that a corruption masks (or marks in ``Batch.target``).

    ``complementary``: train every row twice, with the mask and with its complement (LaViDa section 3.2). Each token then counts
    once, however the two masks divide them: a row with an empty complement has the same weight as others.
    """

    corruption: Corruption = Absorbing()
    weight: Weight = Plain()
    dropouts: tuple[Dropout, ...] = ()
    complementary: bool = False

    def __call__(self, model: MaskedModel, clean: Batch, rng: torch.Generator) -> Loss:
        return self._scored(model, self.views(model, clean, rng))

    def views(self, model: Masks, clean: Batch, rng: torch.Generator) -> tuple[Batch, ...]:
        """The masked batch and, where both are trained, its complement, with what the weight reads in ``Batch.weight``."""
        noisy = self.noisy(model, clean, rng)
        return self._weighted((noisy, complement(noisy)) if self.complementary else (noisy,))

    def noisy(self, model: Masks, clean: Batch, rng: torch.Generator) -> Batch:
        """The batch with masked tokens. Guidance dropout drops the condition of some rows, then the forward process draws times and masks
        tokens (eq. 1 of LLaDA).
        """
        for dropout in self.dropouts:
            clean = dropout(clean, model.mask_id, rng)
        return self.corruption.corrupt(clean, self.corruption.times(clean, rng), rng)

    def of(self, model: MaskedModel, *views: Batch) -> Loss:
        """The loss of batches with given masks, computed as if their rows formed one batch.

        A token therefore has the same weight in every view, even if another view has no masked token.
        """
        return self._scored(model, self._weighted(views))

    def _scored(self, model: MaskedModel, views: Sequence[Batch]) -> Loss:
        return self.weighed(model, views, apart(model, views))

    def _weighted(self, views: Sequence[Batch]) -> tuple[Batch, ...]:
        return tuple(view.replace(weight=self.weight.per_token(view)) for view in views)

    def weighed(self, model: MaskedModel, views: Sequence[Batch], losses: Sequence[TokenLosses]) -> Loss:
        """The loss, given that of each scored token in every view: a weighted mean for each kind (eq. 3)."""
        terms, counts = {}, {}
        for kind in sorted({kind for found in losses for kind in found}):
            parts = [found[kind] for found in losses if kind in found]
            each, per_token = (torch.cat(x) for x in zip(*parts, strict=True))
            if len(each):
                name = kind_name(kind)
                tokens = sum(int((_scorable(v) & (v.kind == kind)).sum()) for v in views)
                terms[name], counts[name] = self.weight(each, per_token, tokens), len(each)
        # A batch without a masked token has a zero gradient.
        total = torch.stack(list(terms.values())).sum() if terms else next(model.parameters()).sum() * 0
        return Loss(total=total, terms=terms, counts=counts)


def complement(noisy: Batch) -> Batch:
    """The complementary batch: tokens that ``noisy`` scores are clean, all others are masked, and the time is 1 - time."""
    assert noisy.clean is not None and noisy.weight is not None
    scored = noisy.masked if noisy.target is None else noisy.target
    return noisy.replace(
        ids=noisy.ids if noisy.target is None else torch.where(scored, noisy.clean, noisy.ids),
        masked=noisy.writable & noisy.valid & ~scored,
        target=None,
        weight=1 - noisy.weight,
        time=None if noisy.time is None else 1 - noisy.time,
    )


def _scorable(batch: Batch) -> Tensor:
    """Tokens that can be scored, [B, L]: writable tokens and, if set, ``Batch.target``."""
    open_BL = batch.writable & batch.valid
    return open_BL if batch.target is None else open_BL | batch.target


@dataclass(frozen=True, kw_only=True)
class Together:
    """Several tasks in one step: {name: batch} -> the weighted sum of their losses; terms are named ``task.term``.

    ``joined``: rows of different ``Masked`` tasks share forward passes (``joining``); otherwise each task has its own, which is slower and
    equal up to rounding. Batches that are masked already (``passes.Masking``) are scored as they are.
    """

    objectives: tuple[tuple[str, Scores, float], ...]
    joined: bool = True

    def __call__(self, model: MaskedModel, batches: dict[str, Batch] | Passes, rng: torch.Generator) -> Loss:
        if isinstance(batches, Passes):
            return score(model, batches)
        tasks = [(name, task, weight) for name, task, weight in self.objectives if name in batches]
        if not tasks:
            raise ValueError(f"no batch for any of {[n for n, _, _ in self.objectives]}; got {list(batches)}")
        # 1. Every task drops and masks its own rows, in order.
        views = {n: task.views(model, batches[n], rng) for n, task, _ in tasks if isinstance(task, Masked)}
        # 2. Forward passes over the rows of all of them.
        found = iter((joined_losses if self.joined else apart)(model, [view for own in views.values() for view in own]))
        # 3. The loss of each task, from its own tokens.
        total, terms, counts = torch.zeros((), device=next(iter(batches.values())).device), {}, {}
        for name, task, weight in tasks:
            if isinstance(task, Masked):
                loss = task.weighed(model, views[name], [next(found) for _ in views[name]])
            else:
                loss = task(model, batches[name], rng)
            total = total + loss.total * weight
            terms |= {f"{name}.{k}": v for k, v in loss.terms.items()}
            counts |= {f"{name}.{k}": v for k, v in loss.counts.items()}
        return Loss(total=total, terms=terms, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """{name: batch} -> one mean over the masked tokens of all tasks, so that a task counts by how many of them it has (Lumina-DiMOO, arXiv
    2510.06308, as released). The weight is that of the first task · ``others``: the objective of all other batches, which is added.
    """

    objectives: tuple[tuple[str, Masked], ...]
    others: Together | None = None

    def __call__(self, model: MaskedModel, batches: dict[str, Batch], rng: torch.Generator) -> Loss:
        tasks = [(name, task) for name, task in self.objectives if name in batches]
        if not tasks:
            raise ValueError(f"no batch for any of {[n for n, _ in self.objectives]}; got {list(batches)}")
        views = [view for name, task in tasks for view in task.views(model, batches[name], rng)]
        loss = self.of(model, *views)
        rest = {name: batch for name, batch in batches.items() if name not in dict(self.objectives)}
        if self.others is None or not rest:
            return loss
        more = self.others(model, rest, rng)
        return Loss(total=loss.total + more.total, terms=loss.terms | more.terms, counts=loss.counts | more.counts)

    def of(self, model: MaskedModel, *views: Batch) -> Loss:
        """The mean over the masked tokens of views as ``Masked.views`` makes them."""
        return self.objectives[0][1].weighed(model, views, joined_losses(model, views))
