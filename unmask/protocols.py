"""The contracts. Who has read this page can guess the rest: everything that generates runs ``sampling.loop``, everything that
learns runs ``training.train``, and both only know what stands here.

Letters: B rows, L tokens, N tokens asked for, V vocabulary. ``masked`` True = undecided. ``time`` 0 clean .. 1 all masked.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.sequence import Batch, Loss, Move, Prediction, Progress, Proposal, Sequence


@runtime_checkable
class Tokenizer(Protocol):
    """Between the world and ids. ``size`` is the number of ids."""

    @property
    def size(self) -> int: ...
    def encode(self, x: Any) -> Any: ...
    def decode(self, ids: Any) -> Any: ...


class Denoiser(Protocol):
    """A model. ``ask [B, L]``: the tokens whose logits are wanted (default: the masked ones)."""

    def __call__(
        self, batch: Batch, *, time: Tensor | None = None, ask: Tensor | None = None, carry: object = None
    ) -> Prediction: ...


class Corruption(Protocol):
    """The forward process: ``corrupt`` masks a clean batch at ``time [B]``; ``prior`` is where sampling starts."""

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch: ...
    def prior(self, batch: Batch, rng: torch.Generator) -> Batch: ...


class Objective(Protocol):
    """(model, clean batch, rng) -> Loss: zero at a perfect model, finite everywhere."""

    def __call__(self, model: Any, clean: Any, rng: torch.Generator) -> Loss: ...


class UnmaskingSchedule(Protocol):
    """How many tokens of how many are unmasked at each step: positive numbers that sum to ``tokens``."""

    def counts(self, tokens: int) -> list[int]: ...


class Guidance(Protocol):
    """Several views of each row in one forward, merged into one prediction."""

    def views(self, batch: Batch, progress: Progress) -> list[Batch]: ...
    def merge(self, predictions: list[Prediction], progress: Progress) -> Prediction: ...


class TokenSampler(Protocol):
    """Candidate ids and scores from a prediction."""

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal: ...


class Selection(Protocol):
    """Which candidates to take: at most ``counts [B]`` tokens of each row inside ``window [B, L]``, and at least one where there is one.

    A select that knows its tokens beforehand may also have ``ask(batch, window, counts)``; only those are then scored.
    """

    def __call__(
        self, batch: Batch, proposal: Proposal, window: Tensor, counts: Tensor, progress: Progress
    ) -> Move: ...


class BlockSchedule(Protocol):
    """In which order parts of a row are worked on: the window number of every token, [B, L] long."""

    def __call__(self, batch: Batch) -> Tensor: ...


class EarlyStopping(Protocol):
    """Decides at once what no longer needs the model; a row with nothing undecided is finished."""

    def __call__(self, batch: Batch) -> Batch: ...


class Task(Protocol):
    """A request that becomes a sequence, and reads its answer from the finished one. ``needs``: the parts of the model it uses."""

    needs: ClassVar[frozenset[str]]

    def build(self, tokens: Any) -> Sequence: ...
    def read(self, sequence: Sequence, tokens: Any) -> Any: ...


class Source(Protocol):
    """Training data: batch number ``step``, a pure function of (seed, step), so that resuming needs no state."""

    def __call__(self, step: int) -> Any: ...
