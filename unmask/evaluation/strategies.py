"""How a picture is made from what an item asks for: the arm of a measurement. Public idea: ``PromptGenerator()``, ``EditGenerator()``.

An arm is called with a model and items and hands back their pictures, in one batch; whatever has this shape can take its place
in a part (``GenEval(draw=…)``). Item i's picture must follow from its own text and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

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

Make = Callable[[Parts], Sampler]


class GenerationStrategy(Protocol):
    """(model, items) -> uint8 [N, S, S, 3]; ``settings``: what its pictures follow from beside weights, texts and seeds."""

    def __call__(self, model: Model, items: Sequence[Any]) -> np.ndarray: ...
    def settings(self, model: Model) -> Any: ...


class PromptItem(Protocol):
    """What is drawn: a picture of ``text``."""

    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int: ...


class EditItem(PromptItem, Protocol):
    """What is edited: ``picture(side)``, a square of that many pixels where the item can choose, changed as ``text`` says."""

    def picture(self, side: int) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class PromptGenerator:
    """Draws prompts. ``sampler``: parts of the model -> how, None: the model's own · ``changes``: ``("schedule.steps=8",)``.

    ``thinking``: what is thought before and after; of several tries the best by the model's own judgement counts.
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

    def settings(self, model: Model) -> Any:
        made = describe(self._sampler(model))
        if self.thinking == Thinking():
            return made
        used = (model.presets.plan(model.parts), model.presets.critique(model.parts))
        return [made, *(describe(sampler) for sampler in used), asdict(self.thinking)]

    def _sampler(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.generate)(model.parts), self.changes)


@dataclass(frozen=True, kw_only=True)
class EditGenerator:
    """Edits pictures. The fields are ``PromptGenerator``'s; a plan says what is touched, and where."""

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

    def settings(self, model: Model) -> Any:
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
