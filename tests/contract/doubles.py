"""Test doubles: parts that use what the protocols allow and no shipped part does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.models.fake import FakeDenoiser
from unmask.rng import rows
from unmask.sampling.selection import first
from unmask.sampling.spans import still_masked
from unmask.sampling.temperature import Progress
from unmask.sequence import Batch
from unmask.step import CachePlan, Move, Prediction, Proposal, Reuse, Scored


@dataclass(frozen=True, kw_only=True)
class Remasking:
    """Takes the surest candidates and masks ``rate`` random unmasked tokens of the row again, for ``extra`` steps.

    ``idle``: every second step of a row unmasks nothing.
    """

    rate: int = 1
    extra: int = 3
    idle: bool = False

    def extra_steps(self, tokens: int, planned: int) -> int:
        return self.extra

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        last_B = progress.number + 1 >= progress.of + self.extra
        wait_B = (progress.number % 2 == 0) & ~last_B if self.idle else torch.zeros_like(last_B)
        take_B = torch.where(last_B, block.sum(1), counts).masked_fill(wait_B, 0)
        unmask = first(proposal.score, block, take_B)
        # Random tokens of the row that are writable and unmasked; the run keeps what was given.
        other = batch.writable & batch.valid & ~batch.masked
        some = (progress.number > 0) & ~last_B & block.any(1)
        remask = first(_random(batch, "remask"), other, some.long() * self.rate)
        return Move(unmask=unmask, remask=remask, redraw=torch.zeros_like(unmask))


@dataclass(frozen=True, kw_only=True)
class SeesAll:
    """A token sampler that scores every writable token, unmasked ones too, and proposes the most probable id of each."""

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor:
        return batch.writable & batch.valid

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        ids, score = batch.ids.flatten().clone(), torch.full((batch.ids.numel(),), -torch.inf)
        for scored in prediction.scored.values():
            if scored.logits is not None:
                best = scored.logits.log_softmax(1).max(1)
                ids[scored.at], score[scored.at] = best.indices, best.values
        return Proposal(ids=ids.view_as(batch.ids), score=score.view_as(batch.ids))


@dataclass(frozen=True, kw_only=True)
class Redrawing:
    """Takes ``counts`` tokens in random order and redraws ``rate`` unmasked tokens of every row, finished rows too."""

    rate: int = 1

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        noise = _random(batch, "redraw")
        unmask = first(noise, block, counts)
        free = batch.writable & batch.valid & ~batch.masked
        redraw = first(noise, free, torch.full_like(counts, self.rate))
        return Move(unmask=unmask, remask=torch.zeros_like(unmask), redraw=redraw)


@dataclass(frozen=True, kw_only=True)
class CorrectingSteps:
    """Early stopping with ``steps`` correcting steps of a finished row; ``bound`` may be lower."""

    steps: int
    bound: int

    def __call__(self, batch: Batch) -> Batch:
        return batch

    def more(self, batch: Batch, extra: Tensor) -> Tensor:
        return extra < self.steps


@dataclass(frozen=True, kw_only=True)
class NextTokens:
    """A block schedule that looks at the row: block 0 is its next ``length`` masked tokens, 1 all behind."""

    length: int

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        live = still_masked(batch)
        return (live.long().cumsum(1) > self.length).long()


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """A block schedule whose later blocks depend on the ids unmasked so far: from the left or from the right."""

    length: int

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        live = still_masked(batch)
        odd = batch.ids.masked_fill(batch.masked | ~batch.writable | ~batch.valid, 0).sum(1) % 2 == 1
        left, right = live.long().cumsum(1), live.long().flip(1).cumsum(1).flip(1)
        done = (batch.writable & batch.valid & ~batch.masked).sum(1)
        rank = torch.where(odd[:, None], right, left)
        number = done[:, None] + (rank - 1).clamp(min=0) // self.length
        return number.masked_fill(~live, 0)


@dataclass(frozen=True, kw_only=True)
class Continuous:
    """A denoiser of tokens with values: hidden states alone for kind ``kind``, logits for the kinds of ``fake``.

    What it predicts depends on the ids and on the values of the unmasked tokens of the row.
    """

    kind: int
    channels: int
    fake: FakeDenoiser

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        predict = batch.masked if predict is None else predict
        values = torch.zeros(*predict.shape, self.channels) if batch.values is None else batch.values
        shown = (batch.valid & ~batch.masked)[..., None] * values
        place = torch.arange(1, predict.shape[1] + 1)
        number = (shown.sum(2) * place).round(decimals=4).sum(1)
        chosen = predict & (batch.kind == self.kind)
        flat = torch.arange(predict.numel()).view_as(predict)
        angle = number[:, None] + place + batch.ids.masked_fill(batch.masked | ~batch.valid, 0).sum(1, keepdim=True)
        hidden = torch.sin(angle[..., None] * torch.arange(1, self.channels + 1))
        scored = dict(self.fake(batch, predict=predict).scored)
        scored[self.kind] = Scored(at=flat[chosen], hidden=hidden[chosen])
        return Prediction(scored=scored)


@dataclass(frozen=True, kw_only=True)
class ReadsHidden:
    """A token sampler for continuous tokens: their value is the hidden state plus noise of the row; ``ids`` of other kinds by argmax."""

    kind: int

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        known, scored = SeesAll()(batch, prediction, progress), prediction.scored[self.kind]
        assert scored.hidden is not None
        channels = scored.hidden.shape[1]
        whole = torch.zeros(*batch.ids.shape, channels) if batch.values is None else batch.values
        values, score = whole.flatten(0, 1).clone(), known.score.flatten().clone()
        counts = torch.bincount(progress.row(scored.at), minlength=batch.rows).tolist()
        noise = [torch.randn(n, channels, generator=g) for g, n in zip(rows(batch, "values"), counts, strict=True)]
        values[scored.at] = scored.hidden + 0.1 * torch.cat(noise)
        score[scored.at] = -scored.hidden.square().sum(1)
        return Proposal(ids=known.ids, score=score.view_as(batch.ids), values=values.view_as(whole))


@dataclass(frozen=True, kw_only=True)
class OnlyWhatIsNeeded:
    """A cache that leaves out masked tokens that are not scored now: neither computed nor held (Sparse-LaViDa, arXiv 2512.14008)."""

    @property
    def exact(self) -> bool:
        return True

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        clean = batch.valid & ~batch.masked & ~held
        return CachePlan(compute=clean | predict, keep=clean)


@dataclass(frozen=True, kw_only=True)
class Everything:
    """A cache that holds all that it computes: no later change is allowed for."""

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        compute = batch.valid & ~held
        return CachePlan(compute=compute, keep=compute)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A denoiser that notes every query of another."""

    model: object
    queries: list[tuple[Batch, Tensor, Reuse | None]] = dataclasses.field(default_factory=list)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None and callable(self.model)
        self.queries.append((batch, predict, reuse))
        return self.model(batch, predict=predict, reuse=reuse)


def three_kinds(sizes: Mapping[int, int]) -> FakeDenoiser:
    """A denoiser of as many vocabularies as there are sizes."""
    return FakeDenoiser(sizes=sizes)


def _random(batch: Batch, purpose: str) -> Tensor:
    """One number per token, drawn from its row's generator, for the row's own tokens only, [B, L]."""
    noise = torch.zeros(batch.ids.shape)
    for row, generator in enumerate(rows(batch, purpose)):
        n = int(batch.valid[row].sum())
        noise[row, :n] = torch.rand(n, generator=generator)
    return noise
