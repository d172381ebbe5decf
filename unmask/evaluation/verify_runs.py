"""What parity checks of samplers need: given noise in place of random numbers, and a record of which token was unmasked at which step.

Public idea: ``record(net, sequence, sampler, device) -> Trace``; ``GivenCodes`` and ``GivenNoise`` take the places of a token sampler and a
selection.

Shapes: S steps · N tokens of a span · V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic
from unmask.protocols import Denoiser, TokenSampler
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import first, move
from unmask.sampling.token_sampler import LogProbability
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.step import Move, Prediction, Progress, Proposal, Query
from unmask.tokens.text import Text


def prompts_of(folder: Path) -> Mapping[str, object]:
    """The prompts that the arrays were measured on, JSON in the metadata of the file. CheckpointError if they are missing."""
    file = folder / "expected.safetensors"
    with safe_open(str(file), "pt") as opened:
        said = (opened.metadata() or {}).get("prompts", "")
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} has no prompts in its metadata; was it made for this version?")
    return found


@contextmanager
def complete(folder: Path) -> Iterator[None]:
    """CheckpointError for an array or prompt that is missing from the measured file of ``folder``."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{folder / 'expected.safetensors'} lacks {error.args[0]}; is it complete?") from error


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The arrays of expected.safetensors, and the prompts that they were measured on (JSON in the file's metadata)."""

    arrays: dict[str, Tensor]
    prompts: Mapping[str, object]
    text: Text


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A token sampler that records the predictions it gets, which guidance has merged."""

    token_sampler: TokenSampler
    predictions: list[Prediction] = field(default_factory=list)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        self.predictions.append(prediction)
        return self.token_sampler(batch, prediction, progress)


@dataclass(frozen=True, kw_only=True)
class GivenCodes:
    """Codes by the inverse of the cumulative probabilities at ``uniform [S, N]``; N numbers the codes of the row."""

    uniform: Tensor

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        scored = prediction.scored[Kind.CODE]
        logits_NV = prediction.logits(Kind.CODE).float()
        places = place_of_codes(batch)[scored.at]
        u_N = self.uniform[int(progress.number[0])].to(logits_NV.device)[places]
        cumulative_NV = logits_NV.double().softmax(1).cumsum(1)
        ids_N = (cumulative_NV / cumulative_NV[:, -1:] <= u_N[:, None]).sum(1).clamp(max=logits_NV.shape[1] - 1)
        ids, score = batch.ids.flatten().clone(), torch.full(batch.ids.shape, -torch.inf, device=batch.device).flatten()
        ids[scored.at], score[scored.at] = ids_N, LogProbability()(logits_NV, ids_N)
        return Proposal(ids=ids.view_as(batch.ids), score=score.view_as(batch.ids))


@dataclass(frozen=True, kw_only=True)
class GivenNoise:
    """The highest score + temperature * ``gumbel [S, N]``; N numbers the codes of the row."""

    gumbel: Tensor
    temperature: Callable[[Progress], Tensor]

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move:
        noise = self.gumbel[int(progress.number[0])].to(batch.device)[place_of_codes(batch)].view_as(batch.ids)
        return move(first(proposal.score + self.temperature(progress)[:, None] * noise, block, counts))


def place_of_codes(batch: Batch) -> Tensor:
    """The number of each token among the writable codes of the one row, flat; other tokens get any number in range."""
    codes = (batch.kind == Kind.CODE) & batch.writable
    return (codes.flatten().long().cumsum(0) - 1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A finished run of one row. ``order [L]``: the step at which each token was unmasked, -1: it was given · ``masked_after [steps]``."""

    sequence: Sequence
    batch: Batch
    order: Tensor
    masked_after: Tensor
    queries: list[Query]
    merged: list[Prediction]

    def of(self, name: str, values: Tensor) -> Tensor:
        """The part of ``values [L]`` in the spans of that name."""
        return torch.cat([values[s.start : s.stop] for s in self.sequence.spans if s.name == name])

    def until_last(self, steps: int) -> Tensor:
        """The order with what was unmasked last numbered as step ``steps`` - 1, however many steps were needed."""
        return torch.where(self.order == self.order.max(), steps - 1, self.order)


@torch.no_grad()
def record(net: Denoiser, sequence: Sequence, sampler: Sampler, device: torch.device) -> Trace:
    seen = Seen(token_sampler=sampler.token_sampler)
    run = replace(sampler, token_sampler=seen).start(collate([sequence], [0]).to(device))
    masked, queries, left = run.batch.masked[0], list[Query](), list[int]()
    order = torch.full_like(masked, -1, dtype=torch.long)
    while (query := run.query) is not None:
        queries.append(query)
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
        order[masked & ~run.batch.masked[0]] = len(queries) - 1
        masked = run.batch.masked[0]
        left.append(int(masked.sum()))
    return Trace(
        sequence=sequence,
        batch=run.batch,
        order=order,
        masked_after=torch.tensor(left, device=device),
        queries=queries,
        merged=seen.predictions,
    )


@dataclass(frozen=True, kw_only=True)
class PublishedText:
    """LLaDA's loop as MMaDA and Lumina-DiMOO released it, greedy: any id may be written, the mask as well, and such a token stays masked.

    For parity alone: the samplers that serve users write no mask, and then both loops are equal. ``steps``: of each block.
    """

    block: int
    steps: int

    @torch.no_grad()
    def run(self, net: Elastic, row: Sequence, *, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and the step of each token of the answer. ``scale``: of guidance, whose second view has masks in place of the prompt."""
        batch, span = collate([row], [0]).to(device), row.span("answer")
        view = batch.drop_tokens(~batch.writable, net.mask_id)
        ids, masked, order = batch.ids[0].clone(), batch.masked[0].clone(), torch.full_like(batch.ids[0], -1)
        number = 0
        for start in range(span.start, span.stop, self.block):
            stop = min(start + self.block, span.stop)
            for count in Equal(steps=self.steps).counts(int(masked[start:stop].sum())):
                now = [
                    b.replace(ids=torch.where(batch.writable, ids, b.ids), masked=masked[None]) for b in (batch, view)
                ]
                logits = net(now[0], predict=batch.writable).logits(Kind.TEXT).double()
                if scale:
                    other = net(now[1], predict=batch.writable).logits(Kind.TEXT).double()
                    logits = other + (scale + 1) * (logits - other)
                found, best = logits.softmax(1).max(1)[0], logits.argmax(1)
                open_ = masked[span.start : span.stop] & (torch.arange(len(span), device=device) < stop - span.start)
                taken = found.masked_fill(~open_, -torch.inf).topk(min(count, int(open_.sum()))).indices
                ids[span.start + taken], masked[span.start + taken] = best[taken], best[taken] == net.mask_id
                order[span.start + taken] = number
                number += 1
        part = slice(span.start, span.stop)
        return ids[part].masked_fill(masked[part], net.mask_id), order[part]
