"""Generation strategies: how a measurement makes the picture of an item. Public idea: ``PromptGenerator()``, ``EditGenerator()``.

A strategy is called with a model and items and returns their pictures, in one batch. Any callable of this type can be used in a part
(``GenEval(draw=…)``). The picture of an item must depend on its own text and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from unmask.pipeline.model import Model, describe
from unmask.recipe import override
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.tasks import edit, generate, reflecting, revising
from unmask.tasks.parts import Parts
from unmask.tasks.reflecting import Thinking

ItemT = TypeVar("ItemT", contravariant=True)
Make = Callable[[Parts], Sampler]


class GenerationStrategy(Protocol[ItemT]):
    """(model, items) -> uint8 [N, S, S, 3]; ``settings``: everything else besides weights, texts and seeds that affects the pictures."""

    def __call__(self, model: Model, items: Sequence[ItemT]) -> np.ndarray: ...
    def settings(self, model: Model) -> object: ...


class PromptItem(Protocol):
    """A prompt and its seed."""

    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int: ...


class EditItem(PromptItem, Protocol):
    """An edit: the instruction ``text``, and the picture, ``picture(side)``: a square of that size if the item can choose."""

    def picture(self, side: int) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class PromptGenerator:
    """Pictures of prompts. ``sampler``: parts of the model -> Sampler (None: its preset) · ``changes``: settings of it.

    ``thinking``: layout and best-of-N; the attempt that ``reflecting.best`` chooses counts.
    """

    sampler: Make | None = None
    changes: tuple[str, ...] = ()
    thinking: Thinking = Thinking()

    def __call__(self, model: Model, items: Sequence[PromptItem]) -> np.ndarray:
        if self.thinking != Thinking():
            model.parts.require(reflecting.NEEDS)
            texts, seeds = [item.text for item in items], [item.seed for item in items]
            found = reflecting.think(model, texts, seeds, self.thinking, self._sampler(model))
            return np.stack([np.asarray(reflecting.best(attempts).image) for attempts in found])
        built = [generate.Generate(prompt=item.text).build(model.parts) for item in items]
        return _made(model, built, items, self._sampler(model))

    def settings(self, model: Model) -> object:
        made = describe(self._sampler(model))
        if self.thinking == Thinking():
            return made
        used = (model.presets.plan(model.parts), model.presets.critique(model.parts))
        return [made, *(describe(sampler) for sampler in used), asdict(self.thinking)]

    def _sampler(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.generate)(model.parts), self.changes)


@dataclass(frozen=True, kw_only=True)
class EditGenerator:
    """Edits of pictures. Fields as in ``PromptGenerator``."""

    sampler: Make | None = None
    changes: tuple[str, ...] = ()
    thinking: Thinking = Thinking()

    def __call__(self, model: Model, items: Sequence[EditItem]) -> np.ndarray:
        pictures = [item.picture(model.parts.side) for item in items]
        if self.thinking != Thinking():
            model.parts.require(revising.NEEDS)
            texts, seeds = [item.text for item in items], [item.seed for item in items]
            samplers = self._sampler(model), self._again(model)
            found = revising.revise(model, pictures, texts, seeds, self.thinking, *samplers)
            return np.stack([np.asarray(reflecting.best(attempts).image) for attempts in found])
        built = []
        for item, picture in zip(items, pictures, strict=True):
            task = edit.Edit(
                pixels=model.parts.preprocess(picture)[0], instruction=item.text, look=model.parts.image_views(picture)
            )
            built.append(task.build(model.parts))
        return _made(model, built, items, self._sampler(model))

    def settings(self, model: Model) -> object:
        made = describe(self._sampler(model))
        if self.thinking == Thinking():
            return made
        presets, parts = model.presets, model.parts
        used = (presets.plan_edit(parts), presets.plan(parts), presets.critique(parts), self._again(model))
        return [made, *(describe(sampler) for sampler in used), asdict(self.thinking)]

    def _sampler(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.edit)(model.parts), self.changes)

    def _again(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.edit_again)(model.parts), self.changes)


def _made(model: Model, built: Sequence[Tokens], items: Sequence[PromptItem], sampler: Sampler) -> np.ndarray:
    done = model.run(built, [item.seed for item in items], sampler)
    codes = torch.stack([generate.picture_codes(row, "image") for row in done.rows])
    return np.stack([np.asarray(image) for image in model.parts.decode(codes.to(model.device))])
