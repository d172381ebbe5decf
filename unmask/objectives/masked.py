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
    """The mean loss of one kind of token, from ``each`` masked token's loss and ``probability`` of being masked, both [N].

    ``tokens``: number of tokens of that kind that could have been masked.
    """

    def __call__(self, each: Tensor, probability: Tensor, tokens: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The mean over masked tokens."""

    def __call__(self, each: Tensor, probability: Tensor, tokens: int) -> Tensor:
        return each.mean()


@dataclass(frozen=True, kw_only=True)
class InverseTime:
    """1/t, the weight of the likelihood bound (LLaDA eq. 3): with ``Uniform`` times the mean is at least -ln p(sequence) per token.

    The sum over masked tokens is divided by ``tokens``. A token that was masked only because its group had no masked token is not part of
    the bound (its probability is infinite). ``least``: the largest weight is 1 / least.
    """

    least: float = 1e-3

    def __call__(self, each: Tensor, probability: Tensor, tokens: int) -> Tensor:
        return (each / probability.clamp(min=self.least)).sum() / tokens


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
        return self.of(model, *self.views(model, clean, rng))

    def views(self, model: Masks, clean: Batch, rng: torch.Generator) -> tuple[Batch, ...]:
        """The masked batch and, where both are trained, its complement."""
        noisy = self.noisy(model, clean, rng)
        return (noisy, complement(noisy)) if self.complementary else (noisy,)

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
        return self.weighed(model, views, apart(model, views))

    def weighed(self, model: MaskedModel, views: Sequence[Batch], losses: Sequence[TokenLosses]) -> Loss:
        """The loss, given that of each scored token in every view: a weighted mean for each kind (eq. 3)."""
        terms, counts = {}, {}
        for kind in sorted({kind for found in losses for kind in found}):
            parts = [found[kind] for found in losses if kind in found]
            each, probability = (torch.cat(x) for x in zip(*parts, strict=True))
            if len(each):
                name = kind_name(kind)
                tokens = sum(int((_scorable(v) & (v.kind == kind)).sum()) for v in views)
                terms[name], counts[name] = self.weight(each, probability, tokens), len(each)
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
