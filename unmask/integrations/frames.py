"""Pictures while they are drawn. Public idea: ``watched(model, on_frame)`` is the same model, which reports every step of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.sequence import Kind
from unmask.sequence import Sequence as Tokens
from unmask.tasks.generate import picture_so_far
from unmask.tasks.results import Attempt
from unmask.tasks.running import Decoded, OnStep, StepEvent
from unmask.tokens.layouts import Layout

MASKED = -1  # stands for a masked token among codes


@dataclass(frozen=True, kw_only=True)
class Frame:
    """All pictures of one run after a step.

    ``number``: steps taken; a run begins with 1 · ``of``: steps planned · ``codes [B, h, w]``: image tokens on the CPU, ``MASKED`` where
    they are masked.
    """

    number: int
    of: int
    codes: Tensor

    @property
    def masked(self) -> float:
        """The fraction of tokens that are still masked."""
        return float((self.codes == MASKED).float().mean())


@dataclass(frozen=True, kw_only=True)
class _Watching:
    """An executor that runs the model's own network and reports the runs that draw pictures."""

    model: Model
    on_frame: Callable[[Frame], None]

    def run(
        self, sequences: Sequence[Tokens], seeds: Sequence[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        if not all(_draws(sequence) for sequence in sequences):
            return self.model.run(sequences, seeds, sampler, on_step)
        rows: list[Tensor | None] = [None] * len(sequences)

        def step(event: StepEvent) -> None:
            if on_step:
                on_step(event)
            codes, masked = picture_so_far(event.sequence, "image")
            rows[event.row] = codes.masked_fill(masked, MASKED)
            known = [row for row in rows if row is not None]
            if event.row == len(rows) - 1 and len(known) == len(rows):
                self.on_frame(Frame(number=event.number, of=event.of, codes=torch.stack(known)))

        return self.model.run(sequences, seeds, sampler, step)

    def emit(self, row: int, event: Layout | Attempt) -> None:
        self.model.emit(row, event)


def watched(model: Model, on_frame: Callable[[Frame], None]) -> Model:
    """The model with the same results, which calls ``on_frame`` after every step of its pictures."""
    return Model(model.parts, model.presets, executor=_Watching(model=model, on_frame=on_frame))


def canvases(model: Model, codes: Tensor) -> list[Image.Image]:
    """The pictures of ``Frame.codes`` [B, h, w], masked tokens as grey tiles."""
    return [model.parts.canvas(of_row.clamp(min=0), of_row == MASKED) for of_row in codes]


def in_a_row(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side."""
    row = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    for at, image in enumerate(images):
        row.paste(image, (sum(before.width for before in images[:at]), 0))
    return row


def _draws(sequence: Tokens) -> bool:
    """Whether a run of this sequence unmasks tokens of its picture."""
    spans = [span for span in sequence.spans if span.name == "image" and span.kind == Kind.CODE]
    return any(bool(sequence.masked[span.start : span.stop].any()) for span in spans)
