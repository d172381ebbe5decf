"""The contracts. Everything that generates runs ``sampling.sampler``, everything that learns runs ``training.train``, and both know
only what stands here. A part is a frozen dataclass or a module that has these methods; nothing is registered or inherited.

Letters: B rows, L tokens, N tokens scored, V vocabulary. ``masked`` True = masked. ``time`` 0 clean .. 1 all masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from unmask.sequence import Batch, Sequence
from unmask.step import CachePlan, Loss, Move, Prediction, Progress, Proposal, Query, Reuse, Step

ModelT = TypeVar("ModelT", contravariant=True)  # the network that an objective trains
BatchT = TypeVar("BatchT", contravariant=True)  # what its source yields
MadeT = TypeVar("MadeT", covariant=True)  # a batch, of a source
LentT = TypeVar("LentT")  # what a cache lends besides keys and values
PartsT = TypeVar("PartsT", contravariant=True)  # the parts of a model that a task uses
AnswerT = TypeVar("AnswerT", covariant=True)


@runtime_checkable
class Codec(Protocol):
    """Between pixels, sound or any other signal and ids or values, in batches on any device. ``size``: the number of ids, 0 for values."""

    @property
    def size(self) -> int: ...
    def encode(self, x: Tensor, /) -> Tensor: ...
    def decode(self, ids: Tensor, /) -> Tensor: ...


class Denoiser(Protocol):
    """A model. ``predict [B, L]``: the tokens to score (None: the masked ones) · ``reuse``: what need not be computed again."""

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction: ...


@runtime_checkable
class Headless(Protocol):
    """A model that can leave its heads to the caller: ``hidden_states`` is its forward pass, with ``Scored.hidden`` and ``Scored.head``
    instead of logits. An objective then needs no logits of all tokens at once.
    """

    def hidden_states(
        self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None
    ) -> Prediction: ...


@runtime_checkable
class Corruption(Protocol):
    """The forward process. ``times`` draws a time for every token, [B, L]; ``corrupt`` masks or replaces tokens of a clean batch at those
    times, or at [B] times given, and sets ``masked``, ``time``, ``weight`` and, where the objective scores other tokens, ``target``.
    """

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor: ...
    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch: ...


class Objective(Protocol[ModelT, BatchT]):
    """(model, batch, rng) -> Loss: zero at a perfect model, finite everywhere. Several losses are as many updates from one batch."""

    def __call__(self, model: ModelT, batch: BatchT, rng: torch.Generator) -> Loss | Iterator[Loss]: ...


@runtime_checkable
class UnmaskingSchedule(Protocol):
    """How many tokens of how many are unmasked at each step: positive numbers that sum to ``tokens``."""

    def counts(self, tokens: int) -> list[int]: ...


@runtime_checkable
class Guidance(Protocol):
    """Several views of each row in one forward, merged into one prediction. The first view is the row as it is; a view keeps its place
    in the list over all steps, and views at the end of the list may be left out at some.
    """

    def views(self, batch: Batch, progress: Progress) -> list[Batch]: ...
    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction: ...


@runtime_checkable
class Refreshing(Protocol):
    """A guidance that runs its other views at some steps only and uses their logits again at the steps between.

    ``to_score(predict, block)``: the tokens that the other views score, [B, L] · ``completed(views, kept, progress)``: the predictions of
    all views for the tokens of the first one, and what the run keeps for its next step ([] before the first).
    """

    def to_score(self, predict: Tensor, block: Tensor) -> Tensor: ...
    def completed(
        self, views: list[Prediction], kept: list[Prediction], progress: Progress
    ) -> tuple[list[Prediction], list[Prediction]]: ...


class TokenSampler(Protocol):
    """Candidate ids and scores from a prediction. One that reads more tokens than are selected is also ``Predicting``."""

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal: ...


class Selection(Protocol):
    """Which candidates to take: at most ``counts [B]`` tokens of each row inside ``block [B, L]``, and at least one where there is one
    (unless it is ``Bounded``). It may remask or redraw tokens that this run unmasked before, those of ``batch.region``, and may then take
    as many more as it remasks.

    A selection that knows its tokens beforehand is also ``Predicting``: only those are then scored.
    """

    def __call__(self, batch: Batch, proposal: Proposal, block: Tensor, counts: Tensor, progress: Progress) -> Move: ...


@runtime_checkable
class Predicting(Protocol):
    """A token sampler or selection that says which tokens to score, [B, L], unmasked ones too; the union is scored. None: no wish, so
    that a part can ask the one that it wraps. Where nobody has a wish, the masked tokens of the block are scored.
    """

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None: ...


@runtime_checkable
class Bounded(Protocol):
    """A selection whose steps may unmask nothing, or that remasks: a block of ``tokens`` ends within ``planned`` + ``extra_steps`` steps.
    None: it does neither.
    """

    def extra_steps(self, tokens: int, planned: int) -> int | None: ...


@runtime_checkable
class Lingering(Protocol):
    """A selection that goes on in a block without masked tokens: one more step, and after a step that changed a token another, at most
    ``lingering`` of them. Such steps only redraw.
    """

    @property
    def lingering(self) -> int: ...


@runtime_checkable
class Foreseeable(Protocol):
    """A selection that may promise (``foreseeable``) to unmask exactly ``counts`` of the masked tokens of each row's block, and to mask or
    redraw none. All counts of a run are then known before its first step, and what it unmasked is checked after its last one.
    """

    @property
    def foreseeable(self) -> bool: ...


@runtime_checkable
class Ordered(Protocol):
    """A selection that unmasks tokens in an order known before the first step: lower ``places [B, L]`` first, earlier tokens first
    where equal. ``open [B, L]``: the tokens to unmask.
    """

    def places(self, batch: Batch, open: Tensor) -> Tensor: ...


class BlockSchedule(Protocol):
    """In which order parts of a row are unmasked: the block number of every token, [B, L]. A row works on its lowest-numbered block that
    has masked tokens. Asked before the first step and whenever a row finished a block.
    """

    def __call__(self, batch: Batch, progress: Progress) -> Tensor: ...


@runtime_checkable
class DependentBlocks(Protocol):
    """A block schedule whose later blocks depend on what was unmasked before, so that its run is not planned beforehand. ``finest``: the
    block numbers, [B, L], with as many blocks as there may be.
    """

    def finest(self, batch: Batch) -> Tensor: ...


class EarlyStopping(Protocol):
    """Fills at once what no longer needs the model; a row with nothing masked is finished. See also ``Correcting``."""

    def __call__(self, batch: Batch) -> Batch: ...


@runtime_checkable
class Correcting(Protocol):
    """Early stopping that goes on after the last unmasking: ``more(batch, extra) -> [B]``, the rows that take another step after
    ``extra [B]`` such steps; ``bound`` is the largest number of them.
    """

    @property
    def bound(self) -> int: ...
    def more(self, batch: Batch, extra: Tensor) -> Tensor: ...


@runtime_checkable
class Cache(Protocol):
    """Which tokens a step computes; ``held [B, L]``: those that the state has. None: everything, and nothing is kept.

    ``exact``: the result equals that without a cache up to rounding.
    """

    @property
    def exact(self) -> bool: ...
    def plan(
        self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress
    ) -> CachePlan | None: ...


@runtime_checkable
class Lending(Cache, Protocol[LentT]):
    """A cache that lends logits, too, and keys and values of tokens that have changed since.

    ``to_score(batch, wanted, held, lent, progress)``: the tokens of a view to score, [B, L], in place of the ``wanted`` ones ·
    ``completed(view, lent, wanted)``: the prediction of the wanted tokens, and what the view lends at the next step. ``lent`` is None
    before the first step.
    """

    def to_score(
        self, batch: Batch, wanted: Tensor, held: Tensor, lent: LentT | None, progress: Progress
    ) -> Tensor: ...
    def completed(self, view: Prediction, lent: LentT | None, wanted: Tensor) -> tuple[Prediction, LentT]: ...


@runtime_checkable
class Prior(Protocol):
    """Where a run starts, from the request's batch: as it is, or with ids drawn for tokens that are never masked (uniform diffusion)."""

    def __call__(self, batch: Batch) -> Batch: ...


class Task(Protocol[PartsT, AnswerT]):
    """A request that becomes a sequence, and reads its answer from the finished one. ``needs``: the parts of the model it uses."""

    needs: ClassVar[frozenset[str]]

    def build(self, tokens: PartsT) -> Sequence: ...
    def read(self, sequence: Sequence, tokens: PartsT) -> AnswerT: ...


class Source(Protocol[MadeT]):
    """Training data: batch number ``step``, a pure function of (seed, step), so that resuming needs no state."""

    def __call__(self, step: int) -> MadeT: ...


class Run(Protocol):
    """The loop between two steps. ``query``: the next forward that it needs, None at the end · ``step``: the last one taken ·
    ``batch``: as far as it got.
    """

    @property
    def batch(self) -> Batch: ...
    @property
    def query(self) -> Query | None: ...
    @property
    def step(self) -> Step: ...
    def advance(self, prediction: Prediction) -> None: ...
