"""What flows in one step of the sampler or the trainer: queries, predictions, proposals, moves, losses.

Public idea: a ``Query`` asks the model to score tokens of a batch, a ``Prediction`` scores them by kind, a ``Proposal`` has a candidate for
each, a ``Move`` says which are taken, and ``apply`` writes them.

Letters: B rows, L tokens, N tokens scored, V vocabulary, D width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.sequence import ON_UNMASK, SHARED, Batch, Sequence, sequence_at


@dataclass(frozen=True, kw_only=True)
class State:
    """What a model keeps of a step for the next ones: keys and values by position, or whatever else it wants.

    ``held [B, L]``: the tokens that are in it · ``tensors``: by the model's own names, each [B, .., S, C], where S may be
    padded at the end.
    """

    held: Tensor
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, first: int, last: int) -> State:
        """The rows ``first .. last``."""
        return State(held=self.held[first:last], tensors={name: t[first:last] for name, t in self.tensors.items()})

    @staticmethod
    def stack(states: Items[State | None], rows: Items[int], length: int) -> State | None:
        """States of several batches one under the other, for ``length`` tokens; ``rows``: of each. None holds nothing.

        Only tensors that all states have are kept: a run that no longer scores text may hold more layers than another needs.
        """
        some = [s for s in states if s is not None]
        if not some:
            return None
        if len(states) == 1 and some[0].held.shape == (rows[0], length):
            return some[0]
        held = [
            some[0].held.new_zeros(n, length) if s is None else padded(s.held, length)
            for s, n in zip(states, rows, strict=True)
        ]
        tensors = {}
        for name in [name for name in some[0].tensors if all(name in s.tensors for s in some)]:
            most, shape = max(s.tensors[name].shape[-2] for s in some), some[0].tensors[name].shape
            tensors[name] = torch.cat(
                [
                    some[0].tensors[name].new_zeros(n, *shape[1:-2], most, shape[-1])
                    if s is None
                    else padded(s.tensors[name], most, dim=-2)
                    for s, n in zip(states, rows, strict=True)
                ]
            )
        return State(held=torch.cat(held), tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """What a model need not compute again. Three classes of tokens, all [B, L] bool: those in ``compute`` are computed, those of ``state``
    that are not lend what it holds, and the rest are absent: nobody reads them. ``keep``: the computed tokens that the next state holds.
    """

    compute: Tensor
    keep: Tensor
    state: State | None = None


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Two masks [B, L]: the tokens to compute at a step, and those of them that the next state holds."""

    compute: Tensor
    keep: Tensor


