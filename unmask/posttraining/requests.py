"""How prompts become rows of a model, and finished rows samples that rewards read.

Public ideas: ``Drawing``, ``Asking`` and ``Replying`` are requests for pictures, for answers about pictures, and for those of text models;
``requests_of(parts, presets, prompts) -> (Requests, Sampler)`` chooses one.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from unmask.pipeline.text_model import Reply, TextParts
from unmask.posttraining.prompts import Prompt, PromptBatch
from unmask.posttraining.rewards import Sample
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence, collate
from unmask.tasks.generate import Generate, picture_codes
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.results import answered
from unmask.tasks.sampler_options import with_options
from unmask.tasks.understand import Ask
from unmask.tokens.pictures import read_image
from unmask.tokens.text import EOS, EOT, Text

LEAST_TEMPERATURE = 1.0  # of words where the preset is greedy: a group of equal answers teaches nothing


@dataclass(frozen=True, kw_only=True)
class Options:
    """``steps``: of the sampler, None for its own; where it decodes in blocks, per block · ``length``: tokens of an answer in words, 0 for
    the model's own · ``temperature``: of the sampler, None for its own, or 1 for words where that is greedy.
    """

    steps: int | None = None
    length: int = 0
    temperature: float | None = None


class Requests(Protocol):
    """How a model gets prompts and what its answers are. ``ends``: text ids that end an answer in words."""

    @property
    def ends(self) -> tuple[int, ...]: ...
    def row(self, prompt: Prompt) -> Sequence: ...
    def read(self, prompts: Items[Prompt], answers: Items[Sequence]) -> list[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Prompts are drawn."""

    parts: Parts

    @property
    def ends(self) -> tuple[int, ...]:
        return ()

    def row(self, prompt: Prompt) -> Sequence:
        if prompt.asks:
            raise ValueError(f"{prompt.name} is a question; this model draws prompts here")
        return Generate(prompt=self.parts.wording.read(prompt.text)).build(self.parts)

    def read(self, prompts: Items[Prompt], answers: Items[Sequence]) -> list[Sample]:
        codes = torch.stack([picture_codes(row, "image") for row in answers])
        pictures = self.parts.decode(codes)
        rows = zip(prompts, answers, pictures, strict=True)
        return [
            Sample(sequence=row, prompt=prompt.text, picture=np.asarray(image), wanted=prompt.wanted)
            for prompt, row, image in rows
        ]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Questions, about pictures if they have one, get answers of ``length`` tokens."""

    parts: Parts
    length: int

    @property
    def ends(self) -> tuple[int, ...]:
        return _ends(self.parts.text)

    def row(self, prompt: Prompt) -> Sequence:
        views = self.parts.question_views(prompt.image and read_image(prompt.image))
        return Ask(pixels=views, question=self.parts.wording.read(prompt.text), length=self.length).build(self.parts)

    def read(self, prompts: Items[Prompt], answers: Items[Sequence]) -> list[Sample]:
        return _texts(prompts, answers, self.parts.text)


@dataclass(frozen=True, kw_only=True)
class Replying:
    """Questions to a text model."""

    parts: TextParts
    length: int

    @property
    def ends(self) -> tuple[int, ...]:
        return _ends(self.parts.text)

    def row(self, prompt: Prompt) -> Sequence:
        if prompt.image is not None or not prompt.asks:
            raise ValueError(f"{prompt.name} has a picture or is to be drawn, and this is a text model; ask a question")
        return Reply(question=prompt.text, length=self.length).build(self.parts)

    def read(self, prompts: Items[Prompt], answers: Items[Sequence]) -> list[Sample]:
        return _texts(prompts, answers, self.parts.text)


def batch_of(requests: Requests, prompts: Items[Prompt]) -> PromptBatch:
    """The rows of prompts, each with a seed that follows from its text."""
    rows = [requests.row(prompt) for prompt in prompts]
    return PromptBatch(tuple(prompts), collate(rows, [key("prompt", prompt.text) for prompt in prompts]))


def _texts(prompts: Items[Prompt], answers: Items[Sequence], text: Text) -> list[Sample]:
    return [
        Sample(sequence=row, prompt=prompt.text, text=answered(row, text), wanted=prompt.wanted)
        for prompt, row in zip(prompts, answers, strict=True)
    ]


def _ends(text: Text) -> tuple[int, ...]:
    return (text[EOT], text[EOS])


def requests_of(
    parts: Parts | TextParts, presets: Presets, prompts: Items[Prompt], options: Options = Options()
) -> tuple[Requests, Sampler]:
    """How a model gets these prompts, all of one kind, and the sampler of its answers. Without prompts: as for prompts to draw."""
    if isinstance(parts, TextParts):
        words = Replying(parts=parts, length=options.length or parts.family.length)
        return words, _warm(parts.family.chat(parts.text, words.length), options)
    if prompts and prompts[0].asks:
        return Asking(parts=parts, length=options.length or presets.answer), _warm(presets.ask(parts), options)
    preset = presets.generate(parts)
    return Drawing(parts=parts), with_options(preset, (), options.steps, temperature=options.temperature)


def _warm(sampler: Sampler, options: Options) -> Sampler:
    own = getattr(sampler.token_sampler, "temperature", None)
    warm = options.temperature if options.temperature is not None else None if own else LEAST_TEMPERATURE
    return with_options(sampler, (), options.steps, temperature=warm)
