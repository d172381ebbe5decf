"""The requests of a comparison of samplers: prompts as sequences of a loaded model.

Public idea: ``drawing(model, prompts, ..)``, ``answering(model, prompts, ..)`` and ``writing(model, prompts, ..)`` return ``Requests``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from unmask.evaluation.sampler_prompts import Prompt
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import Continue, Reply, TextModel
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence, Span
from unmask.tasks.generate import Generate
from unmask.tasks.lengths import Extent, leading, read_words
from unmask.tasks.understand import Ask
from unmask.tokens.pictures import read_image
from unmask.tokens.text import Text

Change = Callable[[Sampler], Sampler]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt as the model reads it. ``built``: its sequence, with the features of its picture."""

    prompt: Prompt
    built: Sequence
    seed: int

    @property
    def span(self) -> Span:
        """The first span that is unmasked."""
        return next(span for span in self.built.spans if span.writable)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests of one task. ``net``: the network, whose forwards are counted · ``sampler``: the model's own · ``run``: (sequence, seed,
    sampler) -> the finished sequence · ``ends``: ids that end a text, () for pictures · ``read``: the text or the picture.
    """

    items: tuple[Request, ...]
    net: nn.Module
    device: torch.device
    sampler: Sampler
    run: Callable[[Sequence, int, Sampler], Sequence]
    ends: tuple[int, ...]
    read: Callable[[Sequence], str | Image.Image]

    def ids(self, row: Sequence) -> tuple[int, ...]:
        """The ids of the writable spans; of a text up to its first end, which counts."""
        ids = [i for span in row.spans if span.writable for i in row.ids[span.start : span.stop].tolist()]
        last = next((n for n, i in enumerate(ids) if i in self.ends), len(ids) - 1)
        return tuple(ids[: last + 1])


def drawing(model: Model, prompts: Items[Prompt], *, seed: int, change: Change) -> Requests:
    """Pictures of prompts, without layouts. ``change``: of the model's sampler, such as the options of a user.

    ValueError for a model that draws nothing.
    """
    preset = change(model.presets.generate(model.parts))
    model.parts.require(Generate.needs)
    tasks = [Generate(prompt=model.parts.wording.read(prompt.text)) for prompt in prompts]
    return _requests(model, prompts, tasks, seed, preset)


def answering(model: Model, prompts: Items[Prompt], *, seed: int, change: Change, length: int | None) -> Requests:
    """Answers of one canvas of ``length`` tokens (None: the model's preset). ValueError where a question lacks the picture it needs."""
    preset = change(model.presets.ask(model.parts))
    model.parts.require(Ask.needs)
    canvas = model.parts.rows.canvas(model.presets.answer if length is None else length, None)
    views = [model.parts.question_views(_opened(prompt)) for prompt in prompts]
    texts = [model.parts.wording.read(prompt.text) for prompt in prompts]
    tasks = [Ask(pixels=v, question=text, length=canvas) for v, text in zip(views, texts, strict=True)]
    return _requests(model, prompts, tasks, seed, preset)


def writing(
    model: TextModel, prompts: Items[Prompt], *, seed: int, change: Change, length: int | None, plain: bool
) -> Requests:
    """Answers of a text model in one canvas; ``plain``: texts to continue, without the chat template."""
    if with_picture := next((prompt for prompt in prompts if prompt.image is not None), None):
        raise ValueError(f"{with_picture.text!r} has a picture, and this is a text model; leave out the picture")
    family, text = model.parts.family, model.parts.text
    canvas = family.length if length is None else length
    preset = change(model.change(model.fast.text((family.base if plain else family.chat)(text, canvas))))
    tasks: list[Any] = [
        Continue(prompt=p.text, length=canvas) if plain else Reply(question=p.text, length=canvas) for p in prompts
    ]
    return _requests(model, prompts, tasks, seed, preset)


def _opened(prompt: Prompt) -> Image.Image | None:
    return read_image(prompt.image) if isinstance(prompt.image, Path) else prompt.image


def _requests(
    model: Model | TextModel, prompts: Items[Prompt], tasks: Items[Any], seed: int, preset: Sampler
) -> Requests:
    """Request i has the seed ``seed + i``. Pictures are encoded here, so that no measured run encodes one."""
    built = [task.build(model.parts) for task in tasks]
    writes, context = not isinstance(tasks[0], Generate), model.parts.context if isinstance(model, TextModel) else 0
    if isinstance(model, Model):
        context = model.presets.context
        built = model.parts.features.known(built, model.parts.net, model.device)
    if writes and (longest := max(len(row.ids) for row in built)) > context:
        raise ValueError(
            f"a prompt and its answer have {longest} tokens, and the model's context is {context}; shorten the prompt, or use --length"
        )
    net = model.parts.net
    if not isinstance(net, nn.Module):
        raise ValueError(f"the network is {type(net).__name__}, no torch module, so its forwards cannot be counted")
    rows = zip(prompts, built, strict=True)
    return Requests(
        items=tuple(Request(prompt=prompt, built=row, seed=seed + i) for i, (prompt, row) in enumerate(rows)),
        net=net,
        device=model.device,
        sampler=preset,
        run=lambda row, seed, sampler: model.run([row], [seed], sampler).rows[0],
        ends=model.parts.text.ends if writes else (),
        read=(lambda row: _said(row, model.parts.text)) if writes else (lambda row: tasks[0].read(row, model.parts)),
    )


def _said(row: Sequence, text: Text) -> str:
    """The answer as ``ask`` reads it, without an incomplete character at its end."""
    return read_words(leading(row), text, Extent(length=len(row.spans[-1]))).text