@dataclass(frozen=True, kw_only=True)
class Query:
    """The forward that a step needs: ``predict [B, L]``, the tokens of ``batch`` to score. Rows may be several views of the same request.

    ``reuse``: None where everything is computed and nothing kept.
    """

    batch: Batch
    predict: Tensor
    reuse: Reuse | None = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a model: hidden states [N, D] -> logits [N, V]. ``size``: V."""

    layer: Callable[[Tensor], Tensor]
    size: int

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Tokens of one kind. ``at [N]``: flat token numbers (row * L + token) ascending · ``logits [N, V]``, None for a kind without a
    vocabulary · ``hidden [N, D]``: what the head read, None where the model does not say · ``head``: what makes logits of ``hidden``,
    where the model left that to the caller (``protocols.Headless``).
    """

    at: Tensor
    logits: Tensor | None = None
    hidden: Tensor | None = None
    head: Head | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an observer gets after a step: ``number`` from 1 (0: before), ``of`` how many are planned (it may end sooner), ``batch``.

    ``sequence``: what its only row shows now, where that changes during the run (``live.py``) · ``patch``: changes that it follows.
    """

    number: int
    of: int
    batch: Batch
    sequence: Sequence | None = None
    patch: int = 0

    def row(self, sequence: Sequence, index: int) -> Sequence:
        """Row ``index``, which began as ``sequence``, as it stands."""
        return sequence_at(self.sequence or sequence, self.batch, index)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of the tokens to score, by kind; a kind of which none was asked may be missing. ``state``: for the next step."""

    scored: Mapping[int, Scored]
    state: State | None = None

    def logits(self, kind: int) -> Tensor:
        """Logits of a kind, [N, V]. KeyError names the kinds there are."""
        if kind not in self.scored or (logits := self.scored[kind].logits) is None:
            raise KeyError(f"no logits of kind {kind}; scored are {sorted(self.scored)}")
        return logits

    def with_logits(self, logits: Mapping[int, Tensor]) -> Prediction:
        """The same tokens with other logits for some kinds."""
        changed = {kind: dataclasses.replace(self.scored[kind], logits=value) for kind, value in logits.items()}
        return dataclasses.replace(self, scored={**self.scored, **changed})


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Candidate ids ``[B, L]`` and how sure each is: ``score [B, L]``, higher means more certain, -inf where nothing was scored.

    ``values [B, L, C]``: candidates of continuous tokens · ``entropy [B, L]``: of each scored token's prediction, in nats, where the
    token sampler computes it.
    """

    ids: Tensor
    score: Tensor
    values: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Move:
    """Which tokens change, each [B, L] bool: masked ones take the proposal, unmasked ones are masked again, or redrawn."""

    unmask: Tensor
    remask: Tensor
    redraw: Tensor


def apply(batch: Batch, move: Move, proposal: Proposal, live: Tensor) -> Batch:
    """The batch after a move: unmask and redraw with the proposal, remask; the clock of the rows in ``live [B]`` advances."""
    new = move.unmask | move.redraw
    values = batch.values
    if proposal.values is not None:  # a request of masked tokens alone has no values before its first step
        before = torch.zeros_like(proposal.values) if values is None else values
        values = torch.where(new[..., None], proposal.values, before)
    score = batch.score
    if score is not None:
        score = torch.where(new, proposal.score, score).masked_fill(move.remask, -torch.inf)
    return batch.replace(
        ids=torch.where(new, proposal.ids, batch.ids),
        values=values,
        score=score,
        masked=(batch.masked & ~move.unmask) | move.remask,
        clock=batch.clock + live,
        **_stamped(batch, move.unmask),
    )


def unmasked(batch: Batch, unmask_BL: Tensor, proposal: Proposal, clock_B: Tensor) -> Batch:
    """As ``apply`` for a move that only unmasks masked tokens, in a batch whose orders do not change; ``clock``: after the move."""
    changes: dict[str, Tensor] = {}
    if proposal.values is not None:
        before = torch.zeros_like(proposal.values) if batch.values is None else batch.values
        changes["values"] = torch.where(unmask_BL[..., None], proposal.values, before)
    if batch.score is not None:
        changes["score"] = torch.where(unmask_BL, proposal.score, batch.score)
    ids = torch.where(unmask_BL, proposal.ids, batch.ids)
    return batch.replace(ids=ids, masked=batch.masked ^ unmask_BL, clock=clock_B, **changes)


def _stamped(batch: Batch, unmasked_BL: Tensor) -> dict[str, Tensor]:
    """The order after tokens were unmasked, where unmasking sets any."""
    if not batch.stamps:
        return {}
    stamped_BL = unmasked_BL & (batch.order == ON_UNMASK)
    return {"order": torch.where(stamped_BL, batch.clock[:, None] + 1, batch.order)}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where every row of a sampler run stands. Rows may need different numbers of steps; sampling is batch-invariant.

    ``number [B]``: step of each row in its current block, from 0 · ``of [B]``: how many its schedule planned · ``length``: L. In correcting
    steps, ``number`` counts those and ``of`` is their bound. ``known``: (number, of) of every row, for whoever made the tensors from them.
    """

    number: Tensor
    of: Tensor
    length: int
    known: tuple[tuple[int, int], ...] | None = None

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(number, of) of every row. Waits for the device where they are not ``known``."""
        if self.known is not None:
            return self.known
        return tuple(zip(self.number.tolist(), self.of.tolist(), strict=True))

    @property
    def fraction(self) -> Tensor:
        """[B] float: 0 at the first step, 1 at the last (0 where there is one step alone)."""
        return (self.number / (self.of - 1).clamp(min=1)).clamp(max=1.0).float()

    def row(self, flat_N: Tensor) -> Tensor:
        """The row of each flat token number."""
        return flat_N // self.length

    def of_row(self, index: int) -> Progress:
        """The progress of one row alone."""
        known = None if self.known is None else self.known[index : index + 1]
        return Progress(
            number=self.number[index : index + 1], of=self.of[index : index + 1], length=self.length, known=known
        )


def padded(x: Tensor, length: int, dim: int = -1) -> Tensor:
    """``x`` with zeros behind it up to ``length`` in dimension -1 or -2."""
    missing = length - x.shape[dim]
    return F.pad(x, (0, 0) * (-1 - dim) + (0, missing)) if missing else x


def widened(batch: Batch, length: int) -> Batch:
    """Rows of ``length`` tokens; the added ones are not valid."""
    missing = length - batch.ids.shape[1]
    if not missing:
        return batch
    tensors = {
        f.name: F.pad(t, (0, 0, 0, missing) if t.dim() == 3 else (0, missing))
        for f in dataclasses.fields(batch)
        if f.name not in SHARED and isinstance(t := getattr(batch, f.name), Tensor) and t.dim() > 1
    }
    return batch.replace(**tensors)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """``total`` to be minimised; ``terms`` by name (scalars, mean a token); ``counts`` by name: tokens each mean is over."""

    total: Tensor
    terms: dict[str, Tensor]
    counts: dict[str, int]
